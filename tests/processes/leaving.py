"""A program that leaves a thread or a process behind which never ends.

It is `python -m tests.processes.leaving HOST WAY STORE [cleanup]`.

With the WAY "none" its batch ends all the same, and it goes on.

It is told to stop by signals that it sends to itself. Its exit watch looks all the time, and counts its looks.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Literal

from tests.processes.clocks import HastyAlarm

from durable_batches import BatchOrchestrator, BatchStateMachine, Stage, Worker, durable_activity, run_batch, workflow
from durable_batches.clock import Alarm, SystemClock
from durable_batches.exit_watch import _LOOKS, _watch
from durable_batches.stop_signals import _switchboard
from durable_batches.stores import SQLiteStore

host, way, store, *rest = sys.argv[1:]
NUMBER = signal.SIGINT if host == "script" else signal.SIGTERM


class SignalClock(SystemClock):
    """A second after another: no signal is the echo of another one."""

    seconds = 0.0

    def boot(self) -> float:
        """See `Clock.boot`."""
        self.seconds += 1
        return self.seconds


class LookClock(SystemClock):
    """That of the exit watch."""

    looks = 0
    at: tuple[int, Callable[[], object]] | None = None

    def alarm(self) -> Alarm:
        """See `Clock.alarm`."""
        return LookAlarm()

    def after_patience(self, call: Callable[[], object]) -> None:
        """Call back, on the thread of the watch, when it has looked three times as often as its patience lasts."""
        self.at = (self.looks + 3 * _LOOKS, call)


class LookAlarm(HastyAlarm):
    """Counts how often it is waited with."""

    def wait(self, timeout: float, /) -> bool:
        """See `Alarm.wait`."""
        clock.looks += 1
        if clock.at is not None and clock.looks >= clock.at[0]:
            (_, call), clock.at = clock.at, None
            call()
        return super().wait(timeout)


clock = LookClock()
own = ThreadPoolExecutor(thread_name_prefix="own")
forks = get_context("fork")
kept: list[object] = []


class Working(Stage):
    tag: Literal["working"] = "working"


def never_ends(begun: threading.Event) -> None:
    begun.set()
    threading.Event().wait()


def never_ends_in_a_process(begun: Connection) -> None:
    begun.send(os.getpid())
    threading.Event().wait()


async def left_process() -> int:
    """Leave a process behind that never ends; return its id."""
    here, there = forks.Pipe(duplex=False)
    if way == "pool":
        pool = ProcessPoolExecutor(1, mp_context=forks)
        kept.extend([pool, asyncio.get_running_loop().run_in_executor(pool, never_ends_in_a_process, there)])
    else:
        process = forks.Process(target=never_ends_in_a_process, args=[there], name="left")
        process.start()
    begun: int = await asyncio.to_thread(here.recv)
    return begun


@durable_activity(stage=Working)
async def leaves_a_thread(document: str) -> str:
    if way == "none":
        signal.raise_signal(NUMBER)
        return document
    begun = threading.Event()
    loop = asyncio.get_running_loop()
    match way:
        case "queue":
            # Nobody reads from it.
            queue = forks.Queue()
            queue.put(bytes(1_000_000))
            kept.append(queue)
            begun.set()
        case "pool" | "process":
            print(await left_process(), flush=True)
            begun.set()
        case "to-thread":
            kept.append(asyncio.create_task(asyncio.to_thread(never_ends, begun)))
        case "executor":
            kept.append(loop.run_in_executor(None, never_ends, begun))
        case _:
            kept.append(loop.run_in_executor(own, never_ends, begun))
    await asyncio.sleep(0)
    begun.wait()
    # The second one ends the drain, which would take an hour.
    signal.raise_signal(NUMBER)
    await asyncio.sleep(0)
    signal.raise_signal(NUMBER)
    await asyncio.Event().wait()
    return document


@workflow(BatchStateMachine(Working), name="leaving")
async def leaving(document: str) -> str:
    return await leaves_a_thread(document)


def clean_up(what: str) -> None:
    """Take longer than the watch's patience, on the main thread."""
    patience_over = threading.Event()
    clock.after_patience(patience_over.set)
    patience_over.wait()
    print(f"cleaned up {what}")


async def clean_up_task() -> None:
    """The same as a task that is cancelled with the event loop, which turns meanwhile."""
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    loop, patience_over = asyncio.get_running_loop(), asyncio.Event()
    clock.after_patience(lambda: loop.call_soon_threadsafe(patience_over.set))
    await patience_over.wait()
    print("cleaned up a task")


async def serve() -> None:
    if rest:
        kept.append(asyncio.create_task(clean_up_task()))
    worker = Worker(SQLiteStore(store), drain=timedelta(hours=1), signals=True)
    try:
        async with BatchOrchestrator(leaving, worker=worker) as batches:
            await batches.submit(["document"], batch_id="batch")
            await batches.result("batch")
    finally:
        if rest:
            clean_up("in the event loop")


if __name__ == "__main__":
    _switchboard.clock = SignalClock()
    _watch.clock = clock
    if host == "script":
        run_batch(leaving, ["document"], store=store, drain=timedelta(hours=1), progress=False)
        # Not reached where the batch was stopped. The interpreter waits for the thread.
        threading.Thread(target=clean_up, args=["after the batch"]).start()
    else:
        try:
            asyncio.run(serve())
        finally:
            if rest:
                clean_up("after the event loop")
