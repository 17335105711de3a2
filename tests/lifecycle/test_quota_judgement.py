"""Whether an account is empty or a document is refused for itself: what tells them apart, and how long it takes."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.lifecycle.test_quota import BATCH, ME, SECOND, a_world, at_the_next_look, pause_of, refused
from tests.lifecycle.world import START, World, identity

from durable_batches.lifecycle.batch_core import decode_core, quota_pause_of
from durable_batches.lifecycle.facts import ExecutionSucceeded, ProviderAnswered
from durable_batches.lifecycle.quota import JUDGES_AFTER, LONGEST_PAUSE, MOST_BEGINNINGS
from durable_batches.lifecycle.records import ExecutionRecord, Micros

HALF_A_DAY: Final[Micros] = 43_200 * SECOND
LOOKS: Final = 200


def answered(world: World, row: ExecutionRecord) -> None:
    world.commit(ME, ProviderAnswered(*identity(row)), ExecutionSucceeded(*identity(row), b""))


def statuses(world: World) -> list[str]:
    return [row.status for _, row in sorted(world.executions.items())]


def run(
    world: World, bad: Collection[int], *, empty: tuple[Micros, Micros] = (0, 0), until: Micros = HALF_A_DAY
) -> None:
    """Run a batch with documents whose own credentials are refused, and an account that is empty for a time."""
    for _ in range(LOOKS):
        record = world.batches[BATCH]
        if record.ended or world.now >= START + until:
            return
        for row in world.claim(ME).executions:
            if row.position in bad or empty[0] <= world.now - START < empty[1]:
                world.commit(ME, refused(row, "401"))
            else:
                answered(world, row)
        world.check()
        pause = quota_pause_of(world.batches[BATCH])
        world.now = world.now + SECOND if pause is None else max(pause["until"], world.now)
    raise AssertionError("it asks without a bound")


def test_the_last_document_is_judged_by_what_others_did_after_its_first_refusal() -> None:
    world = a_world(2, concurrency=1)
    (bad,) = world.claim(ME).executions
    world.commit(ME, refused(bad, "401"))
    answered(world, at_the_next_look(world))
    (bad,) = world.claim(ME).executions
    began = world.now
    world.commit(ME, refused(bad, "401"))
    times: list[Micros] = []
    while not world.batches[BATCH].ended:
        world.commit(ME, refused(at_the_next_look(world), "401"))
        times.append(world.now - began)
    # In the first hour somebody may fill an account that is empty after all: it counts nothing.
    assert times[:4] == [30 * SECOND, 90 * SECOND, 210 * SECOND, 450 * SECOND]
    assert len([time for time in times if time >= JUDGES_AFTER]) == MOST_BEGINNINGS - 1
    assert times[-1] < JUDGES_AFTER + MOST_BEGINNINGS * LONGEST_PAUSE
    assert statuses(world) == ["failed", "succeeded"]
    assert world.batches[BATCH].state == "completed"
    assert "refused" not in decode_core(world.batches[BATCH].core)


def test_a_last_document_that_was_never_refused_before_is_looked_for_as_long_as_the_patience_lasts() -> None:
    """Its own credentials look like an account that became empty with it."""
    world = a_world(2, concurrency=1, quota_patience=timedelta(hours=2))
    (good,) = world.claim(ME).executions
    answered(world, good)
    (last,) = world.claim(ME).executions
    world.commit(ME, refused(last))
    while world.now < START + 6_600 * SECOND:
        world.commit(ME, refused(at_the_next_look(world)))
    answered(world, at_the_next_look(world))
    assert statuses(world) == ["succeeded", "succeeded"]


def test_while_a_document_is_left_that_could_tell_looks_in_vain_count_against_nobody() -> None:
    world = a_world(3, concurrency=1)
    (bad,) = world.claim(ME).executions
    world.commit(ME, refused(bad))
    answered(world, at_the_next_look(world))
    (bad,) = world.claim(ME).executions
    world.commit(ME, refused(bad))
    assert "judges" not in pause_of(world)
    # The account is empty now: the document that is left looks, and the refused one in its turn.
    for _ in range(20):
        world.commit(ME, refused(at_the_next_look(world)))
    assert statuses(world)[0] == "pending"


def test_a_document_that_is_judged_and_served_after_all_is_acquitted() -> None:
    world = a_world(2, concurrency=1)
    (row,) = world.claim(ME).executions
    world.commit(ME, refused(row))
    answered(world, at_the_next_look(world))
    (row,) = world.claim(ME).executions
    world.commit(ME, refused(row))
    assert "judges" in pause_of(world)
    row = at_the_next_look(world)
    world.commit(ME, ProviderAnswered(*identity(row)))
    assert "refused" not in decode_core(world.batches[BATCH].core)
    world.commit(ME, refused(row))
    assert "judges" not in pause_of(world)
    world.check()


@settings(max_examples=25)
@given(
    documents=st.integers(1, 6),
    concurrency=st.integers(1, 3),
    start=st.integers(0, 60),
    length=st.integers(0, 5_000),
)
def test_an_account_that_is_empty_once_fails_nobody(documents: int, concurrency: int, start: int, length: int) -> None:
    world = a_world(documents, concurrency=concurrency, quota_patience=None)
    run(world, (), empty=(start * SECOND, (start + length) * SECOND))
    assert statuses(world) == ["succeeded"] * documents


@settings(max_examples=25)
@given(bad=st.sets(st.integers(0, 5)), documents=st.integers(1, 6), concurrency=st.integers(1, 3))
def test_documents_that_are_refused_for_themselves_fail_alone(bad: set[int], documents: int, concurrency: int) -> None:
    world = a_world(documents, concurrency=concurrency, quota_patience=None)
    run(world, bad)
    found = statuses(world)
    assert all(found[position] == "succeeded" for position in range(documents) if position not in bad)
    left = [position for position, status in enumerate(found) if status == "pending"]
    if not left:
        return
    # Of those that are left, one at least was never refused while others could show that the account is not empty.
    assert decode_core(world.batches[BATCH].core).get("refused", {}).keys() != set(map(str, left)) or (
        "judges" not in pause_of(world)
    )
