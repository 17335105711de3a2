"""Every event is written by the core, stored as JSON, and comes back as its class with the same values."""

from __future__ import annotations

import dataclasses
import inspect
import json
from datetime import datetime, timedelta
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.lifecycle.world import START, UNENCODABLE, World, identity
from tests.properties import modest

from durable_batches import (
    AbortAll,
    BatchCancelled,
    BatchCompleted,
    BatchConfig,
    BatchCreated,
    BatchEvent,
    BatchFailed,
    BatchId,
    BatchPaused,
    BatchRedriven,
    BatchResumed,
    BatchSealed,
    BatchUpdated,
    Counts,
    DocumentCompleted,
    DocumentFailed,
    DocumentReleased,
    DocumentRetrying,
    DocumentsAdded,
    DocumentStarted,
    DocumentSuspended,
    DocumentWoken,
    ProviderJobChanged,
    ResolutionCompleted,
    ResolutionFailed,
    ResolutionReleased,
    ResolutionStarted,
    RetryFailed,
    StageProgress,
    StateChanged,
    UnknownEvent,
)
from durable_batches.lifecycle import event_data
from durable_batches.lifecycle.commands import Cancel
from durable_batches.lifecycle.events import LAST_EVENT_TAGS, decode_event
from durable_batches.lifecycle.facts import ExecutionFailed, ExecutionReleased, ExecutionSucceeded, StageEntered
from durable_batches.lifecycle.fingerprints import fingerprint_of
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.lifecycle.records import RESOLVER_POSITION, EventRecord, WorkerId

ME = WorkerId("me")
KINDS: tuple[type[Any], ...] = get_args(BatchEvent)
TO_COME: frozenset[type[Any]] = frozenset(
    {
        *(BatchPaused, BatchResumed, BatchRedriven, BatchUpdated, BatchSealed, DocumentsAdded),
        *(DocumentSuspended, DocumentWoken, ProviderJobChanged, UnknownEvent),
    }
)
"""Events that nothing in this version writes, so that newer ones may be followed by it."""


def decoded(world: World, batch_id: BatchId) -> list[BatchEvent]:
    return [decode_event(event) for event in world.events[batch_id]]


def fields_of(event: BatchEvent) -> dict[str, Any]:
    values = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
    return {name: value for name, value in values.items() if name not in ("batch_id", "seq", "at", "tag")}


def eventful_life() -> tuple[World, BatchId]:
    """A batch to which everything happens that is an event, but its end by failure or cancel."""
    world = World()
    config = BatchConfig(failure_policy=RetryFailed(max_attempts=2, backoff=timedelta(seconds=10)))
    batch_id = world.batch("bätch", 3, stages=2, resolver=True, config=config)
    world.claim(ME, 2)
    one, two = world.held(ME)
    world.commit(
        ME,
        StageEntered(*identity(one), 1),
        ExecutionReleased(*identity(one)),
        ExecutionSucceeded(*identity(two), b"", 4),
    )
    world.claim(ME, 1)
    world.release([ME], "crash")
    again, other = WorkerId("again"), WorkerId("other")
    world.claim(again, 1)
    (third,) = world.held(again)
    world.commit(again, ExecutionFailed(*identity(third), b"", "ün\nlucky"))
    world.now += 10_000_000
    world.claim(other)
    suspect, second = world.held(other)
    world.commit(other, ExecutionSucceeded(*identity(suspect), b""), ExecutionFailed(*identity(second), b"", "again"))
    world.claim(other)
    (resolver,) = world.held(other)
    assert resolver.position == RESOLVER_POSITION
    world.commit(other, ExecutionFailed(*identity(resolver), b"", "later", retry_in=1_000_000))
    world.now += 1_000_000
    world.claim(other)
    world.release([other], "shutdown")
    last = WorkerId("last")
    world.claim(last)
    world.commit(last, ExecutionSucceeded(*identity(world.held(last)[0]), b""))
    world.check()
    return world, batch_id


