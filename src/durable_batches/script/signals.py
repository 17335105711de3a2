"""SIGINT and SIGTERM as requests to stop a script gracefully."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Callable
from typing import Any, Self

from durable_batches.blocks import asynccontextmanager
from durable_batches.exit_watch import watch_exit
from durable_batches.stop_signals import Precedence, StopListener, StopSignal
from durable_batches.tasks import tell_loop
from durable_batches.worker.worker import Worker

__all__ = ["StopSignals"]


class StopSignals:
    """Counts the signals that ask the process to stop, in place of what was done at them; the third one ends it.

    Outside of the main thread no signal is counted; see `StopListener`.
    """

    def __init__(self) -> None:
        self._listener = StopListener(self._receive, Precedence.OVER_ALL)
        self._received: list[int] = []
        self._arrived = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Self:
        self._listener.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.leave()

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

    @property
    def count(self) -> int:
        """How many were received."""
        return len(self._received)

    async def wait_for(
        self, work: asyncio.Task[Any], *, after: int = 0, stop: Callable[[], object] | None = None
    ) -> None:
        """Wait for the end of the task; cancel it when a signal is received, or was received before.

        Args:
            work: The task.
            after: How many signals are not meant: those that were received before it was begun, say.
            stop: Called first then: the task may take its time to end.
        """
        received = asyncio.create_task(self.received(after + 1))
        try:
            await asyncio.wait([work, received], return_when=asyncio.FIRST_COMPLETED)
            if received.done() and stop is not None:
                stop()
        finally:
            work.cancel()
            received.cancel()
            await asyncio.wait([work, received])

    @asynccontextmanager
    async def ending_drain(self, worker: Worker) -> AsyncGenerator[None]:
        """Within the block, the second signal ends the worker's drain; after it, the process ends at any signal."""
        task = asyncio.create_task(self._end_drain(worker))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            if self._received:
                self.exits(self.exit_code)

    def exits(self, code: int) -> None:
        """Have the process end with this code, also where a thread is left that never ends; see `watch_exit`."""
        watch_exit(code, asyncio.get_running_loop())

    async def _end_drain(self, worker: Worker) -> None:
        await self.received(2)
        worker.end_drain()

    def _receive(self, received: StopSignal) -> None:
        self._received.append(received.number)
        if self._loop is not None:
            tell_loop(self._loop, self._arrived.set)
