"""Threads for sync activities.

Each thread is a daemon, so one that never ends does not keep the process from exiting. A call that is given up, because
it has timed out or was cancelled, leaves its thread behind: it no longer counts, so that calls that hang do not use up
the threads of others. All state belongs to the event loop; a thread only runs functions.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from typing import Any, Final, TypeAlias

from durable_batches.tasks import tell_loop

__all__ = ["Threads"]

_log = logging.getLogger("durable_batches")

_Run: TypeAlias = Callable[[Callable[[], Any]], Awaitable[Any]]


class Threads:
    """Threads that are started as they are needed, and used again.

    Args:
        most: Functions that run at once, those left behind not counted; further calls wait.
        left: Called with the number of threads that were left behind and still run, when it changes.
    """

    def __init__(self, most: int, left: Callable[[int], object] = lambda number: None) -> None:
        self._most = most
        self._tell_left = left
        self._idle: list[_Thread] = []
        self._busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._left: Counter[str] = Counter()
        self._next_logged = 1
        self._closed = False

    def one(self, name: str) -> _OneThread:
        """Wait for a thread, and yield what runs one function in it; `name` is that of the activity, for the log.

        Raises:
            RuntimeError: The system has no more threads.
        """
        return _OneThread(self, name)

    def close(self) -> None:
        """End the threads, each when it has nothing left to run."""
        self._closed = True
        while self._idle:
            self._idle.pop().end()

    # ---- slots -----------------------------------------------------------------------------------------------

    @property
    def are_busy(self) -> bool:
        """Whether one more function would have to wait."""
        return self._busy >= self._most

    async def wait_for_slot(self) -> None:
        """Wait until one more function may run, and count it."""
        if self._busy < self._most:
            self._busy += 1
            return
        slot = asyncio.get_running_loop().create_future()
        self._waiting.append(slot)
        try:
            await slot
        except BaseException:
            if slot.done() and not slot.cancelled():
                # It was given at the same moment: it is the next one's.
                self.free_slot()
            raise

    def free_slot(self) -> None:
        """Give a slot to the next call that waits for one."""
        while self._waiting:
            slot = self._waiting.popleft()
            if not slot.done():
                slot.set_result(None)
                return
        self._busy -= 1

    # ---- threads ---------------------------------------------------------------------------------------------

    def take(self) -> _Thread:
        """Take an idle thread, or start one."""
        return self._idle.pop() if self._idle else _Thread()

    def keep(self, thread: _Thread) -> None:
        """Keep a thread that runs nothing for the next call."""
        if self._closed or len(self._idle) >= self._most:
            thread.end()
        else:
            self._idle.append(thread)

    def leave(self, thread: _Thread, name: str, ended: asyncio.Future[None]) -> None:
        """Leave a thread behind that still runs a function; it is kept once that has ended."""
        self._left[name] += 1
        number = self._left.total()
        self._tell_left(number)
        if number >= self._next_logged:
            # For the first, and then each time that there are twice as many.
            self._next_logged = 2 * number
            _log.warning(
                "thread of activity %r goes on though its call was given up, as threads cannot be stopped; %d such "
                "thread%s: %s",
                name,
                number,
                "" if number == 1 else "s",
                ", ".join(f"{activity!r} {count}" for activity, count in self._left.most_common(5)),
                extra={"activity": name, "threads": number},
            )

        def has_ended(_: asyncio.Future[None]) -> None:
            self._left[name] -= 1
            self._left += Counter[str]()
            if not self._left:
                self._next_logged = 1
            self._tell_left(self._left.total())
            self.keep(thread)

        ended.add_done_callback(has_ended)


class _OneThread:
    """A thread for the length of a block.

    A class, because a context manager that is made of a generator assigns to the error that leaves its block, which a
    class of the user's may refuse.
    """

    def __init__(self, threads: Threads, name: str) -> None:
        self._threads = threads
        self._name = name
        self._thread: _Thread | None = None
        self._ended: asyncio.Future[None] | None = None

    async def __aenter__(self) -> _Run:
        await self._threads.wait_for_slot()
        try:
            self._thread = self._threads.take()
        except BaseException:
            self._threads.free_slot()
            raise
        return self._run

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._thread is not None
        self._threads.free_slot()
        if self._ended is None or self._ended.done():
            self._threads.keep(self._thread)
        else:
            self._threads.leave(self._thread, self._name, self._ended)

    async def _run(self, function: Callable[[], Any]) -> Any:
        assert self._thread is not None
        answer, self._ended = self._thread.run(function)
        return await answer


class _Thread:
    """A daemon thread that runs one function after another."""

    def __init__(self) -> None:
        self._work: Final = SimpleQueue[Callable[[], bool] | None]()
        threading.Thread(target=self._work_off, name="durable-batches-activity", daemon=True).start()

    def run(self, function: Callable[[], Any]) -> tuple[asyncio.Future[Any], asyncio.Future[None]]:
        """Run a function; return the future of its result, which may be cancelled, and that of its end."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        ended: asyncio.Future[None] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            ended.set_result(None)
            if answer.done():
                return
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)

        def work() -> bool:
            result, error = None, None
            try:
                result = function()
            except BaseException as raised:  # noqa: BLE001  (it is the caller's)
                error = raised
            # Of one that was closed nothing else comes.
            return tell_loop(loop, settle, result, error)

        self._work.put(work)
        return answer, ended

    def end(self) -> None:
        """Have the thread end when it has nothing left to run."""
        self._work.put(None)

    def _work_off(self) -> None:
        while (work := self._work.get()) is not None:
            if not work():
                return
            # Not held while it waits for the next one: a result may be large.
            del work
