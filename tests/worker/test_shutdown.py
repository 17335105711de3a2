"""`signals=True`: a worker drains when its process is asked to stop, and the process ends as others expect it to."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

import pytest
from tests.conftest import StoreMaker
from tests.support import STAGES, committed_until, everything, in_turns, turns, within

from durable_batches import (
    BatchOrchestrator,
    ConfigurationError,
    DocumentReleased,
    MemoryStore,
    Worker,
    dependency,
    durable_activity,
    workflow,
)
from durable_batches.signals import until
from durable_batches.testing import ManualClock
from durable_batches.testing.virtual.inside import attempts_of, kill

TERM: Final = signal.SIGTERM
LONG: Final = timedelta(days=1)

pytestmark = pytest.mark.usefixtures("signal_clock")


class Scene:
    """A workflow of two activities, of which the first one waits."""

    def __init__(self) -> None:
        self.log: Counter[str] = Counter()
        self.begun, self.gate = asyncio.Event(), asyncio.Event()

        @durable_activity
        async def first(document: str) -> str:
            self.log["first"] += 1
            self.begun.set()
            await self.gate.wait()
            return document

        @durable_activity
        async def second(document: str) -> str:
            self.log["second"] += 1
            return document.upper()

        @workflow(STAGES, name="scene")
        async def run(document: str) -> str:
            return await second(await first(document))

        self.run = run


@pytest.fixture
def host(signal_clock: ManualClock) -> Generator[list[int]]:
    """The signals that a server has handled."""
    received: list[int] = []
    handler: Callable[[int, Any], object] = lambda number, _: received.append(number)  # noqa: E731
    before = signal.signal(TERM, handler)
    yield received
    assert signal.signal(TERM, before) is handler, "put back"


# ---- beside a server ---------------------------------------------------------------------------------------------


async def test_the_drain_begins_with_the_signal_and_the_server_closes_the_worker(
    open_store: StoreMaker, host: list[int]
) -> None:
    scene = Scene()
    worker = Worker(open_store(None), max_in_flight=1, signals=True)
    async with BatchOrchestrator(scene.run, worker=worker) as batches:
        batch_id = await batches.submit(["a", "b"])

        async def none_runs() -> bool:
            return (await batches.snapshot(batch_id)).counts.running == 0

        await within(scene.begun.wait())
        signal.raise_signal(TERM)
        assert host == [TERM]
        await turns(10)
        scene.gate.set()
        await committed_until(worker, none_runs)
        # Requests that the server still answers may bring something, which others run.
        later = await batches.submit(["c"])
        assert await batches.count_checkpoints(batch_id) == 1
        assert await none_runs()
        assert (await batches.snapshot(later)).counts.pending == 1
    assert scene.log == {"first": 1}
    async with BatchOrchestrator(scene.run, store=open_store(None)) as batches:
        for each in (batch_id, later):
            await within(batches.result(each))
        events = await everything(batches.progress(batch_id))
    assert scene.log == {"first": 3, "second": 3}
    assert [event.reason for event in events if isinstance(event, DocumentReleased)] == ["shutdown"]


async def test_the_second_signal_ends_the_drain_beside_a_server_too(
    host: list[int], signal_clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene()
    worker = Worker(MemoryStore(), drain=LONG, signals=True)
    async with BatchOrchestrator(scene.run, worker=worker) as batches:
        batch_id = await batches.submit(["a"])
        await within(scene.begun.wait())
        signal.raise_signal(TERM)
        await turns(10)
        assert len(attempts_of(worker)) == 1
        signal_clock.advance(1)
        signal.raise_signal(TERM)
        await until(lambda: not attempts_of(worker), worker.signals.scheduler.finished)
        assert await batches.count_checkpoints(batch_id) == 0
    assert host == [TERM, TERM]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "SIGTERM received again: running activities are cancelled",
        f"1 running activity is cancelled, of 1 document (document '0' of batch '{batch_id}' first): 'first' 1; what "
        "they have not recorded is lost, and they run again",
    ]


@pytest.mark.usefixtures("host")
async def test_a_worker_that_loses_its_lease_meanwhile_begins_nothing() -> None:
    scene = Scene()
    worker = Worker(MemoryStore(), drain=LONG, signals=True)
    async with BatchOrchestrator(scene.run, worker=worker) as batches:
        await batches.submit(["a"])
        await within(scene.begun.wait())
        signal.raise_signal(TERM)
        await turns(10)
        with worker.signals.membership.restarted.listen() as restarted:
            kill(worker)
            await restarted.next()
        await turns(50)
        assert attempts_of(worker) == []
    assert scene.log == {"first": 1}


# ---- where nothing else handles it -------------------------------------------------------------------------------


def ended_by(main: Callable[[], Awaitable[object]]) -> object:
    """The exit code of a program, which puts back the handlers."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, TERM)]

    async def program() -> None:
        await within(main())

    with pytest.raises(SystemExit) as ended:
        asyncio.run(program())
    assert [signal.getsignal(number) for number in (signal.SIGINT, TERM)] == before
    return ended.value.code


