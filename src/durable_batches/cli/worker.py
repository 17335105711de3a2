"""The command `worker`: run the batches of a module's orchestrators until the process is told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from durable_batches.cli.exits import CommandError, Exit
from durable_batches.cli.named import made_by, object_at
from durable_batches.cli.target import store_at
from durable_batches.orchestrator.orchestrator import BatchOrchestrator
from durable_batches.runtime.workflow import Workflow
from durable_batches.script.signals import StopSignals
from durable_batches.terminal.lines import print_line
from durable_batches.worker.worker import Worker

__all__ = ["WorkerOptions", "run_workers"]

_MAX_IN_FLIGHT: Final = 100
_DRAIN: Final = timedelta(seconds=30)


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """The options of `worker` that make a worker for workflows; orchestrators have theirs.

    Attributes:
        store: The store; see `store_at`.
        schema: The schema of the tables, in Postgres.
        max_in_flight: Documents in flight at once; None: 100.
        drain: How long running activities may go on after a signal; None: 30 s.
        given: The names of those that were given on the command line itself.
    """

    store: str | None
    schema: str
    max_in_flight: int | None
    drain: timedelta | None
    given: Sequence[str]


def run_workers(targets: Sequence[str], options: WorkerOptions) -> int:
    """Run workers until the process is told to stop, and they have drained; return the exit code.

    Args:
        targets: Orchestrators, workers and workflows, or functions without parameters that return one, each as
            `module:name`.
        options: The worker of the workflows, which they share.

    Raises:
        CommandError: One of them is none of these, or none of a worker's batches would be run.
        DurableBatchesError: A worker cannot begin.
    """
    workers = _workers_of([_found(target) for target in targets], options)
    for worker in workers:
        if not worker.workflows:
            raise CommandError(
                "the worker has no workflow; create an orchestrator with it: BatchOrchestrator(workflow, worker=...)",
                Exit.USAGE,
            )
        if worker.max_in_flight == 0:
            raise CommandError("the worker runs nothing: it was created with max_in_flight=0", Exit.USAGE)
        worker.leave_signals()
    with StopSignals() as signals:
        return asyncio.run(_run(workers, signals))


async def _run(workers: Sequence[Worker], signals: StopSignals) -> int:
    running = asyncio.create_task(_work(workers, signals))
    await signals.wait_for(running)
    if not running.cancelled() or not signals.count:
        # One could not begin, or has broken down; or it was cancelled by the code of a workflow.
        running.result()
    print_line(f"stopped by {signals.name}; what is unfinished goes on in other workers, or when one is started again")
    code = Exit.DONE if signals.count == 1 else signals.exit_code
    signals.exits(code)
    return code


async def _work(workers: Sequence[Worker], signals: StopSignals) -> None:
    async with AsyncExitStack() as stack:
        for worker in workers:
            await stack.enter_async_context(signals.ending_drain(worker))
            await stack.enter_async_context(worker)
        try:
            print_line(f"running {', '.join(_names_of(workers))}; Ctrl-C or SIGTERM stops it")
            await asyncio.Event().wait()
        finally:
            if signals.count:
                print_line(f"{signals.name}: running activities finish and are recorded first (again: stop at once)")
            # All of them at once, and not one after another.
            for worker in workers:
                worker.begin_drain()


def _names_of(workers: Sequence[Worker]) -> Sequence[str]:
    pairs = sorted({(workflow.name, workflow.version) for worker in workers for workflow in worker.workflows})
    return [f"the workflow {name!r} in version {version!r}" for name, version in pairs]


# ---- what is to be run -----------------------------------------------------------------------------------------------


def _found(target: str) -> Worker | Workflow[Any, Any, Any, Any]:
    found = object_at(target, "orchestrator")
    # A workflow can be called, too: with a document.
    if callable(found) and not isinstance(found, Workflow):
        found = made_by(found, target)
    match found:
        case BatchOrchestrator():
            return found.worker
        case Worker() | Workflow():
            return found  # pyright: ignore[reportUnknownVariableType]  (its parameters cannot be known)
        case _:
            raise CommandError(
                f"{target} is no orchestrator, worker or workflow, but of type {type(found).__name__}", Exit.USAGE
            )


def _workers_of(found: Sequence[Worker | Workflow[Any, Any, Any, Any]], options: WorkerOptions) -> Sequence[Worker]:
    workers = list(dict.fromkeys(each for each in found if isinstance(each, Worker)))
    workflows = [each for each in found if isinstance(each, Workflow)]
    if not workflows:
        if options.given:
            raise CommandError(
                f"{', '.join(options.given)} is for workflows; an orchestrator has its own store and worker", Exit.USAGE
            )
        return workers
    own = Worker(
        store_at(options.store, options.schema),
        max_in_flight=_MAX_IN_FLIGHT if options.max_in_flight is None else options.max_in_flight,
        drain=_DRAIN if options.drain is None else options.drain,
    )
    for workflow in workflows:
        BatchOrchestrator(workflow, worker=own)
    return [*workers, own]