def test_every_event_comes_back_as_it_was_meant() -> None:
    world, batch_id = eventful_life()
    events = decoded(world, batch_id)
    found = [(type(event), fields_of(event)) for event in events]

    def has(kind: type[Any], **fields: Any) -> None:
        assert (kind, fields) in found, f"{kind.__name__}({fields}) is not among {found}"

    moment = from_micros(START)
    has(BatchCreated, workflow="workflow", version="1", total=3, open=False)
    has(StateChanged, previous="pending", state="one")
    has(DocumentStarted, document_id="document-0", attempt=1)
    has(StageProgress, document_id="document-0", stage="two", current=1, total=3, percentage=16.6667)
    has(DocumentReleased, document_id="document-0", reason="shutdown", crashes=0)
    has(DocumentReleased, document_id="document-0", reason="crash", crashes=1)
    has(DocumentCompleted, document_id="document-1", percentage=50.0, unused_checkpoints=4)
    has(
        DocumentRetrying,
        document_id="document-2",
        failures=1,
        due=moment + timedelta(seconds=10),
        error="ün\nlucky",
    )
    fingerprint = fingerprint_of("", None, "again")
    has(DocumentFailed, document_id="document-2", error="again", percentage=100.0, fingerprint=fingerprint)
    has(ResolutionStarted, attempt=1)
    has(ResolutionFailed, error="later", due=moment + timedelta(seconds=11))
    has(ResolutionReleased, reason="shutdown")
    has(ResolutionCompleted)
    has(BatchCompleted, counts=Counts(total=3, succeeded=2, failed=1))
    assert {type(event) for event in events} == set(KINDS) - {BatchFailed, BatchCancelled, *TO_COME}
    assert {event.batch_id for event in events} == {"bätch"}
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


def test_the_events_of_the_other_ends() -> None:
    world = World()
    failed = world.batch("failed", 2, config=BatchConfig(failure_policy=AbortAll()))
    world.claim(ME, 1)
    world.commit(ME, ExecutionFailed(*identity(world.held(ME)[0]), b"", "no"))
    last = decoded(world, failed)[-1]
    assert isinstance(last, BatchFailed)
    assert last.counts == Counts(total=2, failed=1, cancelled=1)
    assert "abort" in last.error

    cancelled = world.batch("cancelled", 2)
    world.command(cancelled, Cancel("request", "zu teuer"))
    last = decoded(world, cancelled)[-1]
    assert isinstance(last, BatchCancelled)
    assert (last.counts, last.reason) == (Counts(total=2, cancelled=2), "zu teuer")


def test_a_resolver_that_failed_for_good_has_no_due_time() -> None:
    world = World()
    batch_id = world.batch("batch", 0, resolver=True)
    world.claim(ME)
    world.commit(ME, ExecutionFailed(*identity(world.held(ME)[0]), b"", "no"))
    failed = [event for event in decoded(world, batch_id) if isinstance(event, ResolutionFailed)]
    assert [(event.error, event.due) for event in failed] == [("no", None)]


def test_moments_are_exact_and_aware() -> None:
    record = EventRecord(BatchId("batch"), 1, 1_700_000_000_123_457, "resolution_completed", b"[]")
    event = decode_event(record)
    assert event.at == datetime.fromisoformat("2023-11-14T22:13:20.123457+00:00")
    assert event.at.utcoffset() == timedelta(0)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_events_are_closed_frozen_and_tagged(kind: type[Any]) -> None:
    tags = [field.default for field in dataclasses.fields(kind) if field.name == "tag"]
    assert len(tags) == 1
    assert kind.__dataclass_params__.frozen
    assert ({field.name for field in dataclasses.fields(kind)} >= {"batch_id", "seq", "at"}) is True


def test_tags_are_unique_and_the_last_ones_known() -> None:
    tags = {kind: next(field.default for field in dataclasses.fields(kind) if field.name == "tag") for kind in KINDS}
    assert len(set(tags.values())) == len(KINDS)
    assert {tags[kind] for kind in (BatchCompleted, BatchFailed, BatchCancelled)} == LAST_EVENT_TAGS


