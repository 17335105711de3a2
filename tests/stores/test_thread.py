"""The thread that owns a connection: what is begun there is seen through, whoever waits for it and however long."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support import within

from durable_batches.errors import FactRejectedError, StoreUnavailableError
from durable_batches.stores.sqlite.thread import ConnectionThread


@pytest.fixture
async def thread(tmp_path: Path) -> AsyncIterator[ConnectionThread]:
    thread = ConnectionThread("test", tmp_path / "thread.db")
    await thread.start()
    await thread.run(lambda connection: connection.execute("CREATE TABLE step (number INTEGER)"))
    yield thread
    await thread.stop()


def insert(connection: sqlite3.Connection, number: int) -> None:
    connection.execute("INSERT INTO step VALUES (?)", (number,))


def steps(connection: sqlite3.Connection) -> list[int]:
    return [number for (number,) in connection.execute("SELECT number FROM step ORDER BY rowid")]


async def test_work_is_done_in_the_order_in_which_it_came(thread: ConnectionThread) -> None:
    names = await asyncio.gather(*(thread.run(lambda _: threading.current_thread().name) for _ in range(3)))
    await asyncio.gather(*(thread.run(insert, number) for number in range(50)))
    assert await thread.run(steps) == list(range(50))
    assert set(names) == {"durable-batches-test"}


async def test_a_cancelled_caller_waits_for_the_end(thread: ConnectionThread) -> None:
    go_on = threading.Event()

    def work(connection: sqlite3.Connection) -> None:
        go_on.wait()
        insert(connection, 1)

    caller = asyncio.create_task(thread.run(work))
    await asyncio.sleep(0)
    for _ in range(3):
        caller.cancel()
        await asyncio.sleep(0)
    assert not caller.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await within(caller)
    assert await thread.run(steps) == [1]


async def test_a_caller_that_is_cancelled_is_not_told_of_an_error(
    thread: ConnectionThread, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = threading.Event()

    def work(_: sqlite3.Connection) -> None:
        go_on.wait()
        raise ValueError("nobody hears this")

    caller = asyncio.create_task(thread.run(work))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await within(caller)
    del caller
    gc.collect()
    assert not caplog.records
    await thread.run(insert, 2)


class BaseError(BaseException):
    """Not an `Exception`, as what the interpreter itself raises."""


@pytest.mark.parametrize("error", [ValueError("no"), BaseError(), asyncio.CancelledError()])
async def test_the_caller_gets_the_exception_and_the_thread_goes_on(
    thread: ConnectionThread, error: BaseException
) -> None:
    def work(_: sqlite3.Connection) -> None:
        raise error

    waiting = asyncio.ensure_future(asyncio.shield(thread.run(work)))
    with pytest.raises(type(error)):
        await within(waiting)
    await thread.run(insert, 1)
    assert await thread.run(steps) == [1]


async def test_an_exception_that_no_future_takes_is_told_all_the_same(thread: ConnectionThread) -> None:
    def work(_: sqlite3.Connection) -> None:
        raise StopIteration(3)

    with pytest.raises(RuntimeError, match="StopIteration") as raised:
        await within(thread.run(work))
    assert isinstance(raised.value.__cause__, StopIteration)


async def test_what_the_driver_raises_is_translated(thread: ConnectionThread) -> None:
    with pytest.raises(FactRejectedError, match="cannot store a value"):
        await thread.run(insert, 1 << 63)


async def test_nothing_of_finished_work_is_kept_alive(thread: ConnectionThread) -> None:
    class Work:
        def __call__(self, _: sqlite3.Connection) -> Work:
            return self

    work = Work()
    gone = weakref.ref(work)
    assert await thread.run(work) is work
    del work
    # The thread has let go of it at the latest when it is at the next.
    await thread.run(insert, 1)
    await asyncio.sleep(0)
    gc.collect()
    assert gone() is None


async def test_stopping_finishes_what_was_begun_and_refuses_what_comes_after(tmp_path: Path) -> None:
    thread = ConnectionThread("stopped", tmp_path / "thread.db")
    await thread.start()
    await thread.run(lambda connection: connection.execute("CREATE TABLE step (number INTEGER)"))
    begun = [asyncio.create_task(thread.run(insert, number)) for number in range(20)]
    await asyncio.sleep(0)
    await asyncio.gather(thread.stop(), *begun)
    with pytest.raises(StoreUnavailableError, match="was closed while it was in use"):
        await thread.run(insert, 99)
    await thread.stop()  # once too often is harmless
    assert "durable-batches-stopped" not in {alive.name for alive in threading.enumerate()}
    connection = sqlite3.connect(tmp_path / "thread.db")
    assert steps(connection) == list(range(20))
    connection.close()


async def test_one_that_an_exiting_interpreter_has_ended_answers(thread: ConnectionThread) -> None:
    thread._queue.put(None)
    thread._thread.join()
    with pytest.raises(StoreUnavailableError, match="has ended: this process was forked"):
        await within(thread.run(steps))


async def test_one_that_never_started_can_be_stopped(tmp_path: Path) -> None:
    before = threading.active_count()
    await within(ConnectionThread("never", tmp_path / "thread.db").stop())
    assert threading.active_count() == before


async def test_one_that_could_not_open_its_file_is_ended(tmp_path: Path) -> None:
    thread = ConnectionThread("failed", tmp_path)
    with pytest.raises(StoreUnavailableError):
        await thread.start()
    await within(thread.stop())
    assert "durable-batches-failed" not in {alive.name for alive in threading.enumerate()}


def test_a_loop_that_is_closed_holds_nobody_up(tmp_path: Path) -> None:
    thread = ConnectionThread("loops", tmp_path / "thread.db")
    go_on = threading.Event()
    reached = threading.Event()

    async def leave() -> None:
        await thread.start()
        await thread.run(lambda connection: connection.execute("CREATE TABLE step (number INTEGER)"))

        def work(connection: sqlite3.Connection) -> None:
            reached.set()
            go_on.wait()
            insert(connection, 1)

        # As a loop that is stopped, and not ended by `asyncio.run`, leaves its tasks.
        loop = asyncio.get_running_loop()
        left.append(asyncio.ensure_future(thread.run(work)))
        loop.call_soon(loop.stop)

    async def come_back() -> list[int]:
        found = await within(thread.run(steps))
        await thread.stop()
        return found

    left: list[asyncio.Future[None]] = []
    loop = asyncio.new_event_loop()
    first = loop.create_task(leave())
    loop.run_forever()
    while not left:
        loop.run_forever()
    reached.wait()
    # The task is gone with its loop, as far as asyncio is concerned.
    left[0]._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    go_on.set()
    assert asyncio.run(come_back()) == [1]
    assert first.done()


PROGRAM = """
import asyncio, sys, time
from pathlib import Path
from durable_batches.stores.sqlite.thread import ConnectionThread

def slowly(connection):
    connection.execute("CREATE TABLE step (number INTEGER)")
    connection.execute("BEGIN IMMEDIATE")
    for number in range(3):
        connection.execute("INSERT INTO step VALUES (?)", (number,))
        begun.set()
        time.sleep(0.05)
    connection.execute("COMMIT")

async def main():
    thread = ConnectionThread("exiting", Path(sys.argv[1]))
    await thread.start()
    loop = asyncio.get_running_loop()
    task = loop.create_task(thread.run(slowly))
    task._log_destroy_pending = False
    await asyncio.to_thread(begun.wait)
    loop.stop()
    await asyncio.sleep(3600)

import threading
begun = threading.Event()
loop = asyncio.new_event_loop()
main_task = loop.create_task(main())
main_task._log_destroy_pending = False
loop.run_forever()
print("the interpreter exits now", flush=True)
"""


@pytest.mark.processes
def test_an_interpreter_that_exits_finishes_what_was_begun(tmp_path: Path) -> None:
    path = tmp_path / "thread.db"
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "the interpreter exits now\n"), ended.stderr
    connection = sqlite3.connect(path)
    assert steps(connection) == [0, 1, 2]
    connection.close()
