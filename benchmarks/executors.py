"""Activities on executors: what a call costs, and what a second process brings.

    python -m benchmarks.executors [--calls N] [--quick]

A call: activities that return at once, on the event loop, in a thread of the worker, and with `run_on=` in a thread and
in a process; calls a second, and microseconds a call beyond those of the event loop. A second process: activities that
compute for a tenth of a second, on a pool of one and of two processes; the best of several turns of each, taken in
turn, since the machine may do other things as well.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from durable_batches import (
    EXTRACTION,
    BatchConfig,
    BatchOrchestrator,
    MemoryStore,
    Worker,
    durable_activity,
    workflow,
)
from durable_batches.executors import ExecutorOrFactory, process_pool

CALLS_A_DOCUMENT = 20
COMPUTE = 600_000


@durable_activity
async def on_the_loop(number: int) -> int:
    return number


@durable_activity
def in_a_thread(number: int) -> int:
    return number


@durable_activity(run_on="threads")
def in_an_executor(number: int) -> int:
    return number


@durable_activity(run_on="processes")
def in_a_process(number: int) -> int:
    return number


@durable_activity(run_on="processes")
def compute(rounds: int) -> int:
    total = 0
    for number in range(rounds):
        total += number * number % 7
    return total


FORMS: dict[str, Callable[[int], Awaitable[int]]] = {
    "on the event loop": on_the_loop,
    "in a thread of the worker": in_a_thread,
    "run_on= a thread": in_an_executor,
    "run_on= a process": in_a_process,
}


@workflow(EXTRACTION, name="calls")
async def calls(form: str) -> int:
    numbers = range(CALLS_A_DOCUMENT)
    return sum([await FORMS[form](number) for number in numbers])


@workflow(EXTRACTION, name="computing")
async def computing(rounds: int) -> int:
    return await compute(rounds)


async def seconds_of_calls(form: str, documents: int) -> float:
    executors: dict[str, ExecutorOrFactory] = {"processes": process_pool(2), "threads": lambda: ThreadPoolExecutor(2)}
    async with BatchOrchestrator(calls, worker=Worker(MemoryStore(), executors=executors)) as batches:
        config = BatchConfig(concurrency=8)
        # The processes are there, and have imported what they run.
        await batches.run([form] * 2, config=config)
        began = time.perf_counter()
        await batches.run([form] * documents, config=config)
        return time.perf_counter() - began


async def seconds_of_computing(processes: int, documents: int) -> float:
    worker = Worker(MemoryStore(), executors={"processes": process_pool(processes)})
    async with BatchOrchestrator(computing, worker=worker) as batches:
        config = BatchConfig(concurrency=8)
        await batches.run([1] * processes * 2, config=config)
        began = time.perf_counter()
        await batches.run([COMPUTE + number for number in range(documents)], config=config)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=4_000, help="calls of each form (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a tenth of it, and two turns in place of five")
    options = parser.parse_args()
    number = options.calls // 10 if options.quick else options.calls
    turns, documents = (2, 6) if options.quick else (5, 20)

    base = 0.0
    for form in FORMS:
        count = max(number // CALLS_A_DOCUMENT, 1)
        seconds = asyncio.run(seconds_of_calls(form, count)) / (count * CALLS_A_DOCUMENT)
        base = base or seconds
        print(f"{form:26} {1 / seconds:10,.0f} calls/s {(seconds - base) * 1e6:10,.0f} us more a call")

    best: dict[int, float] = {}
    for _ in range(turns):
        for processes in (1, 2):
            seconds = asyncio.run(seconds_of_computing(processes, documents))
            best[processes] = min(best.get(processes, seconds), seconds)
    for processes, seconds in best.items():
        print(
            f"{processes} process(es): {documents} activities that compute, {seconds:.2f} s, the best of {turns} turns"
        )
    print(f"two beside one: {best[1] / best[2]:.2f} times as fast")


if __name__ == "__main__":
    main()
