"""kill -9 at random moments: nothing that was acknowledged is lost, nothing that was recorded is paid for again."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from tests.processes.children import (
    CLOCK,
    Child,
    Start,
    check_bill,
    check_calls,
    check_meanwhile,
    checker_of,
    children,
    until,
)
from tests.processes.databases import Database, PostgresDatabase, SQLiteDatabase
from tests.processes.workload import CALLS_AT_ONCE, Job, document_ids, tally_of

from durable_batches import BatchId
from durable_batches.lifecycle.records import RESOLVER_POSITION
from durable_batches.stores.protocol import Store
from durable_batches.testing.virtual.effects import EffectsLog

DOCUMENTS = 40
CONCURRENCY = 8
Moment = Literal["opening", "working", "resolving", "leaving"]

_WORKING: Sequence[Moment] = ("working",) * 10

KILLS_A_CAMPAIGN: Mapping[type[Database], int] = {SQLiteDatabase: 52, PostgresDatabase: 26}


@dataclass
class Kills:
    """What the kills of a campaign hit."""

    total: int = 0
    batches: int = 0
    while_held: int = 0
    within_commit: int = 0
    applied_without_reply: int = 0
    """Of those within a commit: the file had it already, the process never heard."""
    during_resolution: int = 0
    during_drain: int = 0
    before_sealed: int = 0
    runs: int = 0
    repeated: int = 0
    in_flight: int = 0
    resumed_after: list[float] = field(default_factory=list[float])
    """Seconds from when a process opened a batch that another had left to the first activity that it began."""

    def add(self, other: Kills) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def __str__(self) -> str:
        return (
            f"{self.total} kills over {self.batches} batches: {self.while_held} while work was held, "
            f"{self.within_commit} within a commit ({self.applied_without_reply} of them applied, unanswered), "
            f"{self.during_resolution} during the resolution, {self.during_drain} during a drain, "
            f"{self.before_sealed} before the batch was sealed; "
            f"{self.runs} runs of activities, {self.repeated} of them repetitions, {self.in_flight} in flight at "
            f"the kills; first activity {statistics.median(self.resumed_after) * 1000:.0f} ms after the start "
            f"(median; longest {max(self.resumed_after) * 1000:.0f} ms)"
        )


class Campaign:
    """Batch after batch in one database, the processes that run them killed again and again."""

    def __init__(self, folder: Path, database: Database, chance: random.Random, start: Start) -> None:
        self.kills = Kills()
        self._folder = folder
        self._database = database
        self._random = chance
        self._start = start
        self._effects = EffectsLog(folder / "effects.log")
        self._checker = checker_of(self._effects)
        self._processes = 0
        self._killed: set[str] = set()
        self._moments: list[Moment] = []

    async def run(self, kills: int) -> Kills:
        while self.kills.total < kills:
            await self._run_batch(f"batch-{self.kills.batches}", kills)
            self.kills.batches += 1
        stats = self._checker.stats
        self.kills.runs, self.kills.repeated, self.kills.in_flight = stats.runs, stats.repeated, stats.in_flight
        return self.kills

    async def _run_batch(self, batch_id: str, kills: int) -> None:
        """Start, kill, look, start again, until a process survives to the end of the batch."""
        seen = 0
        while True:
            self._processes += 1
            child = self._start(
                Job(
                    process=f"process-{self._processes}",
                    folder=str(self._folder),
                    store=self._database.place,
                    batch_id=batch_id,
                    documents=DOCUMENTS,
                    concurrency=CONCURRENCY,
                    after=seen,
                    seed=self._random.randrange(1 << 32),
                )
            )
            if self.kills.total < kills:
                await self._wait_for_moment(child, self._next_moment(first=seen == 0))
                if child.kill():
                    self.kills.total += 1
                    self._killed.add(child.job.process)
                    await self._look_after_kill(child)
                    seen = _seen(child, after=seen)
                    continue
            if (await child.result())["state"] == "left":
                # It was told to, and was faster than the kill.
                await self._check_left(child)
                seen = _seen(child, after=seen)
                continue
            await self._look_at_end(child)
            assert _seen(child, after=seen) == await self._last_event(batch_id)
            return

    async def _wait_for_moment(self, child: Child, moment: Moment) -> None:
        match moment:
            case "opening":
                # The file is opened, the batch submitted or found, the dead one's work taken over.
                await self._until(child, lambda: bool(child.marks("opening")))
                await self._pause(child, 0.05)
            case "working":
                await self._until(child, lambda: self._works(child))
                await self._pause(child, 0.12)
            case "resolving":
                await self._until(child, lambda: self._works(child, resolving=True))
                await self._pause(child, 0.02)
            case "leaving":
                await self._until(child, lambda: self._works(child))
                await self._pause(child, 0.05)
                child.send(signal.SIGTERM)
                await self._pause(child, 0.02)

    def _next_moment(self, *, first: bool) -> Moment:
        """Any moment; mostly one at which it works, since that is when something can be lost."""
        if first and self._random.random() < 0.3:
            # Before the batch is there.
            return "opening"
        if not self._moments:
            self._moments = ["opening", "resolving", "leaving", *_WORKING]
            self._random.shuffle(self._moments)
        return self._moments.pop()

    async def _until(self, child: Child, condition: Callable[[], bool]) -> None:
        await until(lambda: not child.running or condition(), f"{child.job.process} to get there; {child.errors}")

    async def _pause(self, child: Child, longest: float) -> None:
        end = CLOCK.boot() + self._random.uniform(0.0, longest)
        await self._until(child, lambda: CLOCK.boot() >= end)

    def _works(self, child: Child, *, resolving: bool = False) -> bool:
        return any(
            effect.process == child.job.process and not (resolving and effect.document_id)
            for effect in reversed(self._effects.read()[-200:])
        )

    async def _look_after_kill(self, child: Child) -> None:
        batch_id = child.job.batch_id
        if child.marks("submitted"):
            self._checker.acknowledged(batch_id, document_ids(DOCUMENTS))
        async with self._database.at_rest() as store:
            await self._count(store, child)
            await self._checker.verify(store, only=[batch_id], interrupted=[child.job.process])

    async def _count(self, store: Store, child: Child) -> None:
        record = await store.batch(BatchId(child.job.batch_id))
        self.kills.before_sealed += record is None or not record.sealed
        entered = child.marks("entered")
        if not entered:
            return
        begins = [effect.at for effect in self._effects.read() if effect.process == child.job.process]
        if begins:
            self.kills.resumed_after.append(begins[0] - child.marks("opening")[0]["at"])
        worker = entered[0]["worker"]
        held = await _held(store, child.job.batch_id, worker)
        self.kills.while_held += bool(held)
        self.kills.during_resolution += RESOLVER_POSITION in held
        self.kills.during_drain += bool(child.marks("leaving")) and not child.marks("ended")
        unanswered = {mark["number"] for mark in child.marks("store.commit: called")} - {
            mark["number"] for mark in child.marks("store.commit: answered")
        }
        self.kills.within_commit += bool(unanswered)
        self.kills.applied_without_reply += await self._database.commits(store, worker) in unanswered

    async def _check_left(self, child: Child) -> None:
        async with self._database.at_rest() as store:
            await self._checker.verify(store, only=[child.job.batch_id], left=[child.job.process], everyone_left=True)

    async def _look_at_end(self, child: Child) -> None:
        result = await child.result()
        self._checker.acknowledged(child.job.batch_id, document_ids(DOCUMENTS))
        assert result["state"] == "completed"
        assert result["counts"]["succeeded"] == DOCUMENTS
        assert result["resolution"] == asdict(tally_of(range(DOCUMENTS)))
        check_calls(self._effects, DOCUMENTS, child.job.batch_id)
        check_bill(self._effects, child.job.batch_id, interrupted=self._killed)
        async with self._database.open() as store:
            await self._checker.verify(store, finished=True, everyone_left=True)

    async def _last_event(self, batch_id: str) -> int:
        async with self._database.open() as store:
            record = await store.batch(BatchId(batch_id))
            assert record is not None
            return record.seq


def _seen(child: Child, *, after: int) -> int:
    """The last event that the process was given; it was given them all, in order, once."""
    numbers = [mark["seq"] for mark in child.marks("event")]
    assert numbers == list(range(after + 1, after + 1 + len(numbers)))
    return after + len(numbers)


async def _held(store: Store, batch_id: str, worker: str) -> list[int]:
    record = await store.batch(BatchId(batch_id))
    if record is None or record.ended:
        return []
    documents = await store.documents(record.batch_id, after=RESOLVER_POSITION - 1, limit=DOCUMENTS + 1, inputs=False)
    return [document.execution.position for document in documents if document.execution.owner == worker]


async def _campaign(folder: Path, database: Database, chance: random.Random, kills: int) -> Kills:
    folder.mkdir()
    with children() as start:
        return await Campaign(folder, database, chance, start).run(kills)


def _judge(kills: Kills) -> None:
    # Without these the test would pass as well if it killed processes that do nothing.
    assert kills.while_held > 0.5 * kills.total
    assert kills.within_commit > 0
    # What was in flight at a kill runs again, and nothing else does; it is bounded by what ran at once.
    assert 0 < kills.repeated <= kills.in_flight <= kills.total * CONCURRENCY * CALLS_AT_ONCE


@pytest.mark.parametrize("rounds", [1_000], indirect=True)
async def test_killed_processes_lose_nothing(
    tmp_path: Path, database: Database, chance: random.Random, rounds: int
) -> None:
    """A fresh database now and then, so that the first moments are hit, too."""
    kills = Kills()
    while kills.total < rounds:
        campaign = await _campaign(
            tmp_path / str(kills.total),
            database.another(),
            chance,
            min(KILLS_A_CAMPAIGN[type(database)], rounds - kills.total),
        )
        kills.add(campaign)
        print(kills, flush=True)
    _judge(kills)
    if rounds >= 100:
        assert min(kills.during_resolution, kills.during_drain, kills.before_sealed) > 0


@pytest.mark.parametrize("rounds", [100], indirect=True)
async def test_processes_that_share_a_batch_are_killed_again_and_again(
    tmp_path: Path, database: Database, chance: random.Random, rounds: int
) -> None:
    killed = 0
    while killed < rounds:
        crowd = await _crowd(tmp_path / f"crowd-{killed}", database.another(), chance, kills=10, documents=250)
        assert crowd >= 3
        killed += crowd


async def _until_works(child: Child, effects: EffectsLog) -> None:
    def works() -> bool:
        return any(effect.process == child.job.process for effect in effects.read()[-300:])

    await until(lambda: works() or not child.running, f"{child.job.process} to work")


async def _crowd(folder: Path, database: Database, chance: random.Random, *, kills: int, documents: int) -> int:
    """Three processes on one batch, one of them killed now and then and replaced, while the others go on."""
    folder.mkdir()
    effects = EffectsLog(folder / "effects.log")
    checker = checker_of(effects)
    jobs = (
        Job(
            process=f"process-{number}",
            folder=str(folder),
            store=database.place,
            documents=documents,
            concurrency=10,
            max_in_flight=4,
            pace=0.02,
        )
        for number in itertools.count(1)
    )
    with children() as start:
        crowd = [start(next(jobs)) for _ in range(3)]
        killed: set[str] = set()
        while len(killed) < kills:
            victim = chance.choice(crowd)
            await _until_works(victim, effects)
            await asyncio.sleep(chance.uniform(0.0, 0.15))
            if not victim.kill():
                break
            killed.add(victim.job.process)
            checker.acknowledged("batch", document_ids(documents))
            await check_meanwhile(checker, database, interrupted=[victim.job.process])
            crowd = [child for child in crowd if child is not victim] + [start(next(jobs))]
        for child in crowd:
            assert (await child.result())["resolution"] == asdict(tally_of(range(documents)))
        check_calls(effects, documents)
        check_bill(effects, interrupted=killed)
        async with database.open() as store:
            await checker.verify(store, finished=True, everyone_left=True)
    assert checker.stats.repeated <= checker.stats.in_flight <= len(killed) * 4 * CALLS_AT_ONCE
    return len(killed)


@pytest.mark.parametrize("rounds", [50], indirect=True)
async def test_a_process_killed_while_it_makes_the_database_is_no_obstacle(
    tmp_path: Path, database: Database, chance: random.Random, rounds: int
) -> None:
    for number in range(rounds):
        folder = tmp_path / str(number)
        folder.mkdir()
        await _kill_at_birth(folder, database.another(), chance)


async def _kill_at_birth(folder: Path, database: Database, chance: random.Random) -> None:
    with children() as start:
        first = start(Job(process="first", folder=str(folder), store=database.place, documents=4))
        await until(
            lambda: (bool(first.marks("opening")) and database.started) or not first.running, "the database to be there"
        )
        await asyncio.sleep(chance.uniform(0.0, 0.01))
        assert first.kill()
        second = start(Job(process="second", folder=str(folder), store=database.place, documents=4, pace=0.001))
        assert (await second.result())["resolution"] == asdict(tally_of(range(4)))
        check_bill(EffectsLog(folder / "effects.log"), interrupted=["first"])
