"""Attempts that are asleep within a client that retries by itself are warned of, each activity once; no others are."""

from __future__ import annotations

import asyncio
import dis
import logging
import sys
import sysconfig
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from operator import methodcaller
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support import NO_DRAIN, STAGES, eventually, moving, turns

from durable_batches import BatchOrchestrator, MemoryStore, RetryPolicy, Worker, durable_activity, workflow
from durable_batches.runtime.call import RunningCall
from durable_batches.testing import ManualClock
from durable_batches.worker.client_retries import ClientRetries

AFTER = timedelta(seconds=10)


def installed(file: str, source: str, **names: object) -> dict[str, Any]:
    """Run the source of a module of an installed package; an absolute path is that of other code."""
    module: dict[str, Any] = {"__name__": file.removesuffix(".py").replace("/", "."), **names}
    exec(compile(source, Path(sysconfig.get_path("purelib"), file), "exec"), module)
    return module


BETWEEN = installed(
    "anyio/_backends/_asyncio.py", "async def sleep(delay): await asyncio.sleep(delay)", asyncio=asyncio
)
"""What several clients have between them and the event loop."""

CLIENTS = {
    "openai": (
        "openai/_base_client.py",
        """
async def call(seconds): return await request(seconds)
async def request(seconds): await _sleep_for_retry(seconds)
async def _sleep_for_retry(seconds): await between.sleep(seconds)
""",
    ),
    "cohere": (
        "cohere/core/http_client.py",
        """
async def call(seconds, retries=0):
    if _should_retry():
        await asyncio.sleep(seconds)
        await call(seconds, retries=retries + 1)
def _should_retry(): return True
""",
    ),
    "tenacity": (
        "tenacity/asyncio/__init__.py",
        """
class AsyncRetrying:
    def __aiter__(self): return self
    async def __anext__(self): await asyncio.sleep(self.seconds)
async def call(seconds):
    attempts = AsyncRetrying()
    attempts.seconds = seconds
    async for attempt in attempts: pass
""",
    ),
}

OTHERS = {
    "a library that polls": ("openai/resources/files.py", "async def call(seconds): await asyncio.sleep(seconds)"),
    "a library that waits for something else": (
        "openai/_base_client.py",
        "async def call(seconds, retries=0): await asyncio.Event().wait()",
    ),
    "a library that retries what another one sleeps in": (
        "openai/_base_client.py",
        "async def call(seconds, retries=0): await poll(seconds)",
    ),
}


async def own_code(seconds: float, retries: int = 0) -> None:
    await asyncio.sleep(seconds)


def call_of(name: str) -> Callable[[float], Any]:
    file, source = (CLIENTS | OTHERS)[name]
    poll = installed("polling/jobs.py", "async def poll(seconds): await asyncio.sleep(seconds)", asyncio=asyncio)
    call: Callable[[float], Any] = installed(
        file, source, asyncio=asyncio, between=SimpleNamespace(**BETWEEN), poll=poll["poll"]
    )["call"]
    return call


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno == logging.WARNING]


