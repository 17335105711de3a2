"""Failed documents are counted in groups as they fail: each once, in a bounded number of groups of bounded size."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.lifecycle.world import World, identity, succeeded
from tests.properties import modest

from durable_batches import AbortAll, BatchConfig, RetryFailed
from durable_batches.lifecycle import failure_groups
from durable_batches.lifecycle.batch_core import decode_core
from durable_batches.lifecycle.commands import Cancel
from durable_batches.lifecycle.events import DocumentFailed, decode_event
from durable_batches.lifecycle.facts import ExecutionFailed, StageEntered
from durable_batches.lifecycle.failure_groups import EXAMPLES_KEPT, MOST_GROUPS, REST, added, examples_of
from durable_batches.lifecycle.fingerprints import fingerprint_of
from durable_batches.lifecycle.records import ExecutionRecord, FailureRecord, WorkerId

ME = WorkerId("me")
SECOND = 1_000_000


def failed(execution: ExecutionRecord, error: str = "no", error_type: str = "ValueError") -> ExecutionFailed:
    return ExecutionFailed(*identity(execution), b"", error, error_type=error_type, activity="ask")


def test_a_failure_is_counted_in_its_group_with_its_example() -> None:
    world = World(level=2)
    batch_id = world.batch("batch", 4)
    world.claim(ME)
    one, two, three, four = world.held(ME)
    world.commit(ME, StageEntered(*identity(two), 1), failed(two, "no 2\0"), failed(one, "no 1"))
    world.now += SECOND
    world.commit(ME, failed(three, "no 3"), failed(four, "other"))
    fingerprint = fingerprint_of("ValueError", "ask", "no 7")
    group = world.failures[batch_id, 1, fingerprint_of("ValueError", "ask", "no 1")]
    assert fingerprint == group.fingerprint
    assert (group.error_type, group.activity, group.message, group.stage) == ("ValueError", "ask", "no 1", None)
    world.check()


def test_groups_and_executions_and_events_name_the_same_fingerprint() -> None:
    world = World(level=2)
    batch_id = world.batch("batch", 3)
    world.claim(ME)
    world.commit(ME, *[failed(row, f"no answer after {row.position} s") for row in world.held(ME)])
    ((_, _, fingerprint), group) = next(iter(world.failures.items()))
    assert (group.documents, group.first_position, len(world.failures)) == (3, 0, 1)
    assert {row.fingerprint for row in world.documents(batch_id)} == {fingerprint}
    events = [event for event in map(decode_event, world.events[batch_id]) if isinstance(event, DocumentFailed)]
    assert [event.fingerprint for event in events] == [fingerprint] * 3
    assert [example.error for example in examples_of(group)] == [f"no answer after {number} s" for number in range(3)]
    world.check()


def test_what_no_database_stores_as_text_is_replaced_but_in_examples() -> None:
    world = World(level=2)
    world.batch("batch", 1)
    world.claim(ME)
    world.commit(ME, failed(world.held(ME)[0], "half a \ud83d\0"))
    (group,) = world.failures.values()
    assert group.message == "half a ?\ufffd"
    assert [example.error for example in examples_of(group)] == ["half a \ud83d\0"]


@pytest.mark.parametrize("size", [1, 3])
def test_the_group_beyond_the_bound_is_that_of_the_rest(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(failure_groups, "MOST_GROUPS", size)
    world = World(level=2)
    batch_id = world.batch("batch", 8)
    words = "alpha beta gamma delta alpha epsilon gamma delta".split()
    while world.claim(ME).executions:
        world.commit(ME, *[failed(row, words[row.position]) for row in world.held(ME)])
        world.check()
    counts = {record.message: record.documents for record in world.failures.values()}
    assert counts == ({"alpha": 2, "": 6} if size == 1 else {"alpha": 2, "beta": 1, "gamma": 2, "": 3})
    assert world.failures[batch_id, 1, REST].error_type == ""


def test_two_hundred_groups_and_the_rest() -> None:
    world = World(level=2)
    word = "".join
    batch_id = world.batch("batch", MOST_GROUPS + 5)
    while world.claim(ME).executions:
        world.commit(
            ME, *[failed(row, word(chr(97 + int(digit)) for digit in f"{row.position}")) for row in world.held(ME)]
        )
    world.check()
    assert len(world.failures) == MOST_GROUPS + 1
    assert world.failures[batch_id, 1, REST].documents == 5


def test_a_new_run_counts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure_groups, "MOST_GROUPS", 1)
    world = World(level=2)
    batch_id = world.batch("batch", 3)
    world.claim(ME, 2)
    world.commit(ME, *[failed(row, word) for row, word in zip(world.held(ME), ("alpha", "beta"), strict=True)])
    world.batches[batch_id] = replace(world.batches[batch_id], run=2)
    world.executions[batch_id, 2] = world.executions[batch_id, 2]._replace(run=2)
    world.claim(ME)
    world.commit(ME, failed(world.held(ME)[0], "beta"))
    found = {(run, group.message): group.documents for (_, run, _), group in world.failures.items()}
    assert found == {(1, "alpha"): 1, (1, ""): 1, (2, "beta"): 1}
    kept = decode_core(world.batches[batch_id].core).get("failure_groups")
    assert kept is not None
    assert (kept["run"], len(kept["fingerprints"])) == (2, 1)


def test_what_is_retried_or_cancelled_has_not_failed() -> None:
    world = World(level=2)
    policy = RetryFailed(max_attempts=2, backoff=timedelta(0), then=AbortAll())
    batch_id = world.batch("batch", 3, config=BatchConfig(failure_policy=policy))
    world.claim(ME)
    first, second, third = world.held(ME)
    assert not world.commit(ME, failed(first)).failures
    world.claim(ME)
    again = world.held(ME)[0]
    assert again.document_id == first.document_id
    assert len(world.commit(ME, failed(again), failed(second)).failures) == 1
    assert world.batches[batch_id].ended
    assert not world.commit(ME, failed(third)).failures
    assert [group.documents for group in world.failures.values()] == [1]
    other = world.batch("other", 1)
    world.claim(ME)
    world.command(other, Cancel("request", ""))
    assert not world.commit(ME, failed(world.held(ME)[0])).failures
    assert len(world.failures) == 1
    world.check()


def test_a_crash_loop_is_counted() -> None:
    world = World(level=2)
    batch_id = world.batch("batch", 1, config=BatchConfig(max_crashes=2))
    for _ in range(3):
        world.claim(ME)
        world.release([ME], "crash")
        world.now += 100 * SECOND
    (group,) = world.failures.values()
    assert (group.error_type, group.activity, group.documents) == ("CrashLoopError", None, 1)
    assert world.documents(batch_id)[0].fingerprint == group.fingerprint
    world.check()


def test_the_failure_of_a_resolver_is_no_documents() -> None:
    world = World(level=2)
    batch_id = world.batch("batch", 1, resolver=True)
    world.claim(ME)
    world.commit(ME, *succeeded(world.held(ME)))
    world.claim(ME)
    assert not world.commit(ME, failed(world.held(ME)[0])).failures
    assert world.batches[batch_id].state == "failed"
    assert "failure_groups" not in decode_core(world.batches[batch_id].core)
    world.check()


def test_where_nothing_fails_nothing_is_written_for_it() -> None:
    world = World(level=2)
    batch_id = world.batch("batch", 2)
    world.claim(ME)
    assert not world.commit(ME, *succeeded(world.held(ME))).failures
    assert "failure_groups" not in decode_core(world.batches[batch_id].core)


def test_a_store_of_level_1_counts_nothing() -> None:
    world = World(level=1)
    batch_id = world.batch("batch", 1)
    world.claim(ME)
    assert not world.commit(ME, failed(world.held(ME)[0])).failures
    assert "failure_groups" not in decode_core(world.batches[batch_id].core)
    assert world.documents(batch_id)[0].fingerprint is not None
    world.check()


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 9)), min_size=1, max_size=20))
@modest(50)
def test_a_group_is_of_bounded_size_and_loses_no_count(failures: list[tuple[int, int]]) -> None:
    def record(position: int, at: int) -> FailureRecord:
        execution = World(level=2).load("batch", 0)
        return failure_groups.failure_record(
            ExecutionRecord(execution, position, f"d{position}", 1, "failed", -1, 1, 1, 0, False, None, None, at),
            "fp",
            error_type="ValueError",
            activity=None,
            stage=None,
            error="no",
            at=at,
        )

    group = record(*failures[0])
    for failure in failures[1:]:
        group = added(group, record(*failure))
    assert group.documents == len(failures)
    assert group.first_position == min(position for position, _ in failures)
    assert (group.first_at, group.last_at) == (failures[0][1], max(at for _, at in failures))
    kept = [position for position, _ in failures[:EXAMPLES_KEPT]]
    assert [example.position for example in examples_of(group)] == sorted(kept)
    assert len(group.examples.splitlines()) == len(kept)
