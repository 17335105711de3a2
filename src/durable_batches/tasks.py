"""Additions to asyncio: a lock that outlives its loop, tasks that are awaited despite cancellation, and no loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

__all__ = [
    "NotBegun",
    "ReusableLock",
    "completed",
    "is_closed_by",
    "leave_to_itself",
    "loop_is_running",
    "run_without_loop",
    "running_loop",
    "seen_through",
    "tell_loop",
    "thread_ended",
    "wake",
]


class NotBegun(asyncio.CancelledError):
    """Ends the block of a call that has not begun: it waits again, nothing was used, and nothing is known of it.

    What does not know it may take it for a call that was cancelled.
    """


T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_LOOK_SECONDS: Final = 0.1
"""How often a task looks whether the event loop that holds a lock runs yet."""


class ReusableLock:
    """A lock among tasks for objects that are used in several event loops, such as module variables: also at once.

    `asyncio.Lock` stays bound to the first loop in which a task had to wait for it. What is left locked by an event
    loop that runs no more, or by the process that this one was forked from, is free.
    """

    __slots__ = ("_guard", "_holder", "_process", "_waiting")

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._holder: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._waiting: list[asyncio.Future[None]] = []

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()
        while (freed := self._lock_or_wait(loop)) is not None:
            try:
                # An event loop that ends while it holds the lock says nothing; of its own, nobody waits then.
                await asyncio.wait([freed], timeout=None if self._holder is loop else _LOOK_SECONDS)
            finally:
                with self._guard:
                    if freed in self._waiting:
                        self._waiting.remove(freed)

    def _lock_or_wait(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None] | None:
        """Lock it for a task of this event loop, or return what to wait for before the next attempt."""
        with self._guard:
            holder = self._holder
            if holder is None or not holder.is_running() or self._process != os.getpid():
                self._holder, self._process = loop, os.getpid()
                return None
            freed = loop.create_future()
            self._waiting.append(freed)
            return freed

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._guard:
            if self._holder is not asyncio.get_running_loop():
                # It was taken for one that had stopped.
                return
            self._holder = None
            waiting, self._waiting = self._waiting, []
        for freed in waiting:
            wake(freed)


def wake(future: asyncio.Future[None]) -> None:
    """Set a future's result, unless it has one; the caller may run in another event loop, or in none."""
    loop = future.get_loop()
    if loop is running_loop():
        _set(future)
        return
    tell_loop(loop, _set, future)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def tell_loop(loop: asyncio.AbstractEventLoop, call: Callable[[Unpack[Ts]], object], *values: *Ts) -> bool:
    """Have an event loop make a call, from any thread; return False if it is closed, and nobody waits there."""
    try:
        loop.call_soon_threadsafe(call, *values)
    except RuntimeError:
        return False
    return True


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs on this thread; None: none does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


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


async def thread_ended(thread: threading.Thread) -> None:
    """Wait until a thread has ended.

    Not on a thread of the event loop's own, as `asyncio.to_thread` does: user code may have all of those hang.
    """
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def join() -> None:
        thread.join()
        wake(ended)

    waiting = threading.Thread(target=join, name=f"{thread.name} ends", daemon=True)
    waiting.start()
    await ended
    # It ends at this moment: nothing is left of it.
    waiting.join()


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
