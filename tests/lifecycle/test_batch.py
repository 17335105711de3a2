"""A batch in progress goes only forward, and raises nothing, whatever its documents have come to."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.properties import modest

from durable_batches import BatchConfig, BatchId, Counts
from durable_batches.lifecycle.batch import BatchInProgress
from durable_batches.lifecycle.batch_core import Definition, decode_core, encode_core, new_batch
from durable_batches.lifecycle.planning import new_execution
from durable_batches.lifecycle.records import BatchRecord, ExecutionRecord, NewDocument, WorkerId

STAGES: Final = ("one", "two", "three")
STATES: Final = ("pending", *STAGES)
BATCH: Final = BatchId("batch")


class Situation(NamedTuple):
    """A batch in a state, and its documents: how many are in no stage yet, and in each, and how many have ended."""

    state: str
    at: tuple[int, ...]
    succeeded: int
    resolver: bool

    def record(self) -> BatchRecord:
        definition = Definition(STAGES, self.resolver, BatchConfig())
        record = new_batch(
            batch_id=BATCH, workflow="w", version="1", submitter=WorkerId("me"), definition=definition, now=0
        )
        core = decode_core(record.core)
        core["at"] = list(self.at)
        running = sum(self.at)
        counts = Counts(total=running + self.succeeded, running=running, succeeded=self.succeeded)
        return replace(record, loader=None, state=self.state, counts=counts, core=encode_core(core))


def situations() -> st.SearchStrategy[Situation]:
    """Also those that come only of documents that are added while the others are further on."""
    at = [st.integers(0, 2)] * (len(STAGES) + 1)
    return st.builds(Situation, st.sampled_from(STATES), st.tuples(*at), st.integers(0, 2), st.booleans())


def document(mark: int) -> ExecutionRecord:
    return new_execution(BATCH, NewDocument(0, "a", b""), 0)._replace(status="running", mark=mark)


def in_stages(batch: BatchInProgress) -> list[int]:
    return [stage for stage, documents in enumerate(batch.stage_counts.stored, -1) if documents]


def is_forward(before: str, batch: BatchInProgress) -> bool:
    return batch.state not in STATES or STATES.index(batch.state) >= STATES.index(before)


@given(situations(), st.integers(0, len(STAGES) - 1), st.data())
@modest(300)
def test_a_document_that_enters_a_stage_moves_the_batch_only_forward(
    found: Situation, stage: int, data: st.DataObject
) -> None:
    batch = BatchInProgress(found.record(), 1)
    earlier = [mark for mark in in_stages(batch) if mark < stage]
    if earlier:
        batch.enter_stage(document(data.draw(st.sampled_from(earlier))), stage)
        assert is_forward(found.state, batch)
        slowest = max(min(in_stages(batch)), 0)
        if found.state != "pending":
            assert batch.state == STAGES[max(slowest, STAGES.index(found.state))]
        batch.closed()


@given(situations(), st.sampled_from(["succeeds", "fails", "is released"]), st.data())
@modest(300)
def test_a_document_that_leaves_moves_the_batch_only_forward(found: Situation, end: str, data: st.DataObject) -> None:
    batch = BatchInProgress(found.record(), 1)
    if in_stages(batch):
        execution = document(data.draw(st.sampled_from(in_stages(batch))))
        if end == "succeeds":
            batch.complete_document(execution, 0)
        elif end == "fails":
            batch.fail_document(execution, "no", "fp")
        else:
            batch.release_document(execution, "paused", 0)
        assert is_forward(found.state, batch)
        batch.closed()


@given(situations())
@modest(100)
def test_documents_that_come_later_do_not_draw_it_back(found: Situation) -> None:
    batch = BatchInProgress(found.record(), 1)
    batch.stage_counts.add(2)
    batch.total += 2
    batch.pending += 2
    batch.settle()
    assert batch.state == found.state
    batch.start_document(document(-1)._replace(status="pending"), 1)
    assert batch.state == ("one" if found.state == "pending" else found.state)
    batch.closed()


@pytest.mark.parametrize("state", STATES)
def test_without_an_unfinished_document_it_stays_where_it_is(state: str) -> None:
    batch = BatchInProgress(Situation(state, (0, 0, 0, 0), 3, resolver=True).record(), 1)
    batch._advance()
    assert (batch.state, batch.events) == (state, [])
