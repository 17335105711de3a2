"""A program that forks while it uses the library, as pools of processes and servers do.

`python -m tests.processes.forked PLACE` prints, as JSON, how each use in a child has ended: with a result, with the
code of an error, or not at all.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Final

from tests.processes.forks import PATIENCE
from tests.processes.places import store_at
from tests.support import NO_DRAIN, STAGES

from durable_batches import BatchClient, BatchOrchestrator, DurableBatchesError, Worker, durable_activity, workflow
from durable_batches.stores import Store

_CONTEXT: Final = multiprocessing.get_context("fork")

Use = Callable[[], Awaitable[object]]


@durable_activity
async def shout(document: str) -> str:
    return document.upper()


@workflow(STAGES, name="forked")
async def shouted(document: str) -> str:
    return await shout(document)


def in_child(use: Use, parent: Connection) -> None:
    """Use it as the program of a child, and say how that has ended."""

    async def main() -> None:
        await use()

    try:
        asyncio.run(main())
        parent.send("done")
    except DurableBatchesError as error:
        parent.send(error.code)
    except BaseException as error:  # noqa: BLE001  (whatever it is, it is told)
        parent.send(repr(error))


async def forked(use: Use) -> str:
    """How it ends in a child that is forked now."""
    here, there = _CONTEXT.Pipe(duplex=False)
    child = _CONTEXT.Process(target=in_child, args=(use, there))
    child.start()
    there.close()
    await asyncio.to_thread(child.join, PATIENCE)
    if child.is_alive():
        child.kill()
        return "hangs"
    try:
        said: str = here.recv()
    except EOFError:
        return f"exited with {child.exitcode}"
    return said


async def run_on(store: Store) -> None:
    async with BatchOrchestrator(shouted, worker=Worker(store, drain=NO_DRAIN)) as batches:
        assert (await batches.run(["x"])).counts.succeeded == 1


async def enter(worker: Worker) -> None:
    async with worker:
        pass


async def main(place: str) -> dict[str, str]:
    store, unopened = store_at(place), store_at(place)
    worker, client = Worker(store, drain=NO_DRAIN), BatchClient(store)
    said = dict[str, str]()
    async with BatchOrchestrator(shouted, worker=worker) as batches, client:
        batch_id = await batches.submit(["x"])
        await batches.result(batch_id)
        said["store"] = await forked(lambda: run_on(store))
        said["worker"] = await forked(lambda: enter(worker))
        said["submit"] = await forked(lambda: batches.submit(["y"]))
        said["result"] = await forked(lambda: batches.result(batch_id))
        said["cancel"] = await forked(lambda: client.cancel(batch_id))
        said["store made before, opened in the child"] = await forked(lambda: run_on(unopened))
        # The parent is none the worse for its children.
        await batches.run(["x"])
    said["store closed before"] = await forked(lambda: run_on(store))
    said["worker closed before"] = await forked(lambda: enter(worker))
    return said


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1]))), flush=True)
    # Whatever is left over of children does not keep it.
    os._exit(0)
