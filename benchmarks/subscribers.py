"""What subscribers to one batch cost: reads of the store, events decoded, and the processor's time.

    python -m benchmarks.subscribers [--stores memory sqlite postgres] [--subscribers 1 10 100 1000] [--quick]

fast: a batch of 200 documents with one activity each and 64 in flight, and subscribers that follow it in the worker's
process. `reads` are calls of the store for events or the batch, `waits` those that wait for news of it. The time is
what all of the process takes beyond a run with one subscriber, for each event and each subscriber beyond that one.

client: the same, but the subscribers follow it through a `BatchClient` with a store of its own, as in a process that
runs no worker; the calls are those of the client's store.

paced: a batch of 200 activities a second with 100 subscribers, and one of 50 a second with 1,000: the share of a core
that the subscribers take, which is what the process takes beyond a run without any.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, get_args
from unittest.mock import patch

from benchmarks.support.followed import followed
from benchmarks.support.servers import schema_on, server

from durable_batches import (
    BatchClient,
    BatchConfig,
    BatchEvent,
    BatchOrchestrator,
    MemoryStore,
    PostgresStore,
    SQLiteStore,
)
from durable_batches.lifecycle.events import LAST_EVENT_TAGS
from durable_batches.lifecycle.records import BatchRecord, EventRecord
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores import Store

DOCUMENTS = 200
IN_FLIGHT = 64
PACED = ((200, 100), (50, 1_000))
PACED_SECONDS = 5
PACED_IN_FLIGHT = 10


class Calls:
    """Counts the calls of a store."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()

    def count_in(self, store: Store) -> Store:
        """Count in this store, whatever it is."""
        events, batch, wait = store.events, store.batch, store.wait

        async def counted_events(batch_id: BatchId, *, after: int, limit: int) -> Sequence[EventRecord]:
            self.of["events"] += 1
            return await events(batch_id, after=after, limit=limit)

        async def counted_batch(batch_id: BatchId) -> BatchRecord | None:
            self.of["batch"] += 1
            return await batch(batch_id)

        async def counted_wait(seen: Mapping[BatchId, int], *, work: Collection[Any], timeout: int) -> None:
            self.of["wait"] += bool(seen)
            await wait(seen, work=work, timeout=timeout)

        methods = {"events": counted_events, "batch": counted_batch, "wait": counted_wait}
        for name, method in methods.items():
            setattr(store, name, method)
        return store


class Cost(NamedTuple):
    """What one run took."""

    events: int
    reads: int
    waits: int
    decoded: int
    cpu_seconds: float
    seconds: float


Open = Callable[[], Store]


async def follow(stream: AsyncGenerator[BatchEvent, None]) -> int:
    """Follow a batch to its end; returns how many events there were, each in its place."""
    last, tag = 0, ""
    async for event in stream:
        if event.seq != last + 1:
            raise AssertionError(f"event {event.seq} after event {last}")
        last, tag = event.seq, event.tag
    if tag not in LAST_EVENT_TAGS:
        raise AssertionError(f"the last event was {tag}")
    return last


@contextmanager
def counting_decodes(into: Calls) -> Generator[None]:
    """Count the decoded events by the objects that are made of them."""
    with ExitStack() as stack:
        for kind in get_args(BatchEvent):
            made = kind.__init__

            def counted(self: object, *args: object, made: Callable[..., None] = made, **values: object) -> None:
                into.of["decoded"] += 1
                made(self, *args, **values)

            stack.enter_context(patch.object(kind, "__init__", counted))
        yield


