"""A clock that stands still until a test advances it."""

from __future__ import annotations

import asyncio
import heapq
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Final
from weakref import WeakSet

from durable_batches.clock import Alarm, Timer
from durable_batches.errors import ConfigurationError
from durable_batches.lifecycle.primitives import to_micros
from durable_batches.options import check_moment, check_number
from durable_batches.tasks import running_loop, tell_loop

__all__ = ["ManualClock"]

_START: Final = datetime(2030, 1, 1, tzinfo=UTC)
_BOOTED_BEFORE: Final = 1_000_000_000
"""Microseconds on the boot clock at the start: not 0, which would hide a mix-up of the two clocks."""


class ManualClock:
    """A `durable_batches.clock.Clock` that a test advances.

    Time does not pass by itself: a task that sleeps on the clock sleeps until `advance`. All methods may be called from
    any thread; a timer calls back on the event loop that it was set on. An activity of a test that should take a while
    also sleeps on the clock: `await clock.sleep(30)`.

    Args:
        start: The initial time of the wall clock; an aware moment.
        jitter: The share of each delay's jitter: from 0 (no jitter, so a retry is due exactly when its policy says) to
            1.

    Example::

        clock = ManualClock()
        store = MemoryStore(clock=clock)
        ...
        clock.advance(31)  # the lease of 30 s has expired
    """

    def __init__(self, start: datetime = _START, *, jitter: float = 0.0) -> None:
        check_moment("start", start)
        check_number("jitter", jitter)
        self._lock = threading.Lock()
        self._moved = threading.Condition(self._lock)
        self._wall_start = to_micros(start)
        self._elapsed = 0
        self._calls: list[_Call] = []
        self._numbers = count()
        self._sleepers: set[asyncio.Task[object]] = set()
        self._alarms: WeakSet[_ManualAlarm] = WeakSet()
        self._jitter = jitter

    def __repr__(self) -> str:
        return f"<ManualClock, advanced by {timedelta(microseconds=self._elapsed)}>"

    def now(self) -> int:
        """Return the wall clock: microseconds since the epoch."""
        with self._lock:
            return self._wall_start + self._elapsed

    def boot(self) -> float:
        """Return the boot clock, in seconds."""
        with self._lock:
            return (_BOOTED_BEFORE + self._elapsed) / 1_000_000

    @property
    def tolerance(self) -> float:
        """Zero: a timer fires exactly when it is due."""
        return 0.0

    async def sleep(self, seconds: float, *, housekeeping: bool = False) -> None:
        """Wait until the clock has advanced by a number of seconds; zero does not wait."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken = asyncio.Event()
        timer = self.call_later(seconds, woken.set, housekeeping=housekeeping)
        task = asyncio.current_task()
        assert task is not None
        self._sleepers.add(task)
        try:
            await woken.wait()
        finally:
            self._sleepers.discard(task)
            timer.cancel()

    def call_later(self, seconds: float, callback: Callable[[], object], *, housekeeping: bool = False) -> Timer:
        """Call back on the running event loop when the clock has advanced by a number of seconds."""
        loop = asyncio.get_running_loop()
        if seconds <= 0:
            return loop.call_soon(callback)
        with self._lock:
            due = self._elapsed + _micros(seconds)
            call = _Call(due, next(self._numbers), loop, callback, housekeeping=housekeeping)
            heapq.heappush(self._calls, call)
        return call

    def alarm(self) -> Alarm:
        """Create an alarm, which wakes its threads when it is set or the clock has advanced far enough."""
        alarm = _ManualAlarm(self._moved, lambda: self._elapsed)
        self._alarms.add(alarm)
        return alarm

    def jitter(self) -> float:
        """Return the share that was given at construction."""
        return self._jitter

    @property
    def waiting(self) -> int:
        """The number of timers (including sleeps): shows whether the code under test has reached its sleep."""
        with self._lock:
            return sum(not call.cancelled for call in self._calls)

    @property
    def waiting_threads(self) -> int:
        """The number of threads that wait with alarms of this clock, such as a worker's lease renewer.

        One whose alarm was set, or whose time has come, does not count, also where it has not run since.
        """
        with self._lock:
            return sum(alarm.waiting for alarm in self._alarms)

    @property
    def busy_threads(self) -> int:
        """The number of threads that wait with alarms of this clock again and again, and do something just now.

        A test that moves the clock on and on waits for them; otherwise hours may pass while a lease renewer renews.
        """
        with self._lock:
            return sum(alarm.is_busy for alarm in self._alarms)

    @property
    def next_timer(self) -> timedelta | None:
        """The time until the next timer other than housekeeping; None: none is set."""
        with self._lock:
            # Most timers are cancelled before they are due, and would otherwise stay here until then.
            self._calls = [call for call in self._calls if not call.cancelled]
            heapq.heapify(self._calls)
            due = min((call.due for call in self._calls if not call.housekeeping), default=None)
            return None if due is None else timedelta(microseconds=due - self._elapsed)

    def is_sleeping(self, task: asyncio.Task[object]) -> bool:
        """Return whether the task sleeps on this clock now."""
        return task in self._sleepers

    def advance(self, seconds: float) -> None:
        """Advance both clocks. Timers that become due fire in order, each at its own time.

        Tasks that slept continue when the event loop runs next, and see the time at the end of this call.

        Raises:
            ConfigurationError: `seconds` is no number, or negative: time does not go back (but see `jump`).
        """
        check_number("the seconds to advance by", seconds)
        if seconds < 0:
            raise ConfigurationError("a clock cannot be advanced by less than nothing")
        with self._lock:
            end = self._elapsed + _micros(seconds)
        while True:
            with self._lock:
                if not self._calls or self._calls[0].due > end:
                    self._elapsed = max(self._elapsed, end)
                    self._moved.notify_all()
                    return
                call = heapq.heappop(self._calls)
                self._elapsed = max(self._elapsed, call.due)
            call.make()

    def jump(self, seconds: float) -> None:
        """Set only the wall clock forward or (negative) back, as an operator or NTP does.

        Raises:
            ConfigurationError: `seconds` is no number.
        """
        check_number("the seconds to jump by", seconds)
        with self._lock:
            self._wall_start += _micros(seconds)


class _ManualAlarm:
    def __init__(self, moved: threading.Condition, elapsed: Callable[[], int]) -> None:
        self._moved = moved
        self._elapsed = elapsed
        self._set = False
        self._ends: Final[list[int]] = []
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        # A thread that has been notified runs when the system lets it: it is no waiting one until then.
        return 0 if self._set else sum(end > self._elapsed() for end in self._ends)

    @property
    def is_busy(self) -> bool:
        return not self._set and not self.waiting and self._thread is not None and self._thread.is_alive()

    def set(self) -> None:
        with self._moved:
            self._set = True
            self._moved.notify_all()

    def wait(self, timeout: float, /) -> bool:
        with self._moved:
            end = self._elapsed() + _micros(timeout)
            self._thread = threading.current_thread()
            self._ends.append(end)
            self._moved.wait_for(lambda: self._set or self._elapsed() >= end)
            self._ends.remove(end)
            return self._set


class _Call:
    __slots__ = ("callback", "cancelled", "due", "housekeeping", "loop", "number")

    def __init__(
        self,
        due: int,
        number: int,
        loop: asyncio.AbstractEventLoop,
        callback: Callable[[], object],
        *,
        housekeeping: bool,
    ) -> None:
        self.due = due
        self.housekeeping = housekeeping
        self.number = number
        self.loop = loop
        self.callback = callback
        self.cancelled = False

    def __lt__(self, other: _Call) -> bool:
        return (self.due, self.number) < (other.due, other.number)

    def cancel(self) -> None:
        self.cancelled = True

    def make(self) -> None:
        if running_loop() is self.loop:
            self._call()
        else:
            tell_loop(self.loop, self._call)

    def _call(self) -> None:
        if not self.cancelled:
            self.cancelled = True
            self.callback()


def _micros(seconds: float) -> int:
    return round(seconds * 1_000_000)