class Scene:
    """What looks, on a clock that stands still, at calls that a test makes."""

    def __init__(self, after: timedelta | None = AFTER) -> None:
        self.clock = ManualClock()
        self.calls: list[RunningCall] = []
        self._retries = ClientRetries(self.clock, after=after, running=self._running)

    def _running(self) -> Any:
        execution = SimpleNamespace(batch_id="b", document_id="d")
        return [SimpleNamespace(attempt=SimpleNamespace(execution=execution, calls=self.calls))]

    def look(self, *pauses: float) -> None:
        """Look after each of these pauses, in seconds."""
        for seconds in pauses:
            self.clock.advance(seconds)
            self._retries.look()

    @asynccontextmanager
    async def calling(self, call: Any, activity: str = "ask", thread: int | None = None) -> AsyncGenerator[None]:
        """Within: a task makes this call, and waits in it."""
        task = asyncio.create_task(call)
        self.calls.append(RunningCall(task, "key", 2, activity, self.clock.boot(), is_bounded=True, thread=thread))
        await turns(5)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            self.calls.pop()


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_client_that_sleeps_for_long_is_named(client: str, caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    async with scene.calling(call_of(client)(40.0)):
        scene.look(2)
    (warning,) = warnings(caplog)
    assert warning.getMessage() == (
        f"activity 'ask' in document 'd' of batch 'b': its attempt 2 is asleep for 40 s within {client!r}, which "
        "retries by itself: the document keeps its slot meanwhile, and the library can neither wait nor give up in its "
        "place. Turn these retries off: https://example.org/durable-batches/how-to/turn-off-client-retries/"
    )
    told = {"activity": "ask", "package": client, "sleep_seconds": 40.0, "attempt": 2, "document_id": "d"}
    assert told.items() <= warning.__dict__.items()


@pytest.mark.parametrize("other", OTHERS)
async def test_what_is_no_clients_sleep_is_not_named(other: str, caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    async with scene.calling(call_of(other)(40.0)):
        scene.look(2, 20, 20)
    assert not warnings(caplog)


async def test_own_code_may_sleep(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    async with scene.calling(own_code(40.0)):
        scene.look(2, 20, 20)
    assert not warnings(caplog)


async def test_short_sleeps_one_after_another_are_no_long_one(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    async with scene.calling(call_of("openai")(9.9)):
        scene.look(2, 20, 20)
    assert not warnings(caplog)


async def test_each_activity_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    call = call_of("openai")
    async with scene.calling(call(40.0)), scene.calling(call(40.0)), scene.calling(call(50.0), "tell"):
        scene.look(2, 20, 20)
    assert [warning.__dict__["activity"] for warning in warnings(caplog)] == ["ask", "tell"]


async def test_looks_are_few_and_none_where_none_is_wanted(caplog: pytest.LogCaptureFixture) -> None:
    scene, unwanted = Scene(), Scene(after=None)
    scene.look(0.1)
    call = call_of("openai")
    async with scene.calling(call(40.0)), unwanted.calling(call(40.0)):
        scene.look(1.8)
        unwanted.look(100)
        assert not warnings(caplog)
        scene.look(0.2)
    assert len(warnings(caplog)) == 1


# ---- threads -------------------------------------------------------------------------------------------------------


class Sleeper:
    """A client on a thread of its own, which sleeps until it is woken: from then on in another sleep."""

    def __init__(self, file: str, function: str) -> None:
        self._naps = [threading.Lock(), threading.Lock()]
        for nap in self._naps:
            nap.acquire()
        # Like `time.sleep`, it has no frame of its own.
        time = SimpleNamespace(sleep=methodcaller("acquire"))
        source = f"def {function}():\n time.sleep(naps[0])\n time.sleep(naps[1])"
        module = installed(file, source, naps=self._naps, time=time)
        code = module[function].__code__
        self._sleeps = [each.offset for each in dis.get_instructions(code) if each.opname == "CALL"]
        self._thread = threading.Thread(target=module[function], daemon=True)
        self._thread.start()
        assert self._thread.ident is not None
        self.thread: int = self._thread.ident

    async def is_asleep(self, nap: int) -> None:
        await eventually(lambda: sys._current_frames()[self.thread].f_lasti == self._sleeps[nap])

    def wake(self, nap: int) -> None:
        self._naps[nap].release()

    def join(self) -> None:
        self._thread.join()


async def waits() -> None:
    await asyncio.Event().wait()


async def test_a_sync_client_that_sleeps_for_long_is_named(caplog: pytest.LogCaptureFixture) -> None:
    sleeper = Sleeper("botocore/endpoint.py", "_needs_retry")
    scene = Scene()
    async with scene.calling(waits(), thread=sleeper.thread):
        await sleeper.is_asleep(0)
        scene.look(2, 2, 2, 2)
        sleeper.wake(0)
        await sleeper.is_asleep(1)
        # It is another sleep.
        scene.look(2, 2, 2, 2, 2)
        assert not warnings(caplog)
        scene.look(2)
        sleeper.wake(1)
        sleeper.join()
        scene.look(20)
    (warning,) = warnings(caplog)
    assert (warning.__dict__["package"], warning.__dict__["sleep_seconds"]) == ("botocore", 10)


@pytest.mark.parametrize(("file", "function"), [("jobs/polling.py", "poll"), ("/srv/app/jobs.py", "retry")])
async def test_other_code_may_sleep_in_its_thread(file: str, function: str, caplog: pytest.LogCaptureFixture) -> None:
    sleeper = Sleeper(file, function)
    scene = Scene()
    async with scene.calling(waits(), thread=sleeper.thread):
        await sleeper.is_asleep(0)
        scene.look(2, 20, 20)
        for nap in (0, 1):
            sleeper.wake(nap)
        sleeper.join()
    assert not warnings(caplog)


# ---- in a worker ---------------------------------------------------------------------------------------------------


async def test_a_worker_looks_at_what_it_runs(caplog: pytest.LogCaptureFixture) -> None:
    """At async activities and at sync ones; a call that waits for its own next attempt does what it should."""
    clock = ManualClock()
    sleeps = call_of("openai")
    begun: list[str] = []
    threads: list[int] = []
    nap = threading.Lock()
    nap.acquire()
    source = "def _needs_retry():\n time.sleep(nap)"
    needs_retry = installed(
        "botocore/endpoint.py", source, nap=nap, time=SimpleNamespace(sleep=methodcaller("acquire"))
    )
    code = needs_retry["_needs_retry"].__code__
    (asleep,) = [each.offset for each in dis.get_instructions(code) if each.opname == "CALL"]

    @durable_activity
    async def ask(text: str) -> str:
        begun.append("ask")
        await sleeps(40.0)
        return text

    @durable_activity
    def fetch(text: str) -> str:
        threads.append(threading.get_ident())
        needs_retry["_needs_retry"]()
        return text

    @durable_activity(retry=RetryPolicy(initial=timedelta(minutes=1)))
    async def refused(text: str) -> str:
        begun.append("refused")
        raise ValueError(text)

    @workflow(STAGES, name="both")
    async def both(document: str) -> list[str]:
        return list(await asyncio.gather(ask(document), fetch(document), refused(document)))

    worker = Worker(MemoryStore(clock=clock), clock=clock, drain=NO_DRAIN, lease=timedelta(hours=3))
    async with BatchOrchestrator(both, worker=worker) as batches:
        await batches.submit(["a"])
        await eventually(lambda: sorted(begun) == ["ask", "refused"] and len(threads) == 1)
        await eventually(lambda: sys._current_frames()[threads[0]].f_lasti == asleep)
        async with moving(clock, 0.5):
            await eventually(lambda: len(warnings(caplog)) == 2)
            before = clock.boot()
            await eventually(lambda: clock.boot() > before + 30)
        told = sorted((record.__dict__["activity"], record.__dict__["package"]) for record in warnings(caplog))
        assert told == [("ask", "openai"), ("fetch", "botocore")]
        nap.release()
