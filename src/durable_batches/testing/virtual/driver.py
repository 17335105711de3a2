"""Advance the time of one worker: to the next timer, whenever nothing happens by itself any more."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any, Final, NamedTuple, TypeAlias

from durable_batches.runtime.dependencies import Provider
from durable_batches.testing.virtual.clock import ManualClock
from durable_batches.testing.virtual.crashable_store import CrashableStore
from durable_batches.testing.virtual.inside import attempts_of, is_at_rest
from durable_batches.worker.worker import Worker

__all__ = ["PATIENCE", "Driver", "Stuck", "virtual_worker"]

_FOR_EVER: Final = timedelta(days=36_500)
"""A lease that no test outlasts, however far it moves the clock."""

PATIENCE: Final = timedelta(seconds=0.2)

_LOOKS: Final = 100
"""How often it looks at least until its patience is over. Where a busy machine makes a look take longer, so it does."""

_LONGEST_PAUSE: Final = 0.002
"""Seconds between two looks."""

_MOST_TURNS: Final = 1_000

_Run: TypeAlias = "tuple[asyncio.Task[Any], str, int]"
"""Something that runs: the task, the activity call's key and try, or for workflow code "" and what it came after."""


def virtual_worker(
    store: CrashableStore,
    clock: ManualClock,
    *,
    max_in_flight: int,
    dependencies: Mapping[Provider, object] | None,
) -> Worker:
    """Create a worker whose lease never ends, and which is closed without a drain."""
    return Worker(
        store,
        max_in_flight=max_in_flight,
        lease=_FOR_EVER,
        drain=timedelta(0),
        max_stall=_FOR_EVER,
        dependencies=dependencies,
        clock=clock,
    )


class Stuck(Exception):
    """The batch waits for something other than time."""


class _View(NamedTuple):
    busy: bool
    """The library itself has something to do."""
    running: frozenset[_Run]
    """The user's own code that neither sleeps on the clock nor is known to hang."""


class Driver:
    """Advances one worker's time.

    Args:
        worker: Whose.
        store: Between it and its store.
        clock: The worker's.
        patience: For how long, in real time, the user's own code may show nothing until it counts as waiting.
    """

    def __init__(self, worker: Worker, store: CrashableStore, clock: ManualClock, patience: timedelta) -> None:
        self._worker = worker
        self._store = store
        self._clock = clock
        self._pause = min(patience.total_seconds() / _LOOKS, _LONGEST_PAUSE)
        self._looks = max(round(patience.total_seconds() / self._pause), _LOOKS) if self._pause else _LOOKS
        self._hanging: Collection[_Run] = frozenset()

    async def settled(self) -> None:
        """Return when everything has ended or waits."""
        before, looks = None, 0
        while (view := await self._look()).busy or view.running:
            # What happened meanwhile: a call to the store, or of an activity.
            now = (self._store.calls, view)
            looks = looks + 1 if now == before and not view.busy else 0
            if looks >= self._looks:
                self._hanging = view.running.union(self._hanging)
                return
            before = now
            await asyncio.sleep(self._pause)

    async def advance(self, by: timedelta) -> None:
        """Move on, timer by timer, each when everything that comes before it is done."""
        left = by
        await self.settled()
        while (step := self._clock.next_timer) is not None and step <= left:
            left -= step
            self._clock.advance(step.total_seconds())
            await self.settled()
        self._clock.advance(left.total_seconds())
        await self.settled()

    async def through(self, task: asyncio.Task[Any]) -> None:
        """Move on until the task is done.

        Raises:
            Stuck: It is not, and no timer is set.
        """
        while True:
            await self.settled()
            if task.done():
                return
            step = self._clock.next_timer or await self._next_timer(task)
            if step is not None:
                self._clock.advance(step.total_seconds())

    async def _next_timer(self, task: asyncio.Task[Any]) -> timedelta | None:
        """What is waited for is no timer; it may be a thread that has yet to end, or a connection.

        With more patience than otherwise, for its end is a failed test.
        """
        for _ in range(self._looks * 10):
            await asyncio.sleep(self._pause)
            if task.done() or (await self._look()).busy:
                return None
            if (step := self._clock.next_timer) is not None:
                return step
        raise Stuck

    async def _look(self) -> _View:
        await _nothing_else_to_run()
        running = self._running()
        # A task that no longer hangs counts as new when it hangs again.
        self._hanging = running.intersection(self._hanging)
        return _View(bool(self._store.under_way) or not is_at_rest(self._worker), running - self._hanging)

    def _running(self) -> frozenset[_Run]:
        running: set[_Run] = set()
        for attempt in attempts_of(self._worker):
            calls = attempt.calls
            running.update(
                # One that waits for a permit waits for time to pass, or for another call.
                (call.task, call.key, call.attempt)
                for call in calls
                if call.limiter is None and not self._sleeps(call.task)
            )
            if not calls and attempt.task is not None and not self._sleeps(attempt.task):
                running.add((attempt.task, "", self._store.calls))
        return frozenset(running)

    def _sleeps(self, task: asyncio.Task[Any]) -> bool:
        return self._clock.is_sleeping(task)


async def _nothing_else_to_run() -> None:
    """Give way until no other task has anything to do but to wait: for a timer, a thread or a connection.

    The standard event loops tell; of another one (uvloop), a fixed number of turns has to do.
    """
    ready: Collection[object] | None = getattr(asyncio.get_running_loop(), "_ready", None)
    for _ in range(_MOST_TURNS if ready is not None else _LOOKS):
        await asyncio.sleep(0)
        if ready is not None and not ready:
            return
