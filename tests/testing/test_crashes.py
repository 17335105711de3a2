"""The crash matrix: what survives passes at every point, and what does not is found."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from shutil import copy2

import pytest
from tests.support import NO_DELAY, ONCE, STAGES, Reading, Writing

from durable_batches import (
    BatchConfig,
    DuplicateDocumentError,
    MemoryStore,
    NonRetryableError,
    Results,
    RetryFailed,
    RetryPolicy,
    SQLiteStore,
    Store,
    current_activity,
    durable_activity,
    map_activity,
    workflow,
)
from durable_batches.errors import ConfigurationError
from durable_batches.lifecycle.planning import Writes
from durable_batches.lifecycle.records import Claim, ClaimRequest, ExecutionRecord, WorkerId
from durable_batches.stores.protocol import Expired
from durable_batches.testing import ManualClock, StoreMaker, survives_crashes
from durable_batches.testing.virtual.crashes import _BATCH as BATCH
from durable_batches.testing.virtual.crashes import _MISSES, _points

finds_in_memory = pytest.mark.parametrize(
    "store", ["memory", pytest.param("sqlite", marks=pytest.mark.soak)], indirect=True
)
"""What is found does not depend on the store. On SQLite it takes many files; so that is left to the soak."""


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path, migrated_file: Path) -> StoreMaker:
    numbers = count()

    def make(clock: ManualClock) -> Store:
        if request.param == "memory":
            return MemoryStore(clock=clock)
        return SQLiteStore(copy2(migrated_file, tmp_path / f"{next(numbers)}.db"), clock=clock)

    return make


@durable_activity(stage=Reading, retry=RetryPolicy(max_attempts=3, initial=timedelta(hours=1)))
async def read(number: int) -> list[int]:
    if number % 2 and current_activity().attempt == 1:
        raise ConnectionError("not at the first try")
    return [number, number + 1]


@durable_activity(stage=Writing, retry=ONCE)
def square(number: int) -> int:
    if number == 3:
        raise NonRetryableError("not this one")
    return number * number


async def add_up(results: Results[int]) -> int:
    return sum([result.value async for result in results])


@workflow(STAGES, resolver=add_up)
async def squares(number: int) -> int:
    return sum(await map_activity(square, await read(number)))


async def test_a_workflow_that_keeps_to_the_rules_survives(store: StoreMaker) -> None:
    config = BatchConfig(failure_policy=RetryFailed(max_attempts=2, backoff=timedelta(days=1)))
    report = await survives_crashes(squares, [1, 3, 4], store=store, config=config)
    assert report.writes > 10
    # Not exactly: how many facts go into one commit is a matter of when the threads have finished.
    assert report.points > report.writes


async def test_every_point_is_another_moment_of_the_batchs_life() -> None:
    """Here without threads, which end when they like: so every run takes the same writes, and no moment is missed."""
    points: list[tuple[int, str]] = []

    @durable_activity(stage=Writing)
    async def double(number: int) -> int:
        return 2 * number

    @workflow(STAGES, resolver=add_up)
    async def doubles(number: int) -> int:
        return sum(await map_activity(double, await read(number)))

    class Noted(MemoryStore):
        async def expire(self, *, dead: Collection[WorkerId] = ()) -> Expired:
            if dead:
                record = await self.batch(BATCH)
                points.append((-1 if record is None else record.seq, "none" if record is None else record.state))
            return await super().expire(dead=dead)

    report = await survives_crashes(doubles, [1, 2], store=lambda clock: Noted(clock=clock))
    states = {state for _, state in points}
    # Before it was there, while it was loaded, in each state, and when it had ended.
    assert states >= {"none", "pending", "reading", "writing", "resolving", "completed"}
    assert len(points) <= report.points
    assert len({seq for seq, _ in points}) > 8


async def test_these_many_points_are_spread_evenly() -> None:
    @workflow(STAGES)
    async def reading(number: int) -> int:
        return sum(await read(number))

    everywhere = await survives_crashes(reading, [1, 2])
    assert everywhere.points == 2 * everywhere.writes
    for limit in (1, 7):
        assert await survives_crashes(reading, [1, 2], limit=limit) == replace(everywhere, points=limit)
    assert list(_points(5, 1)) == [(3, "before")]
    assert list(_points(6, 3)) == [(2, "before"), (4, "after"), (6, "before")]
    assert list(_points(2, 3)) == [(1, "before"), (2, "after"), (2, "before")]
    assert list(_points(1, 3)) == [(1, "before"), (1, "after"), (2, "before")]
    with pytest.raises(ConfigurationError, match="limit must be 1"):
        await survives_crashes(reading, [2], limit=0)


async def test_prepare_comes_before_each_run_and_not_before_its_second_process() -> None:
    prepared: list[int] = []
    tries: list[int] = []

    @durable_activity(retry=RetryPolicy(max_attempts=3, initial=NO_DELAY))
    async def stumble(number: int) -> int:
        tries.append(number)
        if len(tries) < 3:
            raise ConnectionError("not yet")
        return number

    @workflow(STAGES)
    async def run(number: int) -> int:
        return await stumble(number)

    def prepare() -> None:
        prepared.append(1)
        tries.clear()

    report = await survives_crashes(run, [1], prepare=prepare)
    # Beside the undisturbed run, some at the end are over before the point where they were to be killed.
    assert report.points <= len(prepared) - 1 <= report.points + _MISSES


async def test_what_the_undisturbed_run_raises_is_raised() -> None:
    with pytest.raises(DuplicateDocumentError):
        await survives_crashes(squares, [1, 2], document_id=lambda _: "a")


async def test_the_log_has_only_what_the_undisturbed_run_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        await survives_crashes(squares, [3, 4])
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    assert not logging.getLogger("durable_batches").filters


# ---- workflows that do not -------------------------------------------------------------------------------------------


@finds_in_memory
async def test_other_calls_on_every_attempt_are_found(store: StoreMaker) -> None:
    numbers = count()

    @workflow(STAGES)
    async def restless(number: int) -> int:
        return len(await read(next(numbers) * 2))

    with pytest.raises(AssertionError, match=r"document '0' recorded 2 activities, and 1 without the crash"):
        await survives_crashes(restless, [1, 2], store=store)


@finds_in_memory
async def test_another_result_is_found_and_told(store: StoreMaker) -> None:
    processes = count()

    @workflow(STAGES)
    async def counting(number: int) -> int:
        await read(number)
        return next(processes)

    with pytest.raises(AssertionError) as failed:
        await survives_crashes(counting, [2], store=store)
    lines = str(failed.value).splitlines()
    assert lines[0].startswith("killed at write 1 (register), before it was applied, and started again")
    assert lines[1:] == ["  document '0': ('succeeded', 1); without the crash: ('succeeded', 0)"]
    await survives_crashes(counting, [2], store=store, comparing=lambda _: None, limit=10)


@finds_in_memory
async def test_another_resolution_is_found(store: StoreMaker) -> None:
    numbers = count()

    async def number_it(results: Results[int]) -> int:
        return next(numbers)

    @workflow(STAGES, resolver=number_it)
    async def run(number: int) -> int:
        return number

    with pytest.raises(AssertionError, match="the resolution: 1; without the crash: 0"):
        await survives_crashes(run, [2], store=store, limit=2)
    await survives_crashes(run, [2], store=store, limit=10, comparing_resolution=lambda number: number >= 0)


async def test_a_batch_that_does_not_end_is_found() -> None:
    class KeepsWhatTheDeadHeld(MemoryStore):
        def _release(self, gone: Collection[WorkerId], *, crashed: bool) -> Writes:
            if crashed:
                for worker in gone:
                    self._workers[worker].alive = False
                return Writes()
            return super()._release(gone, crashed=crashed)

    patience = timedelta(milliseconds=50)
    with pytest.raises(AssertionError, match=r"owned by .*, who is dead|does not end"):
        await survives_crashes(squares, [2], store=lambda clock: KeepsWhatTheDeadHeld(clock=clock), patience=patience)


# ---- stores that do not ----------------------------------------------------------------------------------------------


class ForgetsCheckpoints(MemoryStore):
    """Gives none to who takes over."""

    def _claimed(self, execution: ExecutionRecord, request: ClaimRequest) -> Claim:
        return super()._claimed(execution, request)._replace(checkpoints=(), more_checkpoints=False)


async def test_a_store_that_forgets_checkpoints_is_found() -> None:
    with pytest.raises(
        AssertionError, match="activity 'read' of document '0' was recorded before the crash, and ran again after it"
    ):
        await survives_crashes(squares, [2, 4], store=lambda clock: ForgetsCheckpoints(clock=clock))


async def test_a_store_that_is_not_new_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="new, empty store"):
        await survives_crashes(squares, [2], store=lambda clock: SQLiteStore(tmp_path / "one.db", clock=clock))
