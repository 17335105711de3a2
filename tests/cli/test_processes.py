"""The command in a process of its own: beside a worker, interrupted, and with a reader that leaves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.cli.commands import translate
from tests.support import eventually, unmeasured, within

from durable_batches import BatchOrchestrator, SQLiteStore
from durable_batches.cli.exits import Exit

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("warm_interpreters")]


@asynccontextmanager
async def started(
    *arguments: str, stdin: int | None = None, stdout: int = subprocess.PIPE
) -> AsyncGenerator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("durable-batches")),
        *arguments,
        env=unmeasured(),
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
async def waiting(tmp_path: Path) -> Path:
    """A file with a batch that nobody runs."""
    path = tmp_path / "batches.db"
    async with BatchOrchestrator(translate, store=SQLiteStore(path), max_in_flight=0) as batches:
        await batches.submit(["one", "two"], batch_id="monday", document_id=str)
    return path


async def test_a_batch_is_watched_while_another_process_runs_it(waiting: Path) -> None:
    async with started("watch", "monday", "--store", str(waiting), "--json") as process:
        assert process.stdout is not None
        first = json.loads(await within(process.stdout.readline()))
        assert (first["state"], first["counts"]["pending"]) == ("pending", 2)
        async with BatchOrchestrator(translate, store=SQLiteStore(waiting)) as batches:
            await within(batches.result("monday"))
            output, errors = await within(process.communicate())
        last = json.loads(output.splitlines()[-1])
        assert (last["state"], last["counts"]["succeeded"]) == ("completed", 2)
        assert (process.returncode, errors) == (Exit.DONE, b"")


async def test_a_worker_runs_until_it_is_told_to_stop(waiting: Path) -> None:
    target = f"{translate.__module__}:translate"
    async with started("worker", target, "--store", str(waiting)) as process:
        assert process.stderr is not None
        begun = await within(process.stderr.readline())
        assert begun.startswith(b"durable-batches: running the workflow 'translate' in version '1'")
        async with BatchOrchestrator(translate, store=SQLiteStore(waiting), max_in_flight=0) as batches:
            result = await within(batches.result("monday"))
        process.send_signal(signal.SIGTERM)
        await within(process.communicate())
    assert (process.returncode, result.counts.succeeded) == (Exit.DONE, 2)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, Exit.INTERRUPTED), (signal.SIGTERM, 143)])
async def test_a_signal_ends_what_waits(waiting: Path, number: signal.Signals, code: int) -> None:
    async with started("events", "monday", "--follow", "--json", "--store", str(waiting)) as process:
        assert process.stdout is not None
        assert json.loads(await within(process.stdout.readline()))["tag"] == "batch_created"
        process.send_signal(number)
        output, errors = await within(process.communicate())
        assert (process.returncode, output, errors) == (code, b"", b"")


async def test_a_reader_that_leaves_is_no_error(waiting: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    async with started("list", "--store", str(waiting), stdout=writer) as process:
        os.close(writer)
        _, errors = await within(process.communicate())
        assert (process.returncode, errors) == (Exit.READER_LEFT, b"")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, Exit.INTERRUPTED), (signal.SIGTERM, 143)])
async def test_a_signal_ends_the_wait_for_more_input(tmp_path: Path, number: signal.Signals, code: int) -> None:
    reading, writing = os.pipe()
    target, path = f"{translate.__module__}:translate", tmp_path / "batches.db"
    with open(writing, "wb", buffering=0) as pipe:
        async with started("run", target, "-", "--stdin", "lines", "--store", str(path), stdin=reading) as process:
            os.close(reading)
            pipe.write(b"one\ntwo\nthr")
            # Its store is open: it reads, or is about to.
            await eventually(path.with_name("batches.db-wal").exists)
            process.send_signal(number)
            _, errors = await within(process.communicate())
    assert process.returncode == code
    assert b"before all documents were submitted; nothing was run; run it again" in errors
