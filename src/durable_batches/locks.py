"""A lock that outlives the event loop."""

from __future__ import annotations

import asyncio
from types import TracebackType

__all__ = ["ReusableLock"]


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
