"""A clock that a test moves for all of its processes: the real one, set forward by what a file says."""

from __future__ import annotations

import asyncio
import mmap
import struct
import threading
from pathlib import Path
from typing import Final

from durable_batches.clock import Alarm, SystemClock

_SIZE: Final = struct.calcsize("d")


class SharedClock(SystemClock):
    """The machine's clocks, some seconds later. Timers and alarms go by the real one.

    Args:
        path: The file with the seconds; made where there is none. All processes that open it share it.
    """

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        with path.open("a+b") as file:
            file.truncate(_SIZE)
            self._shared = mmap.mmap(file.fileno(), _SIZE)

    @property
    def shift(self) -> float:
        """Seconds that it is ahead."""
        found: float = struct.unpack("d", self._shared[:])[0]
        return found

    def advance(self, seconds: float) -> None:
        """Set it forward, in all processes."""
        self._shared[:] = struct.pack("d", self.shift + seconds)

    def now(self) -> int:
        """See `Clock.now`."""
        return super().now() + int(self.shift * 1_000_000)

    def boot(self) -> float:
        """See `Clock.boot`."""
        return super().boot() + self.shift


class HastyAlarm:
    """An alarm that never waits long."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """See `Alarm.set`."""
        self._event.set()

    def wait(self, timeout: float, /) -> bool:
        """See `Alarm.wait`."""
        return self._event.wait(min(timeout, 0.005))


class HastyClock(SystemClock):
    """The machine's clocks; but who waits on a thread, as the lease renewer does, goes on at once."""

    def alarm(self) -> Alarm:
        """See `Clock.alarm`."""
        return HastyAlarm()


class LeaseClock(HastyClock):
    """A hasty one, whose boot clock a test sets forward, and whose housekeeping is done all the time."""

    shift = 0.0

    def boot(self) -> float:
        """See `Clock.boot`."""
        return super().boot() + self.shift

    async def sleep(self, seconds: float, *, housekeeping: bool = False) -> None:
        """See `Clock.sleep`."""
        await super().sleep(min(seconds, 0.02) if housekeeping else seconds)


class StillClock(SystemClock):
    """The machine's clocks, without housekeeping: who goes by it never looks around."""

    async def sleep(self, seconds: float, *, housekeeping: bool = False) -> None:
        """See `Clock.sleep`."""
        if housekeeping:
            await asyncio.Event().wait()
        await super().sleep(seconds)
