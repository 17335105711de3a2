"""A process that writes blobs, and ends at a point that it is told, as a crash would.

    python -m tests.blobs.writer FOLDER POINT

POINT is "part" (in the middle of the file), "blob" (the blob is there, its row is not) or "" (nowhere).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Literal

from durable_batches import BatchOrchestrator, BatchStateMachine, SQLiteStore, Stage, durable_activity, workflow
from durable_batches.blobs import Blob, BlobStorage

FOLDER, POINT = Path(sys.argv[1]), sys.argv[2]
STORAGE = BlobStorage(str(FOLDER / "blobs"))


def end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ending(*_: object) -> None:
    end()


@durable_activity
async def render(number: int) -> Blob:
    with (FOLDER / "runs").open("a", encoding="ascii") as runs:
        runs.write(f"{number}\n")
    if number == 1 and POINT == "part":
        os.replace = ending  # type: ignore[assignment]
    blob = await STORAGE.write(bytes([number]) * 100_000)
    if number == 1 and POINT == "blob":
        end()
    return blob


class Rendering(Stage):
    tag: Literal["rendering"] = "rendering"


@workflow(BatchStateMachine(Rendering), name="rendering")
async def rendering(number: int) -> tuple[Blob, int]:
    blob = await render(number)
    return blob, len(await STORAGE.read(blob))


async def main() -> None:
    async with BatchOrchestrator(rendering, store=SQLiteStore(FOLDER / "batches.db")) as batches:
        batch_id = await batches.submit(range(3), batch_id="b", document_id=str)
        result = await batches.result(batch_id)
        assert result.counts.succeeded == 3
        blobs = [each.value[0] async for each in batches.results(batch_id) if each.tag == "succeeded"]
        assert [await STORAGE.read(blob) for blob in blobs] == [bytes([number]) * 100_000 for number in range(3)]
        print(await STORAGE.remove(batch_id, keep=blobs))


if __name__ == "__main__":
    asyncio.run(main())