def test_an_older_event_lacks_what_was_added_since() -> None:
    record = EventRecord(BatchId("batch"), 1, START, "document_completed", json.dumps(["a", 50.0]).encode())
    event = decode_event(record)
    assert isinstance(event, DocumentCompleted)
    assert event.unused_checkpoints == 0


def test_a_newer_event_has_what_is_passed_over() -> None:
    record = EventRecord(BatchId("batch"), 1, START, "document_started", json.dumps(["a", 1, "new"]).encode())
    event = decode_event(record)
    assert fields_of(event) == {"document_id": "a", "attempt": 1}
    assert event.tag == "document_started"


def test_an_event_of_a_newer_library_is_told_apart() -> None:
    record = EventRecord(BatchId("batch"), 3, START, "documents_shredded", '["ä",[1]]'.encode())
    event = decode_event(record)
    assert isinstance(event, UnknownEvent)
    assert fields_of(event) == {"name": "documents_shredded", "data": '["ä",[1]]'}
    assert (event.batch_id, event.seq, event.at, event.tag) == ("batch", 3, from_micros(START), "unknown")
    # The tag that this class has here is none that is stored.
    assert isinstance(decode_event(record._replace(tag="unknown")), UnknownEvent)


def test_events_that_newer_versions_write_are_known() -> None:
    def read(packed: event_data.EventData) -> BatchEvent:
        tag, fields = packed
        return decode_event(EventRecord(BatchId("batch"), 1, START, tag, json.dumps(fields).encode()))

    def is_read(packed: event_data.EventData, kind: type[Any], **fields: Any) -> None:
        event = read(packed)
        assert (type(event), fields_of(event)) == (kind, fields)
        assert hash(event) == hash(read(packed))

    moment, counts = from_micros(START), Counts(total=3, pending=2, succeeded=1)
    is_read(
        event_data.batch_paused(reason="quota", note=UNENCODABLE, until=START),
        BatchPaused,
        reason="quota",
        note="half a ?",
        until=moment,
        running="calls",
    )
    is_read(
        event_data.batch_paused(reason="operator", note="", until=None, running="documents"),
        BatchPaused,
        reason="operator",
        note="",
        until=None,
        running="documents",
    )
    is_read(event_data.batch_resumed(reason="operator"), BatchResumed, reason="operator")
    is_read(event_data.batch_redriven(run=2, counts=counts), BatchRedriven, run=2, counts=counts)
    is_read(event_data.batch_updated(changes={"concurrency": 3}), BatchUpdated, changes={"concurrency": 3})
    is_read(
        event_data.documents_added(count=1, total=3, percentage=20.5), DocumentsAdded, count=1, total=3, percentage=20.5
    )
    is_read(event_data.batch_sealed(total=3), BatchSealed, total=3)
    is_read(
        event_data.document_suspended(document_id="a", waits_for=["signal/x", ""], due=START),
        DocumentSuspended,
        document_id="a",
        waits_for=("signal/x", ""),
        due=moment,
    )
    is_read(event_data.document_woken(document_id="a", name="x"), DocumentWoken, document_id="a", name="x")
    is_read(
        event_data.provider_job_changed(provider="p", job=1, state="ended", requests=3, succeeded=2, failed=1),
        ProviderJobChanged,
        provider="p",
        job=1,
        state="ended",
        requests=3,
        succeeded=2,
        failed=1,
    )
    is_read(event_data.resolution_released(reason="paused"), ResolutionReleased, reason="paused")
    is_read(
        event_data.document_failed(document_id="a", error="no", percentage=1.0, fingerprint="fp1:0"),
        DocumentFailed,
        document_id="a",
        error="no",
        percentage=1.0,
        fingerprint="fp1:0",
    )
    is_read(
        event_data.batch_created(workflow="w", version="1", total=0, open=True),
        BatchCreated,
        workflow="w",
        version="1",
        total=0,
        open=True,
    )


