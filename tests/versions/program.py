"""What a process of either version runs: a worker, and what a test asks of it. Uses the library's public names only.

`python program.py PLACE FOLDER MAX_IN_FLIGHT`; questions come as lines of JSON, and are answered by lines of JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from durable_batches import (
    BatchConfig,
    BatchOrchestrator,
    BatchStateMachine,
    RetryFailed,
    SQLiteStore,
    Stage,
    Store,
    current_execution,
    durable_activity,
    stores,
    workflow,
)

FOLDER = Path(sys.argv[2])


class Reading(Stage):
    tag: Literal["reading"] = "reading"


class Thinking(Stage):
    tag: Literal["thinking"] = "thinking"


def note(kind: str, document: str) -> None:
    with (FOLDER / "calls").open("a") as file:
        file.write(f"{kind} {document} {os.getpid()}\n")


@durable_activity(stage=Reading)
async def read(document: str) -> str:
    note("read", document)
    return document.upper()


@durable_activity(stage=Thinking)
async def think(document: str) -> int:
    note("think", document)
    while document.startswith("held") and not (FOLDER / f"open-{document}").exists():  # noqa: ASYNC110  (of others)
        await asyncio.sleep(0.02)
    return len(document)


@workflow(BatchStateMachine(Reading, Thinking), name="versions", version="1")
async def run(document: str) -> int:
    await read(document)
    if document.startswith("stumbles") and current_execution().attempt == 1:
        raise ValueError("stumbled")
    return await think(document)


def store() -> Store:
    place = sys.argv[1]
    if place.startswith("{"):
        named = json.loads(place)
        return stores.PostgresStore(named["dsn"], schema=named["schema"])
    return SQLiteStore(place)


async def answer(batches: BatchOrchestrator[str, int, Reading | Thinking, None], question: dict[str, Any]) -> object:
    batch_id = question.get("batch_id", "")
    match question["do"]:
        case "submit":
            seconds = question.get("deadline")
            config = BatchConfig(
                failure_policy=RetryFailed(max_attempts=3, backoff=timedelta(milliseconds=20)),
                deadline=None if seconds is None else timedelta(seconds=seconds),
                concurrency=question.get("concurrency", 8),
                metadata=question.get("metadata", {}),
            )
            return await batches.submit(
                question["documents"], batch_id=batch_id, document_id=lambda document: document, config=config
            )
        case "result":
            result = await batches.result(batch_id)
            return [result.state.tag, result.counts.succeeded, result.counts.total]
        case "pause":
            return await batches.pause(batch_id, note="why")
        case "resume":
            return len(await batches.resume(batch_id))
        case "paused":
            return (await batches.snapshot(batch_id)).paused
        case "state":
            return (await batches.state(batch_id)).tag
        case "succeeded":
            return (await batches.snapshot(batch_id)).counts.succeeded
        case "progress":
            # `name` is an event's tag in the version that wrote it, where this one does not know it.
            found = [event async for event in batches.progress(batch_id)]
            return [[event.seq, event.tag, getattr(event, "name", "")] for event in found]
        case _:
            raise AssertionError(question)


async def main() -> None:
    logging.getLogger("durable_batches").setLevel(logging.CRITICAL)
    async with BatchOrchestrator(run, store=store(), max_in_flight=int(sys.argv[3])) as batches:
        print(json.dumps("ready"), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await answer(batches, json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
