"""Release the executions of workers that shut down or whose lease expired."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, TypeAlias

from durable_batches.errors import CrashLoopError
from durable_batches.lifecycle.batch import BatchInProgress
from durable_batches.lifecycle.failures import DocumentFailureRecord
from durable_batches.lifecycle.planning.unit_of_work import Loaded, UnitOfWork, Writes
from durable_batches.lifecycle.records import NOW, RESOLVER_POSITION, ExecutionRecord, WorkerId

__all__ = ["Departure", "plan_release", "release_execution"]

Departure: TypeAlias = Literal["shutdown", "crash"]
"""How a worker went: by a clean shutdown, or its lease expired."""


def plan_release(loaded: Loaded, gone: Collection[WorkerId], departure: Departure, *, level: int = 1) -> Writes:
    """Release the executions of these workers; after a crash, each of them is a possible poison document.

    `loaded` holds at least their executions and the resolvers of the batches concerned; `level` is that of the store.
    """
    unit = UnitOfWork(loaded.now, loaded.batches, loaded.executions, level)
    for key, execution in sorted(loaded.executions.items()):
        if execution.owner not in gone:
            continue
        if unit.contradiction(key[0]) is not None:
            # What it held cannot be returned to such a batch, but the worker's other executions can to theirs.
            unit.release_as_cancelled(execution)
            continue
        batch = unit.batch(key[0])
        if batch.ended or batch.run != execution.run:
            unit.release_as_cancelled(execution)
        elif departure == "crash" and _is_crash_loop(execution, batch):
            _fail_crash_loop(unit, execution)
        else:
            release_execution(unit, execution, departure)
    return unit.writes()


def release_execution(unit: UnitOfWork, execution: ExecutionRecord, departure: Departure) -> None:
    """Return an owned, unfinished execution to those that can be claimed."""
    crashed = departure == "crash"
    crashes = execution.crashes + crashed
    batch = unit.batch(execution.batch_id)
    resolver = execution.position == RESOLVER_POSITION
    if resolver:
        batch.release_resolver(departure)
    else:
        batch.release_document(execution, departure, crashes)
    unit.update(
        execution._replace(
            status="waiting" if resolver else "pending",
            crashes=crashes,
            alone=False,
            owner=None,
            # A possible poison document queues behind all others that are due.
            due=unit.now if crashes else NOW,
            updated_at=unit.now,
        )
    )


def _is_crash_loop(execution: ExecutionRecord, batch: BatchInProgress) -> bool:
    return execution.alone and execution.crashes + 1 >= batch.definition.config.max_crashes


def _fail_crash_loop(unit: UnitOfWork, execution: ExecutionRecord) -> None:
    execution = execution._replace(crashes=execution.crashes + 1)
    error = str(CrashLoopError(execution.batch_id, execution.document_id, execution.crashes))
    failure = DocumentFailureRecord(error, CrashLoopError.__name__, None, execution.attempt)
    if execution.position == RESOLVER_POSITION:
        unit.finish(execution, "failed", failure.encode())
        unit.batch(execution.batch_id).fail_resolver(error)
    else:
        unit.fail_document(
            execution, failure.encode(), error=error, error_type=failure.error_type, activity=failure.activity
        )
