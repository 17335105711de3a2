"""The store's own thread: an event loop beside the host's, which user code cannot block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from durable_batches.stores.ended import ThreadEndedError
from durable_batches.tasks import completed, thread_ended

__all__ = ["LoopThread"]

T = TypeVar("T")


class LoopThread:
    """An event loop on a thread of its own. Made and stopped on the host's loop.

    Args:
        name: The thread's.
        where: The database that it is for, for errors.
    """

    def __init__(self, name: str, where: str) -> None:
        self._where = where
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start the work there, and return its future: for a thread, or for a loop through `asyncio.wrap_future`.

        Raises:
            ThreadEndedError: Nothing runs there any more.
        """
        if not self._thread.is_alive():
            work.close()
            raise ThreadEndedError(self._where)
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the work there. Once begun it is seen through: a cancelled caller waits for its end."""
        return await completed(asyncio.wrap_future(self.start(work)))

    async def stop(self) -> None:
        """End the loop, on which nothing of ours is left to do, and the thread."""
        if not self._thread.is_alive():
            return
        try:
            await self.run(_end_what_is_left())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
        await thread_ended(self._thread)


async def _end_what_is_left() -> None:
    """What the driver still had to say: it asks a server that does not answer to cancel what it was asked for."""
    while left := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in left:
            task.cancel()
        await asyncio.wait(left)
    # Connections that were cut off say so to their owners in the loop's next turn.
    await asyncio.sleep(0)
