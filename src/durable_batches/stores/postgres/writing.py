"""What a plan writes: one statement for all of it, whatever the number of rows; these go as arrays (`unnest`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from durable_batches.lifecycle.plan import Writes
from durable_batches.lifecycle.records import (
    ExecutionRecord,
)
from durable_batches.stores.postgres.connection import Session
from durable_batches.stores.postgres.locking import Front, Locked
from durable_batches.stores.postgres.rows import delete_batch
from durable_batches.stores.sql import (
    batch_changes,
    execution_key,
)

_CHANGES: Final = (
    "metadata text, loader text, run int, state text, paused bool, total bigint, pending bigint, "
    "running bigint, waiting bigint, succeeded bigint, failed bigint, cancelled bigint, seq bigint, free bigint, "
    "wake bigint, served bigint, core bytea, from_due bigint, from_key bigint"
)
_EXECUTION_CHANGES: Final = (
    "run int, status text, mark int, attempt int, failures int, crashes int, alone bool, owner text, due bigint, "
    "updated_at bigint"
)


class Statement:
    """One statement that makes many changes, each to rows of its own."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._args: list[object] = []

    def add(self, text: str, types: str, columns: Sequence[Sequence[object]]) -> None:
        """A change, whose `{rows}` are these columns, of these types."""
        first = len(self._args) + 1
        arrays = [f"${first + index}::{kind.strip()}[]" for index, kind in enumerate(types.split(","))]
        self._args += columns
        self._parts.append(text.replace("{rows}", f"unnest({', '.join(arrays)})"))

    def argument(self, value: object) -> str:
        """The place of another argument."""
        self._args.append(value)
        return f"${len(self._args)}"

    async def run(self, session: Session, answer: str = "") -> Sequence[Any]:
        """Make all changes at once; the rows of the query `answer`, which sees none of them."""
        if not self._parts:
            return await session.fetch(answer, *self._args) if answer else ()
        if not answer and len(self._parts) == 1:
            return await session.fetch(self._parts[0], *self._args)
        changes = ", ".join(f"change_{index} AS ({part})" for index, part in enumerate(self._parts))
        return await session.fetch(f"WITH {changes} {answer or 'SELECT 1'}", *self._args)


def transposed(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _split(typed: str) -> tuple[str, str]:
    """Names and types, each separated by commas."""
    fields = [field.split() for field in typed.split(",")]
    return ", ".join(name for name, _ in fields), ", ".join(kind for _, kind in fields)


_BATCH_NAMES, _BATCH_TYPES = _split(_CHANGES)
_EXECUTION_NAMES, _EXECUTION_TYPES = _split(_EXECUTION_CHANGES)


def _assignments(names: str) -> str:
    return ", ".join(f"{name} = new.{name}" for name in names.split(", "))


def written(locked: Locked, writes: Writes, number: int | None) -> Statement:
    """All that a plan writes but `forget` and `discard`; every part is about rows of its own."""
    keys, statement = locked.keys, Statement()
    if writes.checkpoints:
        statement.add(
            "INSERT INTO {s}.activity (execution, key, failed, payload) SELECT * FROM {rows} ON CONFLICT DO NOTHING",
            "bigint, text, bool, bytea",
            transposed(
                [
                    (execution_key(keys[batch], position), key, kind == "failed", payload)
                    for batch, position, key, kind, payload in writes.checkpoints
                ]
            ),
        )
    if writes.marks:
        statement.add(
            "UPDATE {s}.execution e SET mark = new.mark, updated_at = new.at FROM {rows} AS new(key, mark, at) "
            "WHERE e.key = new.key",
            "bigint, int, bigint",
            transposed(
                [
                    (execution_key(keys[marked.batch_id], marked.position), marked.mark, marked.updated_at)
                    for marked in writes.marks
                ]
            ),
        )
    if writes.executions:
        statement.add(
            f"UPDATE {{s}}.execution e SET {_assignments(_EXECUTION_NAMES)}, claimed_by_commit = new.number "
            f"FROM {{rows}} AS new(key, number, {_EXECUTION_NAMES}) WHERE e.key = new.key",
            f"bigint, bigint, {_EXECUTION_TYPES}",
            transposed(
                [
                    (execution_key(keys[execution.batch_id], execution.position), number, *execution[3:])
                    for execution in writes.executions
                ]
            ),
        )
    if writes.outcomes:
        statement.add(
            "INSERT INTO {s}.outcome (key, payload) SELECT * FROM {rows} "
            "ON CONFLICT (key) DO UPDATE SET payload = excluded.payload",
            "bigint, bytea",
            transposed(
                [(execution_key(keys[batch], position), payload) for (batch, position), payload in writes.outcomes]
            ),
        )
    if writes.events:
        statement.add(
            "INSERT INTO {s}.event (batch, seq, at, tag, data) SELECT * FROM {rows}",
            "bigint, bigint, bigint, text, bytea",
            transposed([(keys[batch], seq, at, tag, data) for batch, seq, at, tag, data in writes.events]),
        )
    if writes.batches:
        statement.add(
            f"UPDATE {{s}}.batch b SET {_assignments(_BATCH_NAMES)} FROM {{rows}} AS new(key, {_BATCH_NAMES}) "
            "WHERE b.key = new.key",
            f"bigint, {_BATCH_TYPES}",
            transposed(
                [
                    (key := keys[record.batch_id], *batch_changes(record), *locked.fronts[key])
                    for record in writes.batches
                ]
            ),
        )
    return statement


async def apply(session: Session, locked: Locked, writes: Writes) -> None:
    """Write what a plan says."""
    draw_fronts_back(locked, writes.executions)
    await written(locked, writes, None).run(session)
    if writes.forget:
        await session.fetch(
            "DELETE FROM {s}.activity a USING unnest($1::bigint[], $2::text[]) AS gone(execution, key) "
            "WHERE a.execution = gone.execution AND a.key = gone.key AND a.failed",
            *transposed(
                [(execution_key(locked.keys[batch], position), name) for (batch, position), name in writes.forget]
            ),
        )
    if writes.discard is not None:
        await delete_batch(session, locked.keys[writes.discard])


def draw_fronts_back(locked: Locked, executions: Iterable[ExecutionRecord]) -> None:
    """What becomes due may be before everything that was due until now."""
    for execution in executions:
        if execution.due is not None:
            batch = locked.keys[execution.batch_id]
            place = Front(execution.due, execution_key(batch, execution.position))
            locked.fronts[batch] = min(locked.fronts[batch], place)
