"""What asyncio lacks: a lock that outlives its event loop, and a task that is seen through to its end."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TypeVar

__all__ = ["ReusableLock", "completed", "seen_through"]

T = TypeVar("T")


class ReusableLock:
    """An `asyncio.Lock` for objects that serve one event loop after the other, as those at a module's top do.

    The standard one stays bound to the first loop in which somebody had to wait for it.
    """

    __slots__ = ("_lock", "_loop")

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._lock, self._loop = asyncio.Lock(), loop
        await self._lock.acquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


async def completed(future: asyncio.Future[T]) -> T:
    """The result of what must not be left alone once it has begun.

    Cancellations that arrive meanwhile, also several, are passed on when it has ended.
    """
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await _ended(future)
        if not future.cancelled():
            future.exception()  # so that nobody is told of it who could do nothing about it
        raise


async def seen_through(task: asyncio.Task[None]) -> None:
    """Await a task's end, whatever it raises; a cancellation that arrives meanwhile is passed on when it has come.

    A task that was cancelled itself has ended, too.
    """
    cancelled = await _ended(task)
    if not task.cancelled():
        task.result()
    if cancelled is not None:
        raise cancelled


async def _ended(future: asyncio.Future[T]) -> asyncio.CancelledError | None:
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled
