"""Carry out a command about a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, assert_never

from pydantic_core import from_json, to_json

from durable_batches.lifecycle.commands import Cancel, Command, Discard, Seal
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
        case Cancel(request_id=request_id):
            return Needs(requests=[request_id])
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
        case Cancel(request_id=request_id, reason=reason):
            if batch.submitter is not None:
                # For all but its submitter, who goes on loading it, the batch does not exist yet.
                return Writes(applied=False)
            answered = loaded.requests.get(request_id)
            if answered is not None:
                return Writes(applied=from_json(answered)["applied"])
            if batch.ended:
                # A store of level 1 keeps no requests.
                applied = batch.core["cancelled_by"] == request_id
                return Writes(applied=applied, requests=[_request(unit, batch_id, request_id, applied=applied)])
            batch.cancel(request_id, reason)
            request = _request(unit, batch_id, request_id, applied=True)
        case _:
            assert_never(command)
    writes = unit.writes()
    written = (loaded.executions[execution.batch_id, execution.position] for execution in writes.executions)
    assert all(execution.owner is None for execution in written), "a command writes an execution that is owned"
    return writes if request is None else writes._replace(requests=[request])


def _request(unit: UnitOfWork, batch_id: BatchId, request_id: str, *, applied: bool) -> RequestRecord:
    return RequestRecord(batch_id, request_id, unit.now, to_json({"applied": applied}).decode())
