"""Who takes over from whom, and when: at once where a death can be seen, by the lease anywhere else."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.processes.children import checker_of, children, end_of
from tests.processes.databases import Database
from tests.processes.workload import (
    PATIENT,
    Batches,
    Job,
    Page,
    document_ids,
    extract,
    here,
)

from durable_batches import (
    BatchConfig,
    BatchId,
    BatchOrchestrator,
    DocumentCompleted,
    DocumentReleased,
    Worker,
)
from durable_batches.clock import SystemClock
from durable_batches.lifecycle.records import ClaimRequest, WorkerId, WorkerRecord
from durable_batches.stores import Store
from durable_batches.testing.history.checker import HistoryChecker
from durable_batches.testing.virtual.effects import EffectsLog
from durable_batches.worker.process_identity import is_dead, this_process

LEASE = 300_000_000
HELD = 4
DOCUMENTS = HELD + 1
STRANGER = WorkerId("stranger")


class ShiftedClock(SystemClock):
    """The real one, with a boot clock that a test sets forward, or back as a reboot does, and little patience."""

    shift = 0.0

    def boot(self) -> float:
        return super().boot() + self.shift

    async def sleep(self, seconds: float, *, housekeeping: bool = False) -> None:
        await super().sleep(min(seconds, 0.02) if housekeeping else seconds)


@pytest.fixture
def clock() -> ShiftedClock:
    return ShiftedClock()


async def test_a_killed_process_is_succeeded_at_once(tmp_path: Path, database: Database) -> None:
    """Not after its lease, of a day: on the same machine its death can be seen."""
    effects = EffectsLog(tmp_path / "effects.log")
    checker = checker_of(effects)
    checker.acknowledged("batch", document_ids(20))
    job: dict[str, Any] = {
        "folder": str(tmp_path),
        "store": database.place,
        "documents": 20,
        "stumbles": 0.0,
        "lease": 86_400.0,
    }
    with children() as start:
        victim = start(Job(process="victim", **job, pace=0.005, stops=["split: begun#8"]))
        await victim.stopped()
        assert victim.kill()
        async with database.at_rest() as store:
            await checker.verify(store, interrupted=["victim"])
        assert checker.stats.in_flight > 0
        heir = start(Job(process="heir", **job, pace=0.002))
        assert (await heir.result())["state"] == "completed"
    async with database.open() as store:
        await checker.verify(store, finished=True, everyone_left=True)
        events = await store.events(BatchId("batch"), after=0, limit=10_000)
    assert sum(event.tag == "document_released" for event in events) == 8
    assert checker.stats.repeated == checker.stats.in_flight


async def _let_hold(store: Store, stranger: WorkerRecord) -> None:
    """A batch, all but one of its documents held by a worker that nobody hears of."""
    async with BatchOrchestrator(extract, store=store, max_in_flight=0) as batches:
        await batches.submit(
            [Page(number) for number in range(DOCUMENTS)],
            batch_id="batch",
            document_id=lambda page: f"page-{page.number}",
            config=BatchConfig(concurrency=DOCUMENTS, max_crashes=10, failure_policy=PATIENT),
        )
        await store.register(stranger, LEASE)
        claim = ClaimRequest(extract.versions, limit=HELD, held=0, window=HELD, capacity=HELD, checkpoints=0)
        assert len((await store.commit(stranger.worker_id, 1, (), claim)).claims) == HELD


def _stranger(**changes: object) -> WorkerRecord:
    me = this_process()
    record = WorkerRecord(STRANGER, me.boot_id, me.pid_namespace, me.pid, me.started, extract.versions)
    return record._replace(**changes)  # type: ignore[arg-type]


@asynccontextmanager
async def _beside(
    folder: Path, database: Database, clock: ShiftedClock, stranger: WorkerRecord, shift: float = 0.0
) -> AsyncGenerator[tuple[Batches, HistoryChecker, Store]]:
    """A worker of this process, that comes when the stranger holds most of the batch."""
    here.effects, here.pace, here.poison = EffectsLog(folder / "effects.log", "heir"), 0.002, frozenset()
    checker = checker_of(here.effects)
    checker.acknowledged("batch", document_ids(DOCUMENTS))
    store = database.store(clock=clock)
    await _let_hold(store, stranger)
    clock.shift = shift
    # Its own lease must outlast the jumps of the clock.
    async with BatchOrchestrator(extract, worker=Worker(store, lease=timedelta(days=1), clock=clock)) as batches:
        yield batches, checker, store
    here.effects.close()


async def _check_succession(batches: Batches, checker: HistoryChecker, store: Store) -> None:
    events = [event async for event in batches.progress("batch")]
    released = [event for event in events if isinstance(event, DocumentReleased)]
    assert [event.reason for event in released] == ["crash"] * HELD
    assert {event.document_id for event in released} == set(document_ids(HELD))
    await checker.verify(store, finished=True)
    assert checker.stats.repeated == 0


async def _looks_around(batches: Batches) -> None:
    """Return when the worker has looked for dead ones, from here on."""
    with batches.worker.signals.membership.expired.listen() as expired:
        for _ in range(3):
            await expired.next()


FAR_AWAY = [
    pytest.param({"boot_id": "of another machine"}, id="another-machine"),
    pytest.param({"pid_namespace": "pid:[1]"}, id="another-container"),
    pytest.param({"pid_namespace": ""}, id="no-namespace"),
    pytest.param({"started": ""}, id="no-start-time"),
    pytest.param({}, id="this-very-process"),
]


@pytest.mark.parametrize("changes", FAR_AWAY)
async def test_where_a_death_cannot_be_seen_the_lease_decides(
    tmp_path: Path, database: Database, clock: ShiftedClock, changes: dict[str, object]
) -> None:
    async with _beside(tmp_path, database, clock, _stranger(**changes)) as (batches, checker, store):
        async with aclosing(batches.progress("batch")) as events:
            async for event in events:
                if isinstance(event, DocumentCompleted):
                    break
        # Some looks around later everything else is as it was.
        await _looks_around(batches)
        counts = (await batches.snapshot("batch")).counts
        assert (counts.succeeded, counts.running) == (DOCUMENTS - HELD, HELD)
        await checker.verify(store)
        clock.shift = 200.0
        await _looks_around(batches)
        assert (await batches.snapshot("batch")).counts.running == HELD
        clock.shift = 301.0
        assert (await end_of(batches)).counts.succeeded == DOCUMENTS
        await _check_succession(batches, checker, store)


def test_a_process_that_proc_hides_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """`/proc` of other users' processes may be mounted invisible (hidepid, systemd's ProtectProc)."""
    stranger = _stranger(pid=os.getppid(), started="1")
    assert is_dead(stranger)

    def unreadable(_: int) -> None:
        return None

    def refused(_: int, __: int) -> None:
        raise PermissionError

    monkeypatch.setattr("durable_batches.worker.process_identity._started", unreadable)
    monkeypatch.setattr(os, "kill", refused)
    assert not is_dead(stranger)
    monkeypatch.undo()
    assert is_dead(stranger)


GONE = [
    pytest.param({"pid": 1 << 22}, 0.0, id="no-such-process"),
    pytest.param({"started": "1"}, 0.0, id="its-pid-is-another-process's"),
    pytest.param({"pid": os.getppid(), "started": "1"}, 0.0, id="its-pid-is-a-process-of-others"),
    pytest.param({"boot_id": "of another time"}, -1000.0, id="the-machine-was-rebooted"),
]


@pytest.mark.parametrize(("changes", "shift"), GONE)
async def test_where_a_death_can_be_seen_nobody_waits(
    tmp_path: Path, database: Database, clock: ShiftedClock, changes: dict[str, object], shift: float
) -> None:
    async with _beside(tmp_path, database, clock, _stranger(**changes), shift) as (batches, checker, store):
        assert (await end_of(batches)).counts.succeeded == DOCUMENTS
        await _check_succession(batches, checker, store)
