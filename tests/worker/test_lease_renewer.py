"""Whom a worker takes for dead: nobody, until its own lease is renewed and the others have had time to renew theirs."""

from __future__ import annotations

import asyncio
import threading
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


def renewer_of(
    clock: ManualClock,
    store: MemoryStore,
    signals: LeaseSignals,
    *,
    lost: Callable[[], object] = lambda: None,
    lease: float = LEASE,
) -> LeaseRenewer:
    return LeaseRenewer(
        store,
        ME,
        Lease(clock, timedelta(seconds=lease)),
        timedelta(seconds=lease),
        timedelta(days=1),
        clock,
        outages=Outages(clock),
        lost=lost,
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
            await renewer.ended()


async def test_a_process_that_stood_still_for_longer_than_its_loop_may_keeps_its_lease() -> None:
    """The thread that renews is the first to go on, and sees that the loop has not turned; no loop has had the time."""
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    signals, lost = LeaseSignals(), threading.Event()
    renewer = renewer_of(clock, store, signals, lost=lost.set)
    async with opened(store):
        await store.register(WorkerRecord(ME, "boot", "namespace", 1, "1", frozenset()), int(LEASE * 1_000_000))
        renewer.start()
        try:
            with signals.renewed.listen() as renewals:
                await asyncio.to_thread(_until, lambda: clock.waiting_threads == 1)
                clock.advance(timedelta(days=2).total_seconds())
                await asyncio.to_thread(_until, lambda: clock.waiting_threads == 1 or lost.is_set())
                renewer.loop_turns()
                clock.advance(2)
                await asyncio.to_thread(_until, lambda: bool(renewals.heard) or lost.is_set())
            assert not lost.is_set()
        finally:
            renewer.signal_stop()
            await renewer.ended()


def test_a_lease_may_be_shorter_than_what_is_between_two_turns() -> None:
    """Which is no outage: a worker with such a lease would expire nobody, ever."""
    clock = ManualClock()
    renewer = renewer_of(clock, MemoryStore(clock=clock), LeaseSignals(), lease=0.3)
    for _ in range(3):
        clock.advance(0.5)
        renewer.loop_turns()
        renewer._renewed = clock.boot()
        assert may_expire(renewer)


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


def test_in_a_forked_child_no_renewal_lets_anything_begin() -> None:
    """Its event loop may go on after a fork, and its store may be in memory."""
    clock = ManualClock()
    lease = Lease(clock, timedelta(seconds=LEASE))
    lease.renewed(clock.boot())
    assert lease.holds()
    lease.is_inherited, lease.until = True, float("-inf")
    lease.renewed(clock.boot())
    assert not lease.holds()
