"""SIGINT and SIGTERM as requests to stop gracefully."""

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
_FORCED: Final = 3
"""The signal of this number ends the process at once."""

_ECHO_SECONDS: Final = 0.5
"""A signal that follows this soon is not counted: `timeout` and others signal the process and its group."""


class StopSignals:
    """Counts the signals that ask the process to stop; the third one ends it.

    The previous handlers are restored at the end. Only a process's main thread can have handlers; in another thread
    no signal is counted. A signal that the process ignores (`nohup`, a shell's background job) stays ignored.
    """

    def __init__(self) -> None:
        self._clock = SystemClock()
        self._received: list[int] = []
        self._latest = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._arrived = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _NUMBERS:
                before = signal.getsignal(number)
                # None: a handler that was not installed from Python, and could not be restored.
                if before not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    @property
    def name(self) -> str:
        """The name of the first signal."""
        return signal.Signals(self._received[0]).name

    @property
    def exit_code(self) -> int:
        """The exit code that shells give to a process that the first signal has ended."""
        return 128 + self._received[0]

    async def received(self, count: int = 1) -> None:
        """Wait until this many signals were received, counted from the beginning."""
        self._loop = asyncio.get_running_loop()
        while len(self._received) < count:
            self._arrived.clear()
            await self._arrived.wait()

    async def wait_for(self, work: asyncio.Task[Any]) -> None:
        """Wait for the end of the task; cancel it when a signal is received, or was received before."""
        received = asyncio.create_task(self.received())
        try:
            await asyncio.wait([work, received], return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            received.cancel()
            await asyncio.wait([work, received])

    @asynccontextmanager
    async def ending_drain(self, worker: Worker) -> AsyncGenerator[None]:
        """Within the block, the second signal ends the worker's drain."""
        task = asyncio.create_task(self._end_drain(worker))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _end_drain(self, worker: Worker) -> None:
        await self.received(2)
        worker.end_drain()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        # Called between two instructions of the main thread, also while the event loop is blocked.
        now = self._clock.boot()
        if self._received and now - self._latest < _ECHO_SECONDS:
            return
        self._latest = now
        self._received.append(number)
        if len(self._received) >= _FORCED:
            os._exit(128 + number)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._arrived.set)
