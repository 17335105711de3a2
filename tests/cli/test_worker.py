"""`worker`: the orchestrators, workers and workflows of a module, run until a signal."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from tests.cli import files
from tests.cli.commands import Commands

from durable_batches import BatchConfig, BatchOrchestrator, Worker
from durable_batches.cli.exits import Exit
from durable_batches.testing import ManualClock


@pytest.fixture
def module() -> Iterator[dict[str, object]]:
    """The names of a user's module, `app`."""
    app = sys.modules["app"] = ModuleType("app")
    yield vars(app)
    del sys.modules["app"]
    for noted in (files.calls, files.signalled, files.clocks):
        noted.clear()


def submit(commands: Commands) -> None:
    """Leave a batch behind, for a worker that takes one document of it at a time."""

    async def leave() -> None:
        async with BatchOrchestrator(files.texts, store=commands.make(), max_in_flight=0) as batches:
            await batches.submit(["one", "two"], batch_id="monday", config=BatchConfig(concurrency=1))

    asyncio.run(leave())


@pytest.mark.parametrize("kind", ["orchestrator", "worker that listens", "function", "workflow"])
def test_it_drains_at_a_signal(on_file: Commands, module: dict[str, object], kind: str) -> None:
    submit(on_file)
    target = "app:batches"
    options: tuple[str, ...] = ()
    match kind:
        case "orchestrator":
            module["batches"] = BatchOrchestrator(files.texts, store=on_file.make())
        case "worker that listens":
            worker = module["batches"] = Worker(on_file.make(), signals=True)
            BatchOrchestrator(files.texts, worker=worker)
        case "function":
            module["batches"] = lambda: BatchOrchestrator(files.texts, store=on_file.make())
        case _:
            target, options = f"{files.MODULE}:texts", ("--max-in-flight", "1", "--drain", "5", *on_file.target)
    files.signalled.append(signal.SIGTERM)
    ran = on_file.bare("worker", target, *options)
    assert (ran.code, ran.out, files.calls) == (Exit.DONE, "", ["one"])
    begun, told, stopped = ran.err.splitlines()
    assert begun.startswith("durable-batches: running the workflow 'texts' in version '1'; ")
    assert told.startswith("durable-batches: SIGTERM: running activities finish and are recorded first")
    assert stopped.startswith("durable-batches: stopped by SIGTERM")
    (batch,) = on_file("show", "monday", "--json").json
    assert (batch["counts"]["running"], batch["checkpoints"]) == (0, 1)


def test_several_share_a_process(on_file: Commands, module: dict[str, object]) -> None:
    submit(on_file)
    module["batches"] = BatchOrchestrator(files.numbers, store=on_file.make())
    files.signalled.append(signal.SIGINT)
    ran = on_file.bare("worker", "app:batches", "app:batches", f"{files.MODULE}:texts", *on_file.target)
    assert (ran.code, files.calls) == (Exit.DONE, ["one"])
    assert "running the workflow 'numbers' in version '1', the workflow 'texts' in version '1'; " in ran.err


def test_a_second_signal_ends_the_drain(
    on_file: Commands, module: dict[str, object], signal_clock: ManualClock
) -> None:
    submit(on_file)
    files.clocks.append(signal_clock)
    files.signalled += [signal.SIGTERM, signal.SIGTERM]
    module["batches"] = BatchOrchestrator(files.texts, store=on_file.make())
    assert on_file.bare("worker", "app:batches").code == 143


def test_what_cannot_be_run(on_file: Commands, module: dict[str, object]) -> None:
    submit(on_file)
    module["idle"] = BatchOrchestrator(files.texts, store=on_file.make(), max_in_flight=0)
    module["empty"] = Worker(on_file.make())
    module["number"] = 3
    module["fails"] = [].pop
    for target, options, says in (
        ("app", (), "'app' names no orchestrator; give module:name"),
        ("no_such_module_here:batches", (), "there is no module 'no_such_module_here' for the orchestrator"),
        ("app:nothing", (), "the module 'app' has no 'nothing'"),
        ("app:number", (), "app:number is no orchestrator, worker or workflow, but of type int"),
        ("app:fails", (), "app:fails failed: IndexError: pop from empty list"),
        ("app:idle", (), "it was created with max_in_flight=0"),
        ("app:empty", (), "the worker has no workflow"),
        ("app:idle", ("--store", "x.db", "--drain", "3"), "--store, --drain is for workflows"),
        (f"{files.MODULE}:texts", (), "say which store"),
        (f"{files.MODULE}:texts", ("--max-in-flight", "0"), "--max-in-flight"),
        (f"{files.MODULE}:texts", ("--drain", "1e99"), "is no number of seconds"),
    ):
        ran = on_file.bare("worker", target, *options)
        assert (ran.code, ran.out, len(ran.err.splitlines())) == (Exit.USAGE, "", 1), target
        assert says in ran.err


def test_a_worker_that_cannot_begin(on_file: Commands, module: dict[str, object]) -> None:
    ran = on_file.bare("worker", f"{files.MODULE}:texts", "--store", "postgresql://user:secret@127.0.0.1:1/database")
    assert (ran.code, ran.out) == (Exit.STORE_UNAVAILABLE, "")
    assert "secret" not in ran.err
