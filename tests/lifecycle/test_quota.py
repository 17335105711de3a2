"""A pause for a provider's quota: by itself, and with everything that documents and workers can do meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest
from tests.lifecycle.world import START, World, identity, machine_of

from durable_batches.lifecycle.batch import BatchInProgress
from durable_batches.lifecycle.batch_core import decode_core, definition_of, quota_pause_of
from durable_batches.lifecycle.commands import Cancel
from durable_batches.lifecycle.config import BatchConfig
from durable_batches.lifecycle.events import decode_event
from durable_batches.lifecycle.facts import (
    ExecutionFailed,
    ExecutionReleased,
    ExecutionSucceeded,
    Fact,
    ProviderAnswered,
)
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.lifecycle.progress import Pause, snapshot_of
from durable_batches.lifecycle.quota import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    MOST_BEGINNINGS,
    QuotaPause,
    Refusal,
    first_pause,
    has_run_out,
    next_pause,
)
from durable_batches.lifecycle.records import RESOLVER_POSITION, ExecutionRecord, Micros, WorkerId
from durable_batches.lifecycle.states import BatchId

ME = WorkerId("me")
OTHER = WorkerId("other")
BATCH = BatchId("batch")
SECOND: Micros = 1_000_000
HOUR: Micros = 3_600 * SECOND


# ---- how long --------------------------------------------------------------------------------------------------------


def pauses(*, retry_after: Micros | None = None, patience: timedelta | None = None, looks: int = 7) -> list[int]:
    """Seconds of one pause after another, each look in vain."""
    refusal = Refusal("ask", "no credit", retry_after)
    now = START
    pause = first_pause(refusal, now, 0, patience)
    found = [(pause["until"] - now) // SECOND]
    for _ in range(looks):
        now = pause["until"]
        pause = next_pause(pause, refusal, now, patience)
        assert pause["since"] == START
        found.append((pause["until"] - now) // SECOND)
    return found


def test_each_look_is_twice_as_far_as_the_one_before_it() -> None:
    assert pauses() == [30, 60, 120, 240, 480, 600, 600, 600]
    assert pauses(looks=100)[-1] == 600


def test_a_delay_that_the_provider_asks_for_is_obeyed_up_to_the_longest() -> None:
    assert pauses(retry_after=90 * SECOND) == [90, 90, 120, 240, 480, 600, 600, 600]
    assert pauses(retry_after=24 * HOUR) == [600] * 8


def test_no_pause_is_longer_than_the_patience() -> None:
    assert pauses(patience=timedelta(seconds=100), looks=3) == [30, 60, 10, 0]
    pause = first_pause(Refusal("ask", ""), START, 0, timedelta(seconds=100))
    assert [has_run_out(pause, START + after * SECOND, timedelta(seconds=100)) for after in (99, 100)] == [False, True]
    assert not has_run_out(pause, START + 10**18, None)


# ---- what follows from a refusal ------------------------------------------------------------------------------------


def a_world(documents: int = 3, *, level: int = 2, resolver: bool = False, **options: object) -> World:
    world = World(level=level)
    config = BatchConfig.model_validate({"concurrency": 2, **options})
    world.batch(BATCH, documents, stages=1, resolver=resolver, config=config)
    return world


def refused(row: ExecutionRecord, note: str = "no credit") -> ExecutionReleased:
    return ExecutionReleased(*identity(row), "quota", None, note, "ask")


def pause_of(world: World) -> QuotaPause:
    pause = quota_pause_of(world.batches[BATCH])
    assert pause is not None
    return pause


def at_the_next_look(world: World) -> ExecutionRecord:
    """Wait for the end of the pause, and claim."""
    world.now = pause_of(world)["until"]
    (row,) = world.claim(ME).executions
    world.check()
    return row


def tags(world: World) -> list[str]:
    return [event.tag for event in world.events[BATCH]]


@pytest.mark.parametrize("level", [1, 2])
def test_nothing_is_claimed_until_the_look_and_then_one(level: int) -> None:
    world = a_world(level=level)
    first, second = world.claim(ME).executions
    world.commit(ME, refused(first))
    world.check()
    pause = pause_of(world)
    assert pause["until"] == world.now + FIRST_PAUSE
    world.commit(ME, ExecutionReleased(*identity(second), "paused"))
    for moment in (world.now, pause["until"] - 1):
        world.now = moment
        assert not world.claim(ME).executions
        world.check()
    world.now = pause["until"]
    assert len(world.claim(ME).executions) == 1
    assert not world.claim(OTHER).executions
    world.check()


def test_a_look_is_never_the_document_that_was_refused_while_there_are_others() -> None:
    world = a_world(4)
    first, second = world.claim(ME).executions
    world.commit(ME, refused(first), refused(second))
    looked: list[int] = []
    for _ in range(6):
        row = at_the_next_look(world)
        looked.append(row.position)
        world.commit(ME, refused(row))
    assert looked == [2, 3, 0, 1, 2, 3]


def test_refusals_of_what_ran_already_change_nothing() -> None:
    world = a_world()
    first, second = world.claim(ME).executions
    world.commit(ME, refused(first))
    before = pause_of(world)
    world.now += 5 * SECOND
    world.commit(ME, refused(second, "still no credit"))
    assert pause_of(world) == before
    assert tags(world).count("batch_paused") == 1
    world.check()


def test_each_look_in_vain_sets_the_pause_anew() -> None:
    world = a_world()
    world.commit(ME, *[refused(row) for row in world.claim(ME).executions])
    lengths = [(pause_of(world)["until"] - world.now) // SECOND]
    for _ in range(3):
        row = at_the_next_look(world)
        world.commit(ME, refused(row, "not yet"))
        world.check()
        lengths.append((pause_of(world)["until"] - world.now) // SECOND)
    assert lengths == [30, 60, 120, 240]
    assert tags(world).count("batch_paused") == 4
    assert pause_of(world)["note"] == "not yet"


@pytest.mark.parametrize("level", [1, 2])
def test_an_answer_to_the_look_ends_the_pause(level: int) -> None:
    world = a_world(level=level)
    first, second = world.claim(ME).executions
    world.commit(ME, refused(first))
    row = at_the_next_look(world)
    # What ran when the batch was paused began before the account was empty.
    world.commit(ME, ProviderAnswered(*identity(second)))
    assert quota_pause_of(world.batches[BATCH]) is not None
    world.commit(ME, ExecutionReleased(*identity(second), "paused"))
    world.commit(ME, ProviderAnswered(*identity(row)))
    world.check()
    assert quota_pause_of(world.batches[BATCH]) is None
    assert world.batches[BATCH].free == 1
    assert len(world.claim(ME).executions) == 1
    assert decode_event(world.events[BATCH][-2]).tag == "batch_resumed"


def test_a_document_that_succeeds_as_the_look_ends_the_pause() -> None:
    world = a_world()
    first, second = world.claim(ME).executions
    world.commit(ME, refused(first))
    row = at_the_next_look(world)
    world.commit(ME, ExecutionSucceeded(*identity(second), b""))
    assert quota_pause_of(world.batches[BATCH]) is not None
    world.commit(ME, ExecutionSucceeded(*identity(row), b""))
    assert quota_pause_of(world.batches[BATCH]) is None


@pytest.mark.parametrize("end", ["failed", "shutdown", "crash"])
def test_a_look_without_an_answer_is_followed_by_another(end: str) -> None:
    world = a_world()
    world.commit(ME, *[refused(row) for row in world.claim(ME).executions])
    row = at_the_next_look(world)
    if end == "failed":
        world.commit(ME, ExecutionFailed(*identity(row), b"", "no"))
    else:
        world.release([ME], "crash" if end == "crash" else "shutdown")
    world.check()
    assert len(world.claim(OTHER).executions) == 1
    world.check()


def test_the_resolver_is_refused_and_looks_like_a_document() -> None:
    world = a_world(1, resolver=True)
    (row,) = world.claim(ME).executions
    world.commit(ME, ExecutionSucceeded(*identity(row), b""))
    (resolver,) = world.claim(ME).executions
    assert resolver.position == RESOLVER_POSITION
    world.commit(ME, refused(resolver))
    world.check()
    assert not world.claim(ME).executions
    resolver = at_the_next_look(world)
    world.commit(ME, ProviderAnswered(*identity(resolver)), ExecutionSucceeded(*identity(resolver), b""))
    world.check()
    assert world.batches[BATCH].state == "completed"
    assert [tag for tag in tags(world) if "resum" in tag or "paus" in tag] == ["batch_paused", "batch_resumed"]


@pytest.mark.parametrize("at", ["look", "last look"])
def test_a_batch_fails_when_a_look_finds_the_patience_over(at: str) -> None:
    world = a_world(quota_patience=timedelta(seconds=100))
    world.commit(ME, *[refused(row) for row in world.claim(ME).executions])
    row = at_the_next_look(world)
    if at == "look":
        world.now += 80 * SECOND
        world.commit(ME, refused(row, "nothing left"))
    else:
        world.commit(ME, refused(row, "nothing left"))
        world.now = pause_of(world)["until"]
        world.commit(ME, refused(at_the_next_look(world), "nothing left"))
        assert pause_of(world)["until"] == pause_of(world)["since"] + 100 * SECOND
        world.commit(ME, refused(at_the_next_look(world), "nothing left"))
    world.check()
    record = world.batches[BATCH]
    assert record.state == "failed"
    assert decode_core(record.core)["error"] == "no call succeeded for 0:01:40: nothing left"


def test_a_cancelled_batch_and_one_whose_deadline_has_passed_are_not_paused_any_more() -> None:
    cancelled, late = a_world(), a_world(deadline=timedelta(minutes=10))
    for world in (cancelled, late):
        world.commit(ME, *[refused(row) for row in world.claim(ME).executions])
    assert cancelled.command(BATCH, Cancel("request", "enough")).applied
    late.now += 600 * SECOND
    late.claim(ME)
    for world, state in ((cancelled, "cancelled"), (late, "failed")):
        world.check()
        assert world.batches[BATCH].state == state
        assert quota_pause_of(world.batches[BATCH]) is None
        assert world.batches[BATCH].needs == 0


def test_a_document_that_is_refused_for_itself_fails() -> None:
    world = a_world(20, concurrency=1)
    began = 0
    while True:
        (row,) = world.claim(ME).executions
        if row.position != 0:
            world.commit(ME, ExecutionSucceeded(*identity(row), b""))
            continue
        world.commit(ME, refused(row, "401: log in"))
        world.check()
        if world.executions[BATCH, 0].status == "failed":
            break
        began += 1
        look = at_the_next_look(world)
        assert look.position != 0
        world.commit(ME, ProviderAnswered(*identity(look)), ExecutionSucceeded(*identity(look), b""))
    assert began == MOST_BEGINNINGS
    assert quota_pause_of(world.batches[BATCH]) is None
    assert "refused" not in decode_core(world.batches[BATCH].core)


# ---- beside older versions -------------------------------------------------------------------------------------------


def test_a_paused_batch_needs_a_library_that_knows_it() -> None:
    world = a_world()
    first, second = world.claim(ME).executions
    assert world.batches[BATCH].needs == 0
    world.commit(ME, refused(first))
    assert world.batches[BATCH].needs == 1
    row = at_the_next_look(world)
    world.commit(ME, ProviderAnswered(*identity(row)))
    assert world.batches[BATCH].needs == 0
    assert second.owner == ME


def test_what_an_older_worker_writes_of_a_paused_batch_is_put_right_by_the_next_claim() -> None:
    world = a_world()
    first, _ = world.claim(ME).executions
    world.commit(ME, refused(first))
    # It computes the open slots without the pause.
    world.batches[BATCH] = replace(world.batches[BATCH], free=1, next_due=None)
    assert not world.claim(OTHER).executions
    world.check()
    assert world.batches[BATCH].next_due == pause_of(world)["until"]


def test_options_of_later_versions_are_stored_apart() -> None:
    for patience in (timedelta(days=1), timedelta(hours=1), None):
        record = a_world(quota_patience=patience).batches[BATCH]
        assert definition_of(record).config.quota_patience == patience
        definition = decode_core(record.core)["definition"]
        assert ("later" in definition) == (patience != timedelta(days=1))
        assert "quota_patience" not in definition.partition('"config"')[2].partition('"later"')[0]


def test_a_snapshot_shows_the_pause() -> None:
    world = a_world()
    world.commit(ME, *[refused(row) for row in world.claim(ME).executions])
    record = world.batches[BATCH]
    snapshot = snapshot_of(record, machine_of(record), world.now)
    assert snapshot.paused
    until = from_micros(world.now + FIRST_PAUSE)
    assert snapshot.pauses == (Pause(reason="quota", since=from_micros(world.now), until=until, note="no credit"),)
    assert BatchInProgress(record, world.now).open_slots == 0


# ---- everything that can happen --------------------------------------------------------------------------------------

MOST_STATES = 20_000


def steps(world: World) -> Iterator[Callable[[World], object]]:
    """What can happen next."""
    yield partial(claimed, 1)
    yield partial(claimed, 2)
    for row in world.held(ME):
        target = identity(row)
        facts: list[Fact] = [
            ExecutionSucceeded(*target, b""),
            ExecutionReleased(*target, "paused"),
            refused(row),
            ProviderAnswered(*target),
        ]
        for fact in facts:
            yield partial(_report, fact)
    if world.held(ME) and not any(row.crashes for row in world.executions.values()):
        yield lambda other: other.release([ME], "crash")
    pause = quota_pause_of(world.batches[BATCH])
    if pause is not None and pause["until"] > world.now:
        for moment in (pause["until"] - 1, pause["until"]):
            yield partial(_wait, moment)


def claimed(limit: int, world: World) -> None:
    pause = quota_pause_of(world.batches[BATCH])
    executions = world.claim(ME, limit).executions
    if pause is not None:
        assert not executions or pause["until"] <= world.now, "it asked too soon"
        assert len(executions) + ("look" in pause) <= 1, "two look at once"


def _report(fact: Fact, world: World) -> None:
    before = quota_pause_of(world.batches[BATCH])
    row = world.executions[fact.batch_id, fact.position]
    world.commit(ME, fact)
    after = quota_pause_of(world.batches[BATCH])
    looks = before is not None and tuple(before.get("look", ())) == (row.position, row.attempt)
    if before is not None and not looks:
        assert after == before or world.batches[BATCH].ended, "what does not look changes the pause"


def _wait(moment: Micros, world: World) -> None:
    world.now = max(world.now, moment)


def state(world: World) -> str:
    """What two worlds have to have in common to go on alike: times count from now, and long pauses are alike."""
    record = world.batches[BATCH]
    pause = quota_pause_of(record)
    dues = sorted((row.due, row.position) for row in world.executions.values() if row.due)
    seen = (
        record.state,
        record.free,
        None if record.next_due is None else max(record.next_due - world.now, 0),
        None
        if pause is None
        else (max(pause["until"] - world.now, 0), min(pause["looks"], 2), pause.get("look", [None])[0]),
        [(row.status, row.crashes, row.alone, row.owner) for row in world.executions.values()],
        [position for _, position in dues],
        decode_core(record.core).get("refused"),
    )
    return repr(seen)


@pytest.mark.parametrize(("level", "resolver"), [(1, False), (2, True), pytest.param(2, False, marks=pytest.mark.soak)])
def test_whatever_happens_one_at_a_time_looks_and_nothing_is_forgotten(level: int, resolver: bool) -> None:
    world = a_world(2, level=level, resolver=resolver, quota_patience=None, max_crashes=3)
    seen = {state(world)}
    left = deque([world])
    paused = 0
    while left:
        world = left.popleft()
        for step in steps(world):
            after = world.copy()
            step(after)
            if _looks(after) > 2:
                continue
            key = state(after)
            if key in seen:
                continue
            seen.add(key)
            after.check()
            paused += quota_pause_of(after.batches[BATCH]) is not None
            goes_on(after)
            if not after.batches[BATCH].ended:
                left.append(after)
        assert len(seen) < MOST_STATES
    assert paused > 100


def _looks(world: World) -> int:
    """How often the provider was asked in vain in a row, and how often it failed at all: both bounded here."""
    pause = quota_pause_of(world.batches[BATCH])
    began = sum(decode_core(world.batches[BATCH].core).get("refused", {}).values())
    attempts = max(row.attempt for row in world.executions.values())
    return max(0 if pause is None else pause["looks"], began, attempts - 3)


def goes_on(world: World) -> None:
    """When its pause is over, a batch of which nothing runs gives a worker something, and comes to its end."""
    later = world.copy()
    later.release([ME], "shutdown")
    last = WorkerId("last")
    for _ in range(20):
        if later.batches[BATCH].ended:
            return
        pause = quota_pause_of(later.batches[BATCH])
        later.now = max(later.now + 1, 0 if pause is None else pause["until"])
        later.claim(last)
        assert later.held(last), "nothing is found when the pause is over"
        later.commit(last, *[ExecutionSucceeded(*identity(row), b"") for row in later.held(last)])
    raise AssertionError("the batch does not come to its end")


def test_the_longest_pause_is_what_the_documentation_says() -> None:
    assert LONGEST_PAUSE == 600 * SECOND
