"""Supplies a limiter with its part of the budget that a fleet shares: one take at a time, when calls need it."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
from collections.abc import Callable
from typing import Final

from durable_batches.clock import Clock
from durable_batches.errors import StoreUnavailableError
from durable_batches.flow.admission import Admission
from durable_batches.flow.budget import Grant, plan_take
from durable_batches.lifecycle.records import SharedLimit, SharedWrites
from durable_batches.outage import Backoff
from durable_batches.runtime.limits import SharedBudget
from durable_batches.tasks import tell_loop

__all__ = ["Refill"]

_log = logging.getLogger("durable_batches")

_EARLY_SECONDS: Final = 1e-6


class Refill:
    """The supply of one limiter.

    Several workers of a process may use it, one after the other supplies it: the first that has come and is there yet.

    Args:
        name: The limiter's name.
        shared: The budget's name.
        admission: Who may begin.
        lock: Held while the admission is used.
        serve: Lets those begin that may now.
    """

    def __init__(
        self, name: str, shared: str, admission: Admission, lock: threading.Lock, serve: Callable[[], None]
    ) -> None:
        self.shared: Final = shared
        self._name = name
        self._admission = admission
        self._lock = lock
        self._serve = serve
        self._members: list[_Member] = []
        self._between: asyncio.AbstractEventLoop | None = None
        self._due = math.inf
        self._logged_differ = False

    @property
    def is_supplied(self) -> bool:
        """Whether a worker supplies it, or will again: it has lost its lease, and is about to register anew."""
        is_between = self._between is not None and not self._between.is_closed()
        return is_between or any(not member.is_gone for member in self._members)

    def join(self, budget: SharedBudget) -> None:
        """Have a worker supply it, which then runs `run`."""
        if self._members and self._members[0].is_gone:
            self._drop_granted()
        self._members = [*(member for member in self._members if not member.is_gone), _Member(budget)]
        self._between = None

    def leave(self, budget: SharedBudget) -> None:
        """Have another worker supply it, if there is one: this one is about to be gone, and what it held with it."""
        first = bool(self._members) and self._members[0].budget is budget
        self._members = [member for member in self._members if member.budget is not budget]
        if first:
            self._between = None if self._members else asyncio.get_running_loop()
            self._drop_granted()
            self._wake()

    def _drop_granted(self) -> None:
        with self._lock:
            self._admission.lost_supply()

    async def handed_over(self) -> None:
        """Wait until the worker that supplies it now has said what runs; of another event loop, do not wait."""
        member = self._members[0] if self._members else None
        self._between = None
        if member is not None and member.loop is asyncio.get_running_loop():
            await member.has_taken.wait()

    def look(self, now: float) -> None:
        """Ask sooner than was meant, if calls need it; with the lock held, on any thread."""
        if now + self._admission.asks_in(now) < self._due - _EARLY_SECONDS:
            self._due = -math.inf
            self._wake()

    def _wake(self) -> None:
        if self._members:
            member = self._members[0]
            tell_loop(member.loop, member.wake.set)

    async def run(self, budget: SharedBudget) -> None:
        """Supply it, until cancelled.

        Raises:
            WorkerFencedError: The worker is not registered any more.
        """
        member = next(member for member in self._members if member.budget is budget)
        while self._members[0] is not member:
            await member.wake.wait()
            member.wake.clear()
        clock, pauses = budget.clock, Backoff(longest=1.0)
        while True:
            with self._lock:
                now = clock.boot()
                seconds = self._admission.asks_in(now)
                self._due = now + seconds
            if seconds > _EARLY_SECONDS:
                member.has_taken.set()
                await member.sleep(clock, seconds)
                continue
            try:
                await self._take(budget)
                member.has_taken.set()
                pauses.reset()
            except StoreUnavailableError:
                # Calls wait meanwhile: nothing begins beyond what was granted.
                await clock.sleep(pauses.pause())

    async def _take(self, budget: SharedBudget) -> None:
        admission, clock = self._admission, budget.clock
        credit = admission.credit
        assert credit is not None
        with self._lock:
            asked = clock.boot()
            ask = admission.asks_for(asked)

        def plan(limit: SharedLimit) -> SharedWrites[Grant]:
            # It may have waited for others' takes.
            late = clock.boot() - asked
            elapsed = None if ask.elapsed is None else ask.elapsed + late
            return plan_take(limit, budget.worker_id, ask._replace(elapsed=elapsed))

        try:
            grant = await budget.take(self.shared, plan)
        except StoreUnavailableError:
            with self._lock:
                credit.failed(ask)
            raise
        with self._lock:
            admission.granted(grant, asked, clock.boot())
            own = credit.limits
        self._log_limits(differ=grant.limits != own, grant=grant)
        self._serve()

    def _log_limits(self, *, differ: bool, grant: Grant) -> None:
        if differ and not self._logged_differ:
            _log.warning(
                "limiter %r: workers share the limits %r and were given different ones; the smallest hold: "
                "requests a minute %s, tokens a minute %s, calls at once %s",
                self._name,
                self.shared,
                *grant.limits,
                extra={"limiter": self._name, "shared": self.shared, "limits": grant.limits._asdict()},
            )
        self._logged_differ = differ


class _Member:
    """A worker that supplies it, or will."""

    __slots__ = ("_process", "budget", "has_taken", "loop", "wake")

    def __init__(self, budget: SharedBudget) -> None:
        self.budget: Final = budget
        self.loop: Final = asyncio.get_running_loop()
        self._process = os.getpid()
        self.wake: Final = asyncio.Event()
        self.has_taken: Final = asyncio.Event()

    @property
    def is_gone(self) -> bool:
        """Whether its event loop was closed without a word, or is that of the process that this one was forked from."""
        return self.loop.is_closed() or self._process != os.getpid()

    async def sleep(self, clock: Clock, seconds: float) -> None:
        """Sleep until there is more to do, or for so long."""
        timer = None if seconds == math.inf else clock.call_later(seconds, self.wake.set)
        try:
            await self.wake.wait()
        finally:
            if timer is not None:
                timer.cancel()
            self.wake.clear()
