"""Activities on executors: what a call costs, and what a second process brings.

    python -m benchmarks.executors [--calls N] [--quick]

A call: activities that return at once, on the event loop, in a thread of the worker, and with `run_on=` in a thread, in
a process, and on clusters of two processes on this machine, of Dask and of Ray where these are installed; calls a
second, and microseconds a call beyond those of the event loop. A second process: activities that compute for a tenth of
a second, on a pool of one and of two processes. Of each the best of several turns, taken in turn, since the machine may
do other things as well.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from durable_batches import (
    EXTRACTION,
    BatchConfig,
    BatchOrchestrator,
    MemoryStore,
    Worker,
    durable_activity,
    workflow,
)
from durable_batches.executors import DaskExecutor, ExecutorOrFactory, RayExecutor, process_pool

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


@durable_activity(run_on="dask")
def on_dask(number: int) -> int:
    return number


@durable_activity(run_on="ray")
def on_ray(number: int) -> int:
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
    "run_on= Dask": on_dask,
    "run_on= Ray": on_ray,
}


@workflow(EXTRACTION, name="calls")
async def calls(form: str) -> int:
    numbers = range(CALLS_A_DOCUMENT)
    return sum([await FORMS[form](number) for number in numbers])


@workflow(EXTRACTION, name="computing")
async def computing(rounds: int) -> int:
    return await compute(rounds)


def start_dask(opened: ExitStack) -> ExecutorOrFactory:
    """A scheduler and two processes on loopback."""
    os.environ["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] = "0"
    distributed: Any = import_module("distributed")
    address = "127.0.0.1:0"
    cluster = distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address=address,
        worker_dashboard_address=address,
        silence_logs=50,
    )
    opened.callback(cluster.close)
    return DaskExecutor(cluster.scheduler_address)


def start_ray(opened: ExitStack) -> ExecutorOrFactory:
    """Two processes on loopback."""
    # Its workers as urgent as those of the others, which they are not by default.
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    ray: Any = import_module("ray")
    folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="ray"))
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 << 20,
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=folder,
    )
    opened.callback(ray.shutdown)
    return RayExecutor()


async def seconds_of_calls(form: str, documents: int, cluster: dict[str, ExecutorOrFactory]) -> float:
    executors: dict[str, ExecutorOrFactory] = {
        "processes": process_pool(2),
        "threads": lambda: ThreadPoolExecutor(2),
        # Of clusters that are not measured in this turn, nothing is needed but the names.
        "dask": lambda: ThreadPoolExecutor(1),
        "ray": lambda: ThreadPoolExecutor(1),
        **cluster,
    }
    async with BatchOrchestrator(calls, worker=Worker(MemoryStore(), executors=executors)) as batches:
        config = BatchConfig(concurrency=8)
        # The processes are there, and have imported what they run.
        await batches.run([form] * 2, config=config)
        began = time.perf_counter()
        result = await batches.run([form] * documents, config=config)
        assert result.counts.succeeded == documents
        return time.perf_counter() - began


STARTS: dict[str, tuple[str, str, Callable[[ExitStack], ExecutorOrFactory]]] = {
    "run_on= Dask": ("distributed", "dask", start_dask),
    "run_on= Ray": ("ray", "ray", start_ray),
}
"""The package, the name of the executor, and what starts its cluster."""


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
        with ExitStack() as opened:
            cluster: dict[str, ExecutorOrFactory] = {}
            # Of its calls there are fewer: each takes milliseconds.
            count = max(number // CALLS_A_DOCUMENT // (10 if form in STARTS else 1), 1)
            if form in STARTS:
                package, name, start = STARTS[form]
                if find_spec(package) is None:
                    print(f"{form:26} is not measured: {package} is not installed")
                    continue
                cluster[name] = start(opened)
            times = [asyncio.run(seconds_of_calls(form, count, cluster)) for _ in range(turns)]
            seconds = min(times) / (count * CALLS_A_DOCUMENT)
        base = base or seconds
        print(f"{form:26} {1 / seconds:10,.0f} calls/s {(seconds - base) * 1e6:10,.0f} us more a call", flush=True)

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
    # The processes of a cluster find activities by the name of the module, and not by that of the program.
    import_module("benchmarks.executors").main()
