"""One thread with one connection: everything that touches the file happens on one of these.

A hop costs a queue and a callback, and no executor's bookkeeping. Once begun, work is seen through: a caller that is
cancelled meanwhile waits for its end, and so does an interpreter that exits.
"""

from __future__ import annotations

import asyncio
import atexit
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Concatenate, Final, ParamSpec, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from durable_batches.errors import StoreUnavailableError
from durable_batches.stores.ended import ThreadEndedError
from durable_batches.stores.sqlite.connection import connect, translated
from durable_batches.tasks import completed, tell_loop

__all__ = ["ConnectionThread"]

P = ParamSpec("P")
T = TypeVar("T")

_Work: TypeAlias = tuple[Callable[[], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]
_Queue: TypeAlias = "SimpleQueue[_Work | None]"

_running: Final[WeakKeyDictionary[Thread, _Queue]] = WeakKeyDictionary()
"""The threads that an exiting interpreter ends: each is a daemon, or a store that nobody closed would keep it from
exiting, but none is cut off in the middle of a transaction."""


@atexit.register
def _end_all() -> None:
    for thread, queue in list(_running.items()):
        queue.put(None)
        thread.join()


class ConnectionThread:
    """A thread that owns a connection, for any event loop of the process.

    Args:
        purpose: What it is for, as its name says.
        path: The file.
        settings: Statements that set more than the store does; see `connect`.
    """

    def __init__(self, purpose: str, path: Path, settings: Sequence[str] = ()) -> None:
        self._path = path
        self._settings = settings
        self._queue: _Queue = SimpleQueue()
        self._thread = Thread(target=_work_off, args=(self._queue,), name=f"durable-batches-{purpose}", daemon=True)
        self._connection: sqlite3.Connection | None = None

    async def start(self, *, create: bool = True) -> None:
        """Start the thread, and open the connection there; `create`: make the file where there is none.

        Raises:
            StoreUnavailableError: Or a kin of it: the file cannot be opened.
        """
        self._thread.start()
        _running[self._thread] = self._queue

        def call() -> None:
            # On the thread, so that it is there to be closed when the caller was cancelled meanwhile.
            self._connection = connect(self._path, create=create, settings=self._settings)

        await self._hop(call)

    async def run(self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run it on the thread, with the connection; what the driver raises is translated.

        Raises:
            StoreUnavailableError: The thread was stopped, or the driver says so.
        """
        connection = self._connection
        if connection is None:
            raise StoreUnavailableError(f"the database {self._path} was closed while it was in use")

        def call() -> T:
            with translated(self._path):
                return work(connection, *args, **kwargs)

        return await self._hop(call)

    async def stop(self) -> None:
        """Finish what was begun, close the connection, and end the thread. One that never started is ended already."""
        if not self._thread.is_alive():
            return
        connection, self._connection = self._connection, None
        try:
            if connection is not None:
                await self._hop(connection.close)
        finally:
            # Its queue is empty: it ends at once, and has ended when this returns.
            self._queue.put(None)
            self._thread.join()

    async def _hop(self, call: Callable[[], T]) -> T:
        if not self._thread.is_alive():
            raise ThreadEndedError(str(self._path))
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._queue.put((call, done, loop))
        return await completed(done)


def _work_off(queue: _Queue) -> None:
    while (work := queue.get()) is not None:
        call, done, loop = work
        result, error = None, None
        try:
            result = call()
        except BaseException as raised:  # noqa: BLE001  (the caller's)
            error = raised
        tell_loop(loop, _settle, done, result, error)
        # While it waits for more, it keeps nothing of this alive.
        del work, call, done, loop, result, error


def _settle(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if done.cancelled():
        return
    if error is None:
        done.set_result(result)
    elif isinstance(error, StopIteration):
        # A future takes any other exception; for this one its caller would wait for ever.
        stopped = RuntimeError("the work on a connection raised StopIteration")
        stopped.__cause__ = error
        done.set_exception(stopped)
    else:
        done.set_exception(error)
