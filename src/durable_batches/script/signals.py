"""SIGINT and SIGTERM as requests to stop, rather than as ends."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any, Final, Self

from durable_batches.clock import SystemClock
from durable_batches.worker.worker import Worker

__all__ = ["StopSignals"]

_NUMBERS: Final = (signal.SIGINT, signal.SIGTERM)
_TOO_MANY: Final = 3
"""So many say that the good order takes too long, or does not come to its end."""

_ECHO_SECONDS: Final = 0.5
"""What follows so soon is the same wish: `timeout` and others signal a process, and its group with it once more."""


class StopSignals:
    """Inside, the signals that say to stop are counted; what they mean is for the caller to say. A third one kills.

    The handlers of before are restored at the end. Only a process's main thread can have any; in another one there is
    nothing to count. A signal that the process was told to ignore (`nohup`, a shell's background job) stays ignored.
    """

    def __init__(self) -> None:
        self._clock = SystemClock()
        self._received: list[int] = []
        self._latest = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._came = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _NUMBERS:
                before = signal.getsignal(number)
                # None: one that was not installed from Python, and could not be restored.
                if before not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    @property
    def name(self) -> str:
        """What the first one is called."""
        return signal.Signals(self._received[0]).name

    @property
    def exit_code(self) -> int:
        """The code that shells give to what the first one has ended."""
        return 128 + self._received[0]

    async def told(self, times: int = 1) -> None:
        """Wait until so many have come; those of before count."""
        self._loop = asyncio.get_running_loop()
        while len(self._received) < times:
            self._came.clear()
            await self._came.wait()

    async def interrupting(self, work: asyncio.Task[Any]) -> None:
        """Wait for the work's end; cancel it when a signal comes, or has come before."""
        told = asyncio.create_task(self.told())
        try:
            await asyncio.wait([work, told], return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            told.cancel()
            await asyncio.wait([work, told])

    @asynccontextmanager
    async def hurrying(self, worker: Worker) -> AsyncGenerator[None]:
        """Within, a second signal ends the worker's drain."""
        task = asyncio.create_task(self._hurry(worker))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _hurry(self, worker: Worker) -> None:
        await self.told(2)
        worker.end_drain()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        # Between two instructions of whatever runs, be it the loop or something that blocks it.
        now = self._clock.boot()
        if self._received and now - self._latest < _ECHO_SECONDS:
            return
        self._latest = now
        self._received.append(number)
        if len(self._received) >= _TOO_MANY:
            os._exit(128 + number)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._came.set)
