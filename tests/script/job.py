"""A script, as users write them: `python -m tests.script.job STORE [option=value ...]`; its activities leave marks.

Started often, and so it imports little.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Literal

from tests.processes.clocks import SharedClock

from durable_batches import (
    BatchConfig,
    BatchStateMachine,
    Results,
    Stage,
    Worker,
    durable_activity,
    run_batch,
    workflow,
)
from durable_batches.stop_signals import _switchboard

STEPS = ("first", "second", "third")


class Working(Stage):
    tag: Literal["working"] = "working"


class Marks:
    """Which activity began and ended how often; kept in a file, by lines that are written whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, *words: str) -> None:
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, (" ".join(words) + "\n").encode())
        os.close(file)

    def lines(self) -> list[str]:
        return self._path.read_text().splitlines() if self._path.exists() else []

    def count(self, line: str) -> int:
        return self.lines().count(line)

    def counts(self, phase: str) -> Counter[str]:
        return Counter(line.partition(" ")[2] for line in self.lines() if line.startswith(f"{phase} "))


class SignalClock(SharedClock):
    """The clock that signals are told apart by: it stands still unless the test moves it; each look leaves a mark."""

    def boot(self) -> float:
        """See `Clock.boot`; asked once for each signal."""
        marks.note("signal")
        signalled.set()
        return self.shift


marks = Marks(Path(os.devnull))
options: dict[str, str] = {}
signalled = threading.Event()
"""A signal was received."""


def observe_signals(path: Path) -> None:
    """Have signals, and the end of the drain by them, leave marks; for the rest of the process' life."""
    end_drain = Worker.end_drain

    def marked(worker: Worker) -> None:
        marks.note("drain ended")
        end_drain(worker)

    setattr(Worker, "end_drain", marked)  # noqa: B010  (to checkers, a method is no variable)
    _switchboard.clock = SignalClock(path)


@durable_activity(stage=Working)
async def step(document: str, name: str) -> str:
    marks.note("begin", document, name)
    if options.get("stubborn"):
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                marks.note("refused", document, name)
    if name == options.get("hold"):
        await asyncio.to_thread(signalled.wait)
    await asyncio.sleep(float(options.get("pace", "0.02")))
    marks.note("end", document, name)
    return document


async def count(results: Results[str]) -> int:
    return len([result async for result in results])


@workflow(BatchStateMachine(Working), name="job", resolver=count)
async def job(document: str) -> str:
    for name in STEPS:
        await step(document, name)
    if document == options.get("bad"):
        raise ValueError(f"{document} is bad")
    return document


def documents() -> list[str]:
    return [f"document-{number}" for number in range(int(options.get("documents", "8")))]


if __name__ == "__main__":
    store = Path(sys.argv[1])
    options |= dict(argument.split("=", 1) for argument in sys.argv[2:])
    marks = Marks(store.with_suffix(".marks"))
    observe_signals(store.with_suffix(".clock"))
    result = run_batch(
        job,
        documents(),
        store=store,
        batch_id=options.get("batch_id"),
        config=BatchConfig(concurrency=4),
        drain=timedelta(seconds=float(options.get("drain", "30"))),
        progress=options.get("progress") != "no",
    )
    print(f"{result.counts.succeeded} succeeded, resolved to {result.resolution}")
    sys.exit(result.exit_code)
