"""Time, in one place: the library reads clocks and sets timers only through a `Clock`.

So a test or a simulation can control time. There are two clocks: the wall clock, in whole microseconds since the
epoch (UTC), dates events and due times and is stored, and is kept steady where the machine's is set; the boot clock, in
seconds, never jumps, keeps running while the machine is suspended, and measures leases and durations.

There are two kinds of timers. Most are awaited: a retry, a timeout, a due time. The others are housekeeping: periodic
checks, and limits to the time between them. No user waits for their exact moments, so a clock that a test advances by
a month need not stop at each of them.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Final, Protocol

__all__ = ["Alarm", "Clock", "Deadline", "SystemClock", "Timer", "machine_time"]


class Timer(Protocol):
    """A scheduled call."""

    def cancel(self) -> None:
        """Cancel the call; harmless if it has been made."""
        ...


class Alarm(Protocol):
    """A `threading.Event` whose timeout follows a `Clock`, for code on threads."""

    def set(self) -> None:
        """Set the alarm, which ends all present and future waits."""
        ...

    def wait(self, timeout: float, /) -> bool:
        """Block until the alarm is set or the timeout has passed; return whether it is set."""
        ...


class Clock(Protocol):
    """The source of time for the library."""

    @property
    def tolerance(self) -> float:
        """The number of seconds by which a timer may fire early, measured by the wall clock."""
        ...

    def now(self) -> int:
        """Return the wall clock: microseconds since the epoch."""
        ...

    def boot(self) -> float:
        """Return the boot clock: seconds since a fixed moment; it never goes back."""
        ...

    async def sleep(self, seconds: float, *, housekeeping: bool = False) -> None:
        """Wait for a number of seconds; for `housekeeping` see the module."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], object], *, housekeeping: bool = False) -> Timer:
        """Call back on the running event loop after a number of seconds; for `housekeeping` see the module."""
        ...

    def alarm(self) -> Alarm:
        """Create an alarm, with which a thread waits."""
        ...

    def jitter(self) -> float:
        """Return a random number in [0, 1), for delays that should differ between processes."""
        ...


class SystemClock:
    """The machine's clocks and the event loop's timers."""

    @property
    def tolerance(self) -> float:
        """The event loop's clock and the wall clock differ by less than this over any delay."""
        return 0.001

    def now(self) -> int:
        """Return microseconds since the epoch, by the wall clock without its jumps; see `_SteadyWallClock`."""
        return _wall_clock.now()

    def boot(self) -> float:
        """Return seconds on the clock that keeps running during suspension, where the system has one (Linux)."""
        return _boot_clock()

    async def sleep(self, seconds: float, *, housekeeping: bool = False) -> None:
        """Sleep on the event loop."""
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[], object], *, housekeeping: bool = False) -> Timer:
        """Schedule with `loop.call_later`."""
        return asyncio.get_running_loop().call_later(seconds, callback)

    def alarm(self) -> Alarm:
        """Create a `threading.Event`."""
        return threading.Event()

    def jitter(self) -> float:
        """Return `random.random()`."""
        return random.random()


def machine_time() -> int:
    """Return the machine's wall clock as it is set, in microseconds since the epoch: to compare with dates of files."""
    return time.time_ns() // 1000


_boot_clock: Final[Callable[[], float]] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)


class _SteadyWallClock:
    """The wall clock, without its jumps.

    It goes on with the boot clock. Where the wall clock is set back or forward, it makes up for the difference
    gradually: due times and deadlines are hardly met earlier or later for it, and dates of events never go back. All
    clocks of a process share it.
    """

    def __init__(self) -> None:
        self._at: tuple[int, int] | None = None

    def now(self) -> int:
        """Return microseconds since the epoch."""
        # Of several threads each replaces both at once.
        wall, boot, at = machine_time(), int(_boot_clock() * 1_000_000), self._at
        if at is None:
            self._at = (boot, wall)
            return wall
        elapsed = boot - at[0]
        steady = at[1] + elapsed
        if elapsed < _LEAST_ELAPSED:
            return steady
        most = elapsed // CATCH_UP
        gap = wall - steady
        # Without a clock that runs during suspension, the time of that is a jump, too.
        steady += gap if gap > 0 and not RUNS_WHILE_SUSPENDED else max(-most, min(gap, most))
        self._at = (boot, steady)
        return steady


_LEAST_ELAPSED: Final = 1_000
CATCH_UP: Final = 10
"""A jump of the wall clock is made up for in ten times its length."""

RUNS_WHILE_SUSPENDED: Final = hasattr(time, "CLOCK_BOOTTIME")
"""Whether the boot clock goes on while the machine is suspended."""
_wall_clock: Final = _SteadyWallClock()


class Deadline:
    """Cancel the body of an `async with` block when the time is up, and raise TimeoutError.

    Like `asyncio.timeout`, with its timer on the library's clock.
    """

    __slots__ = ("_clock", "_due", "_left", "_seconds", "_timeout", "_timer")

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._timeout = asyncio.timeout(None)
        self._timer: Timer | None = None
        self._due = 0.0
        self._left: float | None = None

    @property
    def expired(self) -> bool:
        """Whether this deadline cancelled the body."""
        return self._timeout.expired()

    async def __aenter__(self) -> Deadline:
        await self._timeout.__aenter__()
        self._run(self._seconds)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._left = None
        await self._timeout.__aexit__(kind, error, trace)

    def restart(self, seconds: float) -> None:
        """Let the time run from now on; within the block, before it is up."""
        if self._timer is not None and not self.expired:
            self._run(seconds)

    def hold(self) -> None:
        """Have the time stand still, until `go_on`."""
        if self._timer is not None and not self.expired and self._left is None:
            self._timer.cancel()
            self._left = max(self._due - self._clock.boot(), 0.0)

    def go_on(self) -> None:
        """Have the time go on, where it stands still."""
        if self._left is not None:
            self._run(self._left)

    def _run(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._left = None
        self._due = self._clock.boot() + seconds
        self._timer = self._clock.call_later(seconds, self._expire)

    def _expire(self) -> None:
        self._timeout.reschedule(asyncio.get_running_loop().time())
