"""A program whose own code forks and comes back to the library in the child: `python -m tests.processes.forking PLACE`.

It prints, as JSON, the exit code of each child, by the place of the fork and the way back from there.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Literal, TypeAlias

from tests.processes.places import store_at
from tests.support import STAGES

from durable_batches import BatchOrchestrator, Worker, durable_activity, workflow

Place: TypeAlias = Literal["activity", "sync activity", "workflow", "block"]
Way: TypeAlias = Literal["returns", "raises", "exits", "exits with 3", "awaits"]

CASES: list[tuple[Place, Way]] = [
    ("activity", "returns"),
    ("activity", "raises"),
    ("activity", "exits"),
    ("activity", "exits with 3"),
    ("activity", "awaits"),
    ("sync activity", "returns"),
    ("sync activity", "exits with 3"),
    ("workflow", "returns"),
    ("workflow", "exits with 3"),
]


def forked(way: Way) -> int:
    """Fork, and come back from it in the child; return the child's exit code in the parent."""
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    match way:
        case "raises":
            raise ValueError("in the child")
        case "exits":
            sys.exit()
        case "exits with 3":
            sys.exit(3)
        case _:
            return -1


@durable_activity
async def forks(way: Way) -> int:
    code = forked(way)
    if way == "awaits" and code == -1:
        await asyncio.Event().wait()
    return code


@durable_activity
def forks_on_a_thread(way: Way) -> int:
    return forked(way)


@workflow(STAGES, name="forking")
async def forking(document: tuple[Place, Way]) -> int:
    place, way = document
    match place:
        case "activity":
            return await forks(way)
        case "sync activity":
            return await forks_on_a_thread(way)
        case _:
            return forked(way)


async def main(at: str) -> dict[str, int]:
    codes = dict[str, int]()
    async with BatchOrchestrator(forking, worker=Worker(store_at(at))) as batches:
        batch_id = await batches.submit(CASES, document_id=" ".join)
        (await batches.result(batch_id)).raise_for_failures()
        async for outcome in batches.results(batch_id):
            assert outcome.tag == "succeeded"
            codes[outcome.document_id] = outcome.value
        codes["block exits with 3"] = forked("exits with 3")
    return codes


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1]))), flush=True)
