"""A script, as users write them: `python -m tests.script.job STORE [option=value ...]`; its activities leave marks.

Started often, and so it imports little.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Literal

from durable_batches import BatchConfig, BatchStateMachine, Results, Stage, durable_activity, run_batch, workflow

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

    def counts(self, phase: str) -> Counter[str]:
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        return Counter(line.partition(" ")[2] for line in lines if line.startswith(f"{phase} "))


marks = Marks(Path(os.devnull))
options: dict[str, str] = {}


@durable_activity(stage=Working)
async def step(document: str, name: str) -> str:
    marks.note("begin", document, name)
    if options.get("stubborn"):
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                marks.note("refused", document, name)
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
