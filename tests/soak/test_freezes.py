"""Processes that stand still past their lease, at random moments, and go on: they begin nothing, and write nothing."""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.processes.children import (
    CLOCK,
    Child,
    check_bill,
    check_calls,
    check_meanwhile,
    checker_of,
    children,
    is_alive,
    until,
    until_true,
)
from tests.processes.clocks import SharedClock
from tests.processes.databases import Database
from tests.processes.workload import Job, document_ids, tally_of

from durable_batches.testing.virtual.effects import Effect, EffectsLog

DOCUMENTS = 160
SHORT, A_DAY, AN_HOUR = 30.0, 86_400.0, 3_600.0


class Freeze(NamedTuple):
    """What a process did that stood still for longer than its lease."""

    refused: int
    """The facts that it tried to write in vain."""
    late: list[Effect]
    """The attempts of activities that it began before it had a lease again."""


@pytest.mark.parametrize("rounds", [100], indirect=True)
async def test_processes_that_were_stopped_past_their_lease_begin_and_write_nothing(
    tmp_path: Path, database: Database, chance: random.Random, rounds: int
) -> None:
    freezes = [await _freeze(tmp_path / str(number), database.another(), chance) for number in range(rounds)]
    assert [freeze.late for freeze in freezes if freeze.late] == []
    # Its heartbeat may find out before its journal.
    assert sum(freeze.refused > 0 for freeze in freezes) > rounds / 8


async def _freeze(folder: Path, database: Database, chance: random.Random) -> Freeze:
    """Stop one of two for longer than its lease, and wake it when the other one has taken over."""
    folder.mkdir()
    clock = SharedClock(folder / "clock")
    effects = EffectsLog(folder / "effects.log")
    checker = checker_of(effects)
    with children() as start:

        def begin(process: str, lease: float) -> Child:
            return start(
                Job(
                    process=process,
                    folder=str(folder),
                    store=database.place,
                    documents=DOCUMENTS,
                    concurrency=8,
                    max_in_flight=4,
                    pace=0.03,
                    lease=lease,
                    clock=str(clock.path),
                    seed=chance.randrange(1 << 32),
                )
            )

        zombie, other = begin("zombie", SHORT), begin("other", A_DAY)

        def works(child: Child, after: float = 0.0) -> bool:
            return any(effect.process == child.job.process and effect.at > after for effect in effects.read())

        await until(lambda: works(zombie) and works(other), "both to work")
        checker.acknowledged("batch", document_ids(DOCUMENTS))
        await asyncio.sleep(chance.uniform(0.0, 0.3))
        await _stop_between_transactions(database, zombie)
        first = zombie.worker
        clock.advance(AN_HOUR)
        async with database.open() as store:

            async def is_gone() -> bool:
                return not await is_alive(store, first)

            await until_true(is_gone, "the stopped process to be expired")
        taken_over_at = CLOCK.boot()
        await until(lambda: works(other, taken_over_at), "the other process to go on")
        await check_meanwhile(checker, database, fenced=["zombie"])
        woken_at = CLOCK.boot()
        zombie.go_on()
        for child in (zombie, other):
            assert (await child.result())["resolution"] == asdict(tally_of(range(DOCUMENTS)))
        check_calls(effects, DOCUMENTS)
        check_bill(effects, interrupted=["zombie"])
        async with database.open() as store:
            await checker.verify(store, finished=True, everyone_left=True, fenced=["zombie"])
        calls = zombie.marks("store.commit: called")
        late = {mark["number"] for mark in calls if mark["worker"] == first and mark["at"] > taken_over_at}
        made = {mark["number"] for mark in zombie.marks("store.commit: answered") if mark["worker"] == first}
        assert not late & made, "a worker wrote after it was expired"
        refused = [mark for mark in zombie.marks("store.commit: refused") if mark["worker"] == first]
        # What it runs under its next lease it has claimed by a commit of that.
        leased_at = min((mark["at"] for mark in calls if mark["worker"] != first), default=math.inf)
        return Freeze(
            sum(mark["facts"] for mark in refused if mark["error"].startswith("WorkerFencedError")),
            [
                effect
                for effect in effects.read()
                if effect.process == "zombie" and effect.phase == "start" and woken_at < effect.at < leased_at
            ],
        )


async def _stop_between_transactions(database: Database, child: Child) -> None:
    """SIGSTOP; not while it is within a transaction, which would hold up everybody, whatever we do."""
    while True:
        await child.stop()
        if database.is_writable():
            return
        child.go_on()


@pytest.mark.parametrize("rounds", [50], indirect=True)
async def test_many_processes_start_at_once_on_no_database_again_and_again(
    tmp_path: Path, database: Database, rounds: int
) -> None:
    for number in range(rounds):
        folder = tmp_path / f"start-{number}"
        folder.mkdir()
        place = database.another().place
        with children() as start:
            crowd = [
                start(Job(process=f"process-{index}", folder=str(folder), store=place, documents=16))
                for index in range(8)
            ]
            for child in crowd:
                assert (await child.result())["resolution"] == asdict(tally_of(range(16)))
                assert "locked" not in child.errors
