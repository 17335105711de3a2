"""Additions to asyncio: a lock that outlives its loop, tasks that are awaited despite cancellation, and no loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

__all__ = [
    "ReusableLock",
    "completed",
    "is_closed_by",
    "leave_to_itself",
    "loop_is_running",
    "run_without_loop",
    "seen_through",
]

T = TypeVar("T")


class ReusableLock:
    """An `asyncio.Lock` for objects that are used in several event loops one after another, such as module variables.

    The standard one stays bound to the first loop in which a task had to wait for it.
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
    """Await an operation that must complete once it has started, and return its result.

    Cancellations that arrive meanwhile, also several, are raised when it has completed.
    """
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await _ended(future)
        if not future.cancelled():
            future.exception()  # retrieved, so that asyncio does not log it as never retrieved
        raise


async def seen_through(task: asyncio.Task[None]) -> None:
    """Wait until a task has ended, whatever it raises. A cancellation that arrives meanwhile is raised afterwards.

    A task that was cancelled has ended as well.
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


def leave_to_itself(task: asyncio.Task[Any]) -> None:
    """Have `asyncio.run()` not wait, once the program is over, for a task that does not end though it was cancelled."""
    # It has no bound for that. The function is documented for those who implement tasks of their own.
    asyncio._unregister_task(task)  # pyright: ignore[reportPrivateUsage]


def is_closed_by(error: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """Whether this error closes a coroutine of a task that no event loop runs any more, and which must not await.

    A GeneratorExit that is raised while the task runs is an error of its own code like any other.
    """
    if not isinstance(error, GeneratorExit):
        return False
    try:
        return asyncio.current_task() is not task
    except RuntimeError:
        return True


def loop_is_running() -> bool:
    """Whether an event loop runs in this thread, which a call that blocks would hold up."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def run_without_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end that never suspends, where there need be no event loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} has suspended, and there is no event loop to resume it")