def test_what_an_event_has_gained_takes_no_room_unused() -> None:
    created = event_data.batch_created(workflow="w", version="1", total=3)
    failed = event_data.document_failed(document_id="a", error="no", percentage=1.0)
    assert created == ("batch_created", ("w", "1", 3))
    assert failed == ("document_failed", ("a", "no", 1.0))


def test_an_event_with_a_mapping_has_a_hash() -> None:
    record = EventRecord(BatchId("batch"), 1, START, "batch_updated", b'[{"concurrency":3}]')
    event, later = decode_event(record), decode_event(record._replace(seq=2))
    assert len({event, later, decode_event(record)}) == 2
    assert hash(event) != hash(later)
    assert hash(event) != hash(decode_event(record._replace(batch_id=BatchId("other"))))


@pytest.mark.parametrize("stored", [[3, 0, 0, 0, 2, 1], [3, 0, 0, 0, 2, 1, 0, 7]], ids=["older", "newer"])
def test_counts_may_have_been_fewer_or_more(stored: list[int]) -> None:
    record = EventRecord(BatchId("batch"), 1, START, "batch_completed", json.dumps([stored]).encode())
    assert fields_of(decode_event(record)) == {"counts": Counts(total=3, succeeded=2, failed=1)}


# ---- decoded once, and remembered -------------------------------------------------------------------

records = st.builds(
    EventRecord,
    st.sampled_from([BatchId("a"), BatchId("b")]),
    st.integers(1, 2),
    st.sampled_from([START, START + 1]),
    st.just("document_started"),
    st.sampled_from([b'["one",1]', b'["one",2]', b'["two",1]']),
)


@given(st.lists(records, min_size=2, max_size=20))
@modest(100)
def test_a_decoded_event_is_never_that_of_another_record(stored: list[EventRecord]) -> None:
    for record in stored:
        event = decode_event(record)
        assert isinstance(event, DocumentStarted)
        assert event == decode_event(EventRecord(*record))
        assert (event.batch_id, event.seq, event.at) == (record.batch_id, record.seq, from_micros(record.at))
        assert [event.document_id, event.attempt] == json.loads(record.data)


# ---- packed by name ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not UnknownEvent], ids=lambda kind: kind.__name__)
def test_fields_are_packed_in_the_order_of_the_events_class(kind: type[Any]) -> None:
    tag: Any = next(field.default for field in dataclasses.fields(kind) if field.name == "tag")
    pack = getattr(event_data, tag)
    given_by_name: dict[str, object] = {name: f"the {name}" for name in inspect.signature(pack).parameters}
    if "counts" in given_by_name:
        given_by_name["counts"] = Counts(total=1, pending=2, running=3, waiting=4, succeeded=5, failed=6, cancelled=7)
    assert {parameter.kind for parameter in inspect.signature(pack).parameters.values()} <= {
        inspect.Parameter.KEYWORD_ONLY
    }
    packed_tag, fields = pack(**given_by_name)
    assert packed_tag == tag
    own = [field.name for field in dataclasses.fields(kind) if field.name not in ("batch_id", "seq", "at", "tag")]
    expected = [given_by_name[name] for name in own]
    assert list(fields) == [(1, 2, 3, 4, 5, 6, 7) if isinstance(value, Counts) else value for value in expected]
    assert len(given_by_name) == len(own)


def test_every_message_is_stored_without_what_utf8_cannot_hold() -> None:
    for _, fields in (
        event_data.document_retrying(document_id="a", failures=1, due=0, error=UNENCODABLE),
        event_data.document_failed(document_id="a", error=UNENCODABLE, percentage=0.0),
        event_data.resolution_failed(error=UNENCODABLE, due=None),
        event_data.batch_failed(counts=Counts(), error=UNENCODABLE),
        event_data.batch_cancelled(counts=Counts(), reason=UNENCODABLE),
    ):
        assert "half a ?" in fields