async def run(
    open_store: Open, subscribers: int, *, per_second: int = 0, by_client: bool = False, count_decodes: bool = False
) -> Cost:
    """Run one batch with subscribers: as fast as it goes, or so many activities a second."""
    calls, at_worker = Calls(), Calls()
    in_flight = PACED_IN_FLIGHT if per_second else IN_FLIGHT
    documents = [PACED_IN_FLIGHT / per_second] * (per_second * PACED_SECONDS) if per_second else [0.0] * DOCUMENTS
    async with AsyncExitStack() as stack:
        store = (at_worker if by_client else calls).count_in(open_store())
        orchestrator = BatchOrchestrator(followed, store=store, max_in_flight=in_flight)
        batches = await stack.enter_async_context(orchestrator)
        client = await stack.enter_async_context(BatchClient(calls.count_in(open_store()))) if by_client else batches
        if count_decodes:
            stack.enter_context(counting_decodes(calls))
        gc.collect()
        cpu, began = time.process_time(), time.perf_counter()
        batch_id = await batches.submit(documents, config=BatchConfig(concurrency=in_flight))
        following = [asyncio.create_task(follow(client.progress(batch_id))) for _ in range(subscribers)]
        if not following:
            await batches.result(batch_id)
        counts = await asyncio.gather(*following)
        cost = Cost(
            events=counts[0] if counts else 0,
            reads=calls.of["events"] + calls.of["batch"],
            waits=calls.of["wait"],
            decoded=calls.of["decoded"],
            cpu_seconds=time.process_time() - cpu,
            seconds=time.perf_counter() - began,
        )
        assert len(set(counts)) <= 1
    return cost


@asynccontextmanager
async def stores(name: str) -> AsyncGenerator[Open]:
    """Stores in one new database."""
    if name == "memory":
        yield MemoryStore
    elif name == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "subscribers.db"
            yield lambda: SQLiteStore(path)
    else:
        with server() as dsn, schema_on(dsn) as schema:
            yield lambda: PostgresStore(dsn, schema=schema)


async def fast(name: str, numbers: Sequence[int], rounds: int, *, by_client: bool) -> None:
    """Measure and report subscribers of a batch that goes as fast as it can."""
    async with stores(name) as opened:
        alone = statistics.median(
            [(await run(opened, 1, by_client=by_client)).cpu_seconds for _ in range(2 * rounds + 1)]
        )
        for number in numbers:
            counted = await run(opened, number, by_client=by_client, count_decodes=True)
            seconds = statistics.median(
                [(await run(opened, number, by_client=by_client)).cpu_seconds for _ in range(rounds)]
            )
            shared = counted.events * (number - 1)
            each = f"{(seconds - alone) / shared * 1e6:6.2f} us" if shared else "        -"
            print(
                f"{'client' if by_client else 'fast':<7} {name:<9} {number:>5,} subscribers of {counted.events:,} "
                f"events: {counted.reads:>6,} reads {counted.waits:>4,} waits {counted.decoded:>7,} decoded "
                f"{seconds:7.3f} s of the processor, {each} for each event and further subscriber",
                flush=True,
            )


async def paced(name: str, rounds: int) -> None:
    """Measure and report subscribers of a batch with so many activities a second."""
    async with stores(name) as opened:
        for per_second, number in PACED:
            alone = [await run(opened, 0, per_second=per_second) for _ in range(rounds)]
            all_of_it = [await run(opened, number, per_second=per_second) for _ in range(rounds)]
            seconds = statistics.median(cost.seconds for cost in all_of_it)
            beyond = statistics.median(cost.cpu_seconds for cost in all_of_it) - statistics.median(
                cost.cpu_seconds for cost in alone
            )
            print(
                f"paced   {name:<9} {number:>5,} subscribers, {per_second} activities a second: "
                f"{beyond / seconds:6.1%} of a core, {all_of_it[0].reads:,} reads",
                flush=True,
            )


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", nargs="+", choices=["memory", "sqlite", "postgres"], default=["memory", "sqlite"])
    parser.add_argument("--subscribers", nargs="+", type=int, default=[1, 10, 100, 1_000])
    parser.add_argument("--parts", nargs="+", choices=["fast", "client", "paced"], default=["fast", "client", "paced"])
    parser.add_argument("--quick", action="store_true", help="one run each")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else 3
    for name in arguments.stores:
        if "fast" in arguments.parts:
            asyncio.run(fast(name, arguments.subscribers, rounds, by_client=False))
        if "client" in arguments.parts and name != "memory":
            asyncio.run(fast(name, arguments.subscribers, rounds, by_client=True))
        if "paced" in arguments.parts:
            asyncio.run(paced(name, rounds))


if __name__ == "__main__":
    main()
