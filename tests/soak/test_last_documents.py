"""The last two documents of batch after batch end at the same moment in two processes: each resolver runs once."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tests.processes.children import children
from tests.processes.databases import Database
from tests.processes.pairs import pair
from tests.processes.workload import Job
from tests.support import within

from durable_batches import BatchId, BatchOrchestrator
from durable_batches.testing.history.checker import HistoryChecker
from durable_batches.testing.virtual.effects import EffectsLog

MEETINGS = 200
"""In one database."""


class Meeting:
    """Lets two processes go on at the same moment, when both have come.

    Args:
        times: How often.
        prepare: Called before, with the number of the meeting: brings the next batch, so that the two processes find
            something to do at once, and the documents of no more than one batch are there at a time.
    """

    def __init__(self, times: int, prepare: Callable[[int], Awaitable[object]]) -> None:
        self._wanted = times
        self._prepare = prepare
        self._waiting: list[asyncio.StreamWriter] = []
        self.times = 0
        self.over = asyncio.Event()

    async def attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            self._waiting.append(writer)
            if len(self._waiting) == 2:
                first, second = self._waiting
                # Two documents at once are two processes': each has room for one.
                assert first is not second
                self.times += 1
                if self.times == self._wanted:
                    self.over.set()
                await self._prepare(self.times)
                self._waiting.clear()
                for other in (first, second):
                    other.write(b"go\n")
        writer.close()


async def _meet(folder: Path, database: Database, meetings: int) -> None:
    """So many batches of two documents, each of them in another process."""
    effects = EffectsLog(folder / "effects.log")
    checker = HistoryChecker(effects=effects)
    socket = str(folder / "meeting")

    async with AsyncExitStack() as stack:
        batches = await stack.enter_async_context(BatchOrchestrator(pair, store=database.store(), max_in_flight=0))

        async def submit(number: int) -> None:
            if number < meetings:
                batch_id = await batches.submit([2 * number, 1], batch_id=f"batch-{number}")
                checker.acknowledged(batch_id, ["0", "1"])

        meeting = Meeting(meetings, submit)
        server = await asyncio.start_unix_server(meeting.attend, socket)
        stack.callback(server.close)
        start = stack.enter_context(children())
        both = [
            start(Job(scenario="pair", process=process, folder=str(folder), store=database.place, meeting=socket))
            for process in ("one", "other")
        ]
        await submit(0)
        await meeting.over.wait()
        for number in range(meetings):
            result = await within(batches.result(BatchId(f"batch-{number}")))
            assert result.resolution == 2 * number + 1
        for child in both:
            child.send(signal.SIGTERM)
            await child.result()
    resolutions = Counter(effect.batch_id for effect in effects.read() if effect.activity == "add_up")
    assert resolutions == {f"batch-{number}": 2 for number in range(meetings)}, "one start and one end each"
    async with database.open() as store:
        await checker.verify(store, finished=True, everyone_left=True)


@pytest.mark.parametrize("rounds", [100], indirect=True)
async def test_the_resolver_runs_once_however_often(tmp_path: Path, database: Database, rounds: int) -> None:
    for number in range(rounds):
        folder = tmp_path / str(number)
        folder.mkdir()
        await _meet(folder, database.another(), MEETINGS)