@pytest.mark.parametrize(("number", "code"), [(TERM, 143), (signal.SIGINT, 130)])
def test_the_process_ends_after_the_drain(number: signal.Signals, code: int) -> None:
    scene, store, log = Scene(), MemoryStore(), list[object]()

    async def main() -> None:
        async with BatchOrchestrator(scene.run, store=store, signals=True) as batches:
            batch_id = await batches.submit(["a"], batch_id="batch")
            await scene.begun.wait()
            signal.raise_signal(number)
            try:
                await batches.result(batch_id)
            finally:
                log.append("left")
                asyncio.get_running_loop().call_soon(scene.gate.set)
        log.append("went on")

    async def look() -> tuple[int, int]:
        async with BatchOrchestrator(scene.run, store=store, max_in_flight=0) as batches:
            return await batches.count_checkpoints("batch"), (await batches.snapshot("batch")).counts.running

    assert ended_by(main) == code
    assert (log, scene.log) == (["left"], {"first": 1})
    assert asyncio.run(look()) == (1, 0)


def test_the_second_signal_cancels_what_runs(signal_clock: ManualClock) -> None:
    scene = Scene()

    async def main() -> None:
        worker = Worker(MemoryStore(), drain=LONG, signals=True)
        async with BatchOrchestrator(scene.run, worker=worker) as batches:
            batch_id = await batches.submit(["a"])
            await scene.begun.wait()
            signal.raise_signal(TERM)
            # Of `timeout`, say, which signals the process and its group.
            signal.raise_signal(TERM)
            try:
                await batches.result(batch_id)
            finally:
                await turns(20)
                assert len(attempts_of(worker)) == 1
                signal_clock.advance(1)
                signal.raise_signal(signal.SIGINT)

    assert ended_by(main) == 143
    assert scene.log == {"first": 1}


def test_a_program_that_ignores_its_cancellation_ends_too() -> None:
    scene = Scene()

    async def main() -> None:
        async with BatchOrchestrator(scene.run, store=MemoryStore(), signals=True):
            signal.raise_signal(TERM)
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    assert ended_by(main) == 143


def test_an_error_of_the_program_stays_its_end() -> None:
    scene = Scene()

    async def main() -> None:
        async with BatchOrchestrator(scene.run, store=MemoryStore(), signals=True):
            signal.raise_signal(TERM)
            try:
                await asyncio.Event().wait()
            finally:
                raise LookupError("of the program")

    with pytest.raises(LookupError, match="of the program"):
        asyncio.run(main())
    assert signal.getsignal(TERM) is signal.SIG_DFL


def test_a_signal_while_it_opens_ends_the_process() -> None:
    async def client() -> AsyncIterator[str]:
        signal.raise_signal(TERM)
        await asyncio.Event().wait()
        yield "never"

    @durable_activity
    async def ask(question: str, to: str = dependency(client)) -> str:
        return question

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await ask(document)

    async def main() -> None:
        async with BatchOrchestrator(run, store=MemoryStore(), signals=True):
            raise AssertionError("entered")

    assert ended_by(main) == 143


def test_a_server_that_is_run_inside_ends_first() -> None:
    """Its handler is in front; it stops, puts back the one that it found, and raises the signal again."""
    scene, served = Scene(), list[int]()

    async def main() -> None:
        async with BatchOrchestrator(scene.run, store=MemoryStore(), signals=True):
            found = signal.signal(TERM, lambda number, _: served.append(number))
            signal.raise_signal(TERM)
            await turns(10)
            signal.signal(TERM, found)
            signal.raise_signal(TERM)
            await asyncio.Event().wait()

    assert ended_by(main) == 143
    assert served == [TERM]


def test_without_it_signals_are_left_alone() -> None:
    before = signal.getsignal(TERM)

    async def main() -> None:
        async with BatchOrchestrator(Scene().run, store=MemoryStore()):
            assert signal.getsignal(TERM) is before

    asyncio.run(main())


# ---- Ctrl-C while it is closed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["Ctrl-C twice", "Ctrl-C at the end"])
def test_ctrl_c_while_it_is_closed_waits_for_nothing(
    how: str, signal_clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    scene, store, log = Scene(), MemoryStore(), list[str]()

    def interrupt() -> None:
        log.append("interrupted")
        signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        worker = Worker(store, drain=LONG)
        async with BatchOrchestrator(scene.run, worker=worker) as batches:
            await batches.submit(["a"], batch_id="batch")
            await scene.begun.wait()
            # When it drains.
            in_turns(30, interrupt)
            if how == "Ctrl-C twice":
                signal.raise_signal(signal.SIGINT)
                await asyncio.Event().wait()
        log.append("went on")

    async def look() -> int:
        async with BatchOrchestrator(scene.run, store=store, max_in_flight=0) as batches:
            return (await batches.snapshot("batch")).counts.running

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert log == ["interrupted"]
    assert "1 running activity is cancelled" in caplog.text
    assert asyncio.run(look()) == 0


async def test_the_applications_handler_of_ctrl_c_is_left_alone() -> None:
    scene, received = Scene(), list[int]()
    signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    async with BatchOrchestrator(scene.run, store=MemoryStore()) as batches:
        await batches.submit(["a"])
        await within(scene.begun.wait())
        in_turns(30, lambda: signal.raise_signal(signal.SIGINT))
        in_turns(60, scene.gate.set)
    assert scene.log == {"first": 1}
    assert received == [signal.SIGINT]
    signal.signal(signal.SIGINT, signal.default_int_handler)


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_another_thread_gets_no_signals() -> None:
    async def main() -> None:
        async with Worker(MemoryStore(), signals=True):
            pass

    with ThreadPoolExecutor() as pool, pytest.raises(ConfigurationError, match="entered in the main thread"):
        pool.submit(asyncio.run, main()).result()


async def test_a_worker_listens_by_itself() -> None:
    with pytest.raises(ConfigurationError, match="Worker\\(signals=True\\)"):
        BatchOrchestrator(Scene().run, worker=Worker(MemoryStore()), signals=True)  # type: ignore[call-overload]
