"""Time, in one place: the library reads clocks and sets timers only through a `Clock`.

That is what lets a test or a simulation own time. Two clocks are told apart: the wall clock, in whole
microseconds since the epoch (UTC), dates events and due times and is stored; the boot clock, in seconds,
never jumps, runs on through a suspended machine, and measures leases and durations.

Two kinds of timers are told apart, too. Most are waited for: a retry, a timeout, a due time. The others are
housekeeping: a look around every second, a limit to how long nothing is looked at. Nothing that a user waits for
hangs on their exact moment, so that a clock that is moved by hand through a month need not stop at each of them.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

__all__ = ["Alarm", "Clock", "Deadline", "SystemClock", "Timer"]


class Timer(Protocol):
    """A call that is due later."""

    def cancel(self) -> None:
        """Forget the call; harmless when it was made already."""
        ...


class Alarm(Protocol):
    """A `threading.Event` whose waiting goes by a clock of the library; for code on threads of its own."""

    def set(self) -> None:
        """Wake whoever waits, now and from now on."""
        ...

    def wait(self, timeout: float, /) -> bool:
        """Block for so many seconds, or until it is set; whether it is."""
        ...


class Clock(Protocol):
    """The time that the library goes by."""

    @property
    def tolerance(self) -> float:
        """How many seconds too early, by the wall clock, a timer may be called."""
        ...

    def now(self) -> int:
        """The wall clock: microseconds since the epoch."""
        ...

    def boot(self) -> float:
        """The boot clock: seconds since some fixed moment, never going back."""
        ...

    async def sleep(self, seconds: float, *, housekeeping: bool = False) -> None:
        """Wait so many seconds; for `housekeeping` see the module."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], object], *, housekeeping: bool = False) -> Timer:
        """Call back on the running event loop after so many seconds; for `housekeeping` see the module."""
        ...

    def alarm(self) -> Alarm:
        """What a thread waits with."""
        ...

    def jitter(self) -> float:
        """A random number in [0, 1), for delays that are not to be in step."""
        ...


class SystemClock:
    """The machine's clocks and the event loop's timers."""

    @property
    def tolerance(self) -> float:
        """The event loop's clock and the wall clock differ by less than this over any delay."""
        return 0.001

    def now(self) -> int:
        """Microseconds since the epoch."""
        return time.time_ns() // 1000

    def boot(self) -> float:
        """Seconds on the clock that counts through suspension where the system has one (Linux)."""
        return _boot_clock()

    async def sleep(self, seconds: float, *, housekeeping: bool = False) -> None:
        """Sleep on the event loop."""
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[], object], *, housekeeping: bool = False) -> Timer:
        """`loop.call_later`."""
        return asyncio.get_running_loop().call_later(seconds, callback)

    def alarm(self) -> Alarm:
        """A `threading.Event`."""
        return threading.Event()

    def jitter(self) -> float:
        """`random.random()`."""
        return random.random()


def _boot_clock() -> float:
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Deadline:
    """`async with Deadline(clock, seconds)`: the body is cancelled when the time is up, and TimeoutError raised.

    The standard `asyncio.timeout` with its timer on the library's clock.
    """

    __slots__ = ("_clock", "_seconds", "_timeout", "_timer")

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._timeout = asyncio.timeout(None)
        self._timer: Timer | None = None

    @property
    def expired(self) -> bool:
        """Whether it was this deadline that ended the body."""
        return self._timeout.expired()

    async def __aenter__(self) -> Deadline:
        await self._timeout.__aenter__()
        self._timer = self._clock.call_later(self._seconds, self._expire)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _expire(self) -> None:
        self._timeout.reschedule(asyncio.get_running_loop().time())
