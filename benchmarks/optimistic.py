"""What the optimistic one-statement commit on Postgres is worth: the same work with it, and under locks alone.

    python -m benchmarks.optimistic [--documents N] [--rounds N]

The workload is that of `benchmarks.throughput`. Both ways run by turns on one server, on this machine and a round trip
of a millisecond away; the ratio of each round is what counts, and their median is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import time
from typing import Final
from unittest.mock import patch

from benchmarks.support.servers import schema_on, server, slow_network
from benchmarks.support.workload import ACTIVITIES, five_steps

from durable_batches import BatchConfig, BatchOrchestrator, PostgresStore
from durable_batches.stores.postgres.commit.cache import CommitCache

SHARES: Final = {1: 0.06, 8: 0.3, 64: 1.0, 512: 1.5}
"""How many documents go with so many in flight, of those that are asked for."""


async def _seconds(store: PostgresStore, documents: int, in_flight: int) -> float:
    async with BatchOrchestrator(five_steps, store=store, max_in_flight=in_flight) as batches:
        batch_id = await batches.submit(range(documents), config=BatchConfig(concurrency=in_flight))
        began = time.perf_counter()
        result = await batches.result(batch_id)
        assert result.counts.succeeded == documents
        return time.perf_counter() - began


def seconds(dsn: str, documents: int, in_flight: int, *, optimistic: bool) -> float:
    gc.collect()
    with schema_on(dsn) as schema:
        work = _seconds(PostgresStore(dsn, schema=schema), documents, in_flight)
        if optimistic:
            return asyncio.run(work)
        with patch.object(CommitCache, "may_be_current", return_value=False):
            return asyncio.run(work)


def compare(dsn: str, documents: int, in_flight: int, rounds: int) -> None:
    """Run both ways by turns, and report."""
    pairs: list[tuple[float, float]] = []
    for number in range(rounds):
        taken = {
            optimistic: seconds(dsn, documents, in_flight, optimistic=optimistic)
            for optimistic in ((True, False) if number % 2 == 0 else (False, True))
        }
        pairs.append((taken[True], taken[False]))
    activities = documents * ACTIVITIES
    optimistic, locked = (activities / statistics.median(pair[way] for pair in pairs) for way in (0, 1))
    ratio = statistics.median(locks / alone for alone, locks in pairs)
    print(f"{in_flight:4d} in flight: {optimistic:7,.0f} activities/s, {locked:7,.0f} under locks, ratio {ratio:.2f}")


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with server() as dsn, slow_network(dsn) as slow:
        for where, target in (("on this machine", dsn), ("a round trip of 1 ms away", slow)):
            print(f"Postgres, {where}")
            for in_flight, share in SHARES.items():
                compare(target, max(int(arguments.documents * share), 20), in_flight, arguments.rounds)


if __name__ == "__main__":
    main()
