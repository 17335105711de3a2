"""Carry out a command about a batch."""

from __future__ import annotations

from typing import assert_never

from durable_batches.lifecycle.commands import Cancel, Command, Discard, Seal
from durable_batches.lifecycle.planning.unit_of_work import Loaded, UnitOfWork, Writes
from durable_batches.lifecycle.states import BatchId

__all__ = ["plan_command"]


def plan_command(loaded: Loaded, batch_id: BatchId, command: Command) -> Writes:
    """Decide what a command about this (loaded) batch writes; `applied` says whether it did what it asks for."""
    unit = UnitOfWork(loaded.now, loaded.batches, loaded.executions)
    batch = unit.batch(batch_id)
    match command:
        case Discard(loader=submitter):
            applies = batch.submitter == submitter
            return Writes(discard=batch_id if applies else None, applied=applies)
        case Seal(loader=submitter, total=total):
            if batch.submitter is None:
                return Writes(applied=batch.core["sealed_by"] == submitter)
            if batch.submitter != submitter:
                return Writes(applied=False)
            batch.seal(submitter, total)
        case Cancel(request_id=request_id, reason=reason):
            if batch.submitter is not None:
                # For all but its submitter, who goes on loading it, the batch does not exist yet.
                return Writes(applied=False)
            if batch.ended:
                return Writes(applied=batch.core["cancelled_by"] == request_id)
            batch.cancel(request_id, reason)
        case _:
            assert_never(command)
    return unit.writes()
