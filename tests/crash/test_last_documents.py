"""The last two documents of a batch end at the same moment in two processes: its resolver runs once, in one of them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
from tests.crash.databases import Database
from tests.crash.pairs import Job, pair
from tests.crash.processes import ROOT
from tests.support import eventually, unmeasured, within

from durable_batches import BatchId, BatchOrchestrator
from durable_batches.testing.history.checker import HistoryChecker
from durable_batches.testing.virtual.effects import EffectsLog

ROUNDS = 200
SECONDS_A_ROUND = 0.5
"""At most, on average, and on a machine that has other things to do as well."""
SOAK_ROUNDS = int(os.environ.get("DURABLE_BATCHES_SOAK_ROUNDS", "100")) * ROUNDS


class Meeting:
    """Lets two processes go on at the same moment, when both have come.

    Args:
        prepare: Called before, with the number of the meeting: brings the next batch, so that the two processes find
            something to do at once, and the documents of no more than one batch are there at a time.
    """

    def __init__(self, prepare: Callable[[int], Awaitable[object]]) -> None:
        self._prepare = prepare
        self._waiting: list[asyncio.StreamWriter] = []
        self.times = 0

    async def attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            self._waiting.append(writer)
            if len(self._waiting) == 2:
                first, second = self._waiting
                # Two documents at once are two processes': each has room for one.
                assert first is not second
                self.times += 1
                await self._prepare(self.times)
                self._waiting.clear()
                for other in (first, second):
                    other.write(b"go\n")
        writer.close()


@asynccontextmanager
async def a_process(job: Job) -> AsyncGenerator[None]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.crash.pairs",
        json.dumps(asdict(job)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        env=unmeasured(),
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        yield
        process.terminate()
        assert await within(process.wait()) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def check_rounds(folder: Path, database: Database, rounds: int) -> None:
    """So many batches of two documents, each of them in another process."""
    effects = EffectsLog(folder / "effects.log")
    checker = HistoryChecker(effects=effects)
    socket = str(folder / "meeting")

    async with AsyncExitStack() as stack:
        batches = await stack.enter_async_context(BatchOrchestrator(pair, store=database.store(), max_in_flight=0))

        async def submit(number: int) -> None:
            if number < rounds:
                batch_id = await batches.submit([2 * number, 1], batch_id=f"batch-{number}")
                checker.acknowledged(batch_id, ["0", "1"])

        meeting = Meeting(submit)
        server = await asyncio.start_unix_server(meeting.attend, socket)
        stack.callback(server.close)
        for process in ("one", "other"):
            job = Job(process=process, store=database.place, effects=str(folder / "effects.log"), meeting=socket)
            await stack.enter_async_context(a_process(job))
        await submit(0)
        await eventually(lambda: meeting.times == rounds, seconds=rounds * SECONDS_A_ROUND)
        for number in range(rounds):
            result = await within(batches.result(BatchId(f"batch-{number}")))
            assert result.resolution == 2 * number + 1
    resolutions = Counter(effect.batch_id for effect in effects.read() if effect.activity == "add_up")
    assert resolutions == {f"batch-{number}": 2 for number in range(rounds)}, "one start and one end each"
    async with database.open() as store:
        await checker.verify(store, finished=True, everyone_left=True)


async def test_the_resolver_runs_once(tmp_path: Path, database: Database) -> None:
    await check_rounds(tmp_path, database, ROUNDS)


@pytest.mark.soak
async def test_the_resolver_runs_once_however_often(tmp_path: Path, database: Database) -> None:
    for number in range(SOAK_ROUNDS // ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        await check_rounds(folder, database.another(), ROUNDS)
