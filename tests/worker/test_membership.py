"""Registered, expired, deregistered: which workers a store knows, and what the log says of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from datetime import timedelta

import pytest
from tests.support import opened

from durable_batches import MemoryStore
from durable_batches.errors import StoreUnavailableError
from durable_batches.lifecycle.records import EventRecord, WorkerId, WorkerRecord
from durable_batches.testing import ManualClock
from durable_batches.worker.membership import Membership
from durable_batches.worker.process_identity import this_process
from durable_batches.worker.signals import MembershipSignals

LEASE = timedelta(seconds=30)
ONE, TWO = WorkerId("one"), WorkerId("two")


class Scene:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(clock=self.clock)
        self.delivered: list[Sequence[EventRecord]] = []
        self.signals = MembershipSignals()
        self.membership = Membership(self.store, self.delivered.append, self.signals)

    async def known(self) -> list[WorkerId]:
        return [worker.worker_id for worker in await self.store.workers()]


async def test_a_session_is_registered_as_one_of_this_process(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    scene = Scene()
    async with opened(scene.store):
        await scene.membership.register(ONE, [("w", "1")], LEASE)
        (worker,) = await scene.store.workers()
        assert (worker.worker_id, worker.pid, worker.workflows) == (ONE, os.getpid(), frozenset([("w", "1")]))
        assert worker.boot_id == this_process().boot_id
    (record,) = caplog.records
    assert f"worker one registered: process {os.getpid()} on " in record.message
    assert record.__dict__["worker_id"] == ONE


async def test_sessions_are_deregistered_later_where_the_store_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    leave, away = scene.store.leave, True

    async def leave_if_there(worker: WorkerId) -> Sequence[EventRecord]:
        if away and worker == TWO:
            raise StoreUnavailableError("away")
        return await leave(worker)

    monkeypatch.setattr(scene.store, "leave", leave_if_there)
    async with opened(scene.store):
        assert not await scene.membership.deregister_pending()
        for worker in (ONE, TWO):
            await scene.membership.register(worker, [], LEASE)
            scene.membership.deregister_later(worker)
        with scene.signals.deregistered.listen() as deregistered:
            with pytest.raises(StoreUnavailableError):
                await scene.membership.deregister_pending()
            assert deregistered.heard == [ONE]
            assert await scene.known() == [TWO]
            away = False
            assert await scene.membership.deregister_pending()
            assert deregistered.heard == [ONE, TWO]
        assert await scene.known() == []
        assert not await scene.membership.deregister_pending()
    assert len(scene.delivered) == 2


async def test_workers_whose_process_has_ended_are_expired_at_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    scene = Scene()
    here = this_process()
    async with opened(scene.store):
        await scene.membership.register(ONE, [], LEASE)
        # Of the same pid, but started at another time.
        gone = WorkerRecord(TWO, here.boot_id, here.pid_namespace, here.pid, "0", frozenset())
        await scene.store.register(gone, 30_000_000)
        with scene.signals.expired.listen() as expired:
            assert list((await scene.membership.expire_dead_workers(lambda: True)).workers) == [TWO]
            assert [list(workers) for workers in expired.heard] == [[TWO]]
        assert await scene.known() == [ONE]
    record = caplog.records[-1]
    assert (record.levelno, record.message) == (
        logging.INFO,
        "expired dead workers and released their executions (processes ended): two",
    )
    assert record.__dict__["worker_ids"] == [TWO]


async def test_who_slept_while_it_looked_for_workers_expires_nobody() -> None:
    """Whether it may is asked when nothing is waited for any more before the store does it."""
    scene = Scene()
    seen = scene.store.workers
    asleep = False

    async def workers() -> Sequence[WorkerRecord]:
        nonlocal asleep
        found = await seen()
        scene.clock.advance(31)
        asleep = True
        return found

    async with opened(scene.store):
        await scene.membership.register(ONE, [], LEASE)
        scene.store.workers = workers  # type: ignore[method-assign]
        assert (await scene.membership.expire_dead_workers(lambda: not asleep)).workers == ()


async def test_a_lease_that_ran_out_is_worth_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    async with opened(scene.store):
        await scene.membership.register(ONE, [], LEASE)
        scene.clock.advance(31)
        assert list((await scene.membership.expire_dead_workers(lambda: True)).workers) == [ONE]
        assert await scene.known() == []
        # And nothing is logged where there is nothing to expire.
        await scene.membership.expire_dead_workers(lambda: True)
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.message == "expired dead workers and released their executions (leases ran out): one"
