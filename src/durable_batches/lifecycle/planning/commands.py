"""Carry out a command about a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, assert_never

from pydantic_core import from_json, to_json

from durable_batches.lifecycle.batch import BatchInProgress
from durable_batches.lifecycle.commands import Cancel, Command, Discard, PauseBatch, ResumeBatch, Seal, UpdateBatch
from durable_batches.lifecycle.planning.unit_of_work import Loaded, UnitOfWork, Writes
from durable_batches.lifecycle.records import Micros, RequestRecord
from durable_batches.lifecycle.states import BatchId

__all__ = ["REQUESTS_ARE_KEPT", "Needs", "needs_of_command", "plan_command"]

REQUESTS_ARE_KEPT: Final[Micros] = 7 * 24 * 3600 * 1_000_000
"""For how long a request is answered as before; a store passes over older ones, and deletes some with each new one."""


class Needs(NamedTuple):
    """The rows that a store of level 2 loads for a command, beside those of the batch and its resolver."""

    requests: Sequence[str] = ()
    """The ids of requests to the batch."""


def needs_of_command(command: Command) -> Needs:
    """Say what a command has to look at."""
    match command:
        case Seal() | Discard():
            return Needs()
        case Cancel() | PauseBatch() | ResumeBatch() | UpdateBatch():
            return Needs(requests=[command.request_id])
        case _:
            assert_never(command)


def plan_command(loaded: Loaded, batch_id: BatchId, command: Command, *, level: int = 1) -> Writes:
    """Decide what a command about this (loaded) batch writes; `applied` says whether it did what it asks for.

    A command never writes an execution that is owned: its owner remembers the row, and would write over it.
    `level` is that of the store.
    """
    unit = UnitOfWork(loaded.now, loaded.batches, loaded.executions, level)
    batch = unit.batch(batch_id)
    request: RequestRecord | None = None
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
        case Cancel() | PauseBatch() | ResumeBatch() | UpdateBatch():
            if batch.submitter is not None:
                # For all but its submitter, who goes on loading it, the batch does not exist yet.
                return Writes(applied=False)
            answered = loaded.requests.get(command.request_id)
            if answered is not None:
                return Writes(applied=from_json(answered)["applied"])
            applied = _carry_out(batch, command)
            request = _request(unit, batch_id, command.request_id, applied=applied)
            if not batch.events:
                return Writes(applied=applied, requests=[request])
        case _:
            assert_never(command)
    writes = unit.writes()
    written = (loaded.executions[execution.batch_id, execution.position] for execution in writes.executions)
    assert all(execution.owner is None for execution in written), "a command writes an execution that is owned"
    return writes if request is None else writes._replace(requests=[request])


def _carry_out(batch: BatchInProgress, command: Cancel | PauseBatch | ResumeBatch | UpdateBatch) -> bool:
    """Carry out the request of a client about a sealed batch; return whether it did what it asks for."""
    # A store of level 1 keeps no requests; what has been done says then which one did it.
    match command:
        case Cancel(request_id=request_id, reason=reason):
            if batch.ended:
                return batch.core["cancelled_by"] == request_id
            batch.cancel(request_id, reason)
            return True
        case PauseBatch(request_id=request_id, note=note, running=running):
            return not batch.ended and batch.pause(request_id, note, running)
        case ResumeBatch(request_id=request_id):
            return not batch.ended and batch.resume(request_id)
        case UpdateBatch(changes=changes):
            # Given again, it changes nothing: it has these values then.
            return not batch.ended and batch.update(from_json(changes))
        case _:
            assert_never(command)


def _request(unit: UnitOfWork, batch_id: BatchId, request_id: str, *, applied: bool) -> RequestRecord:
    return RequestRecord(batch_id, request_id, unit.now, to_json({"applied": applied}).decode())
