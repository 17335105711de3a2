"""Whom a worker takes for dead: nobody, until its own lease is renewed and the others have had time to renew theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

from tests.support import opened

from durable_batches import MemoryStore
from durable_batches.lifecycle.records import WorkerId, WorkerRecord
from durable_batches.outage import Outages
from durable_batches.testing import ManualClock
from durable_batches.worker.heartbeat import LeaseRenewer
from durable_batches.worker.lease import Lease
from durable_batches.worker.signals import LeaseSignals

ME = WorkerId("me")
LEASE = 30.0


def renewer_of(clock: ManualClock, store: MemoryStore, signals: LeaseSignals) -> LeaseRenewer:
    return LeaseRenewer(
        store,
        ME,
        Lease(clock, timedelta(seconds=LEASE)),
        timedelta(seconds=LEASE),
        timedelta(days=1),
        clock,
        outages=Outages(clock),
        lost=lambda: None,
        signals=signals,
    )


def may_expire(renewer: LeaseRenewer) -> bool:
    """Ask anew: type checkers take a property for the same as before."""
    return renewer.may_expire_others


def test_without_a_renewal_it_expires_nobody() -> None:
    clock = ManualClock()
    renewer = renewer_of(clock, MemoryStore(clock=clock), LeaseSignals())
    assert may_expire(renewer)
    clock.advance(LEASE * 0.7)
    assert may_expire(renewer)
    clock.advance(LEASE * 0.1)
    assert not may_expire(renewer)


async def test_after_a_freeze_it_renews_first_and_gives_the_others_a_lease() -> None:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    signals = LeaseSignals()
    renewer = renewer_of(clock, store, signals)
    async with opened(store):
        await store.register(WorkerRecord(ME, "boot", "namespace", 1, "1", frozenset()), int(LEASE * 1_000_000))

        async def renewed(seconds: float) -> None:
            with signals.renewed.listen() as renewals:
                clock.advance(seconds)
                await asyncio.to_thread(_until, lambda: bool(renewals.heard))

        renewer.start()
        try:
            await asyncio.to_thread(_until, lambda: clock.waiting_threads == 1)
            await renewed(LEASE / 2)
            assert may_expire(renewer)
            await asyncio.to_thread(_until, lambda: clock.waiting_threads == 1)
            await renewed(LEASE * 100)
            for _ in range(2):
                assert not may_expire(renewer)
                await asyncio.to_thread(_until, lambda: clock.waiting_threads == 1)
                await renewed(LEASE * 0.4)
            assert not may_expire(renewer)
            await asyncio.to_thread(_until, lambda: clock.waiting_threads == 1)
            await renewed(LEASE * 0.4)
            assert may_expire(renewer)
        finally:
            renewer.signal_stop()
            await asyncio.to_thread(renewer.join)


def test_a_loop_that_did_not_turn_for_a_lease_is_like_an_outage() -> None:
    clock = ManualClock()
    renewer = renewer_of(clock, MemoryStore(clock=clock), LeaseSignals())
    clock.advance(LEASE / 2)
    renewer.loop_turns()
    assert may_expire(renewer)
    clock.advance(LEASE)
    renewer.loop_turns()
    renewer._renewed = clock.boot()
    assert not may_expire(renewer)
    clock.advance(LEASE)
    renewer._renewed = clock.boot()
    assert may_expire(renewer)


def _until(condition: Callable[[], bool]) -> None:
    """Wait on a thread for another one, which is about to get there."""
    while not condition():
        pass
