"""What a plan writes: one statement for all of it, whatever the number of rows; these go as arrays (`unnest`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

from durable_batches.lifecycle.planning import Writes
from durable_batches.lifecycle.records import ExecutionRecord
from durable_batches.stores.columns import batch_changes, execution_key
from durable_batches.stores.postgres.commit.lock import Front, Locked
from durable_batches.stores.postgres.connection.connection import Session
from durable_batches.stores.postgres.queries import delete_batch

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
    """One statement that makes many changes, each to rows of its own.

    Args:
        args: What it has as arguments already.
        condition: Unless it holds, nothing is changed.
    """

    def __init__(self, args: Iterable[object] = (), *, condition: str = "") -> None:
        self._parts: list[str] = []
        self._args: list[object] = list(args)
        self._condition = condition

    def add(self, text: str, typed: str, columns: Sequence[Sequence[object]], *, alike: Collection[str] = ()) -> None:
        """A change.

        Args:
            text: The change, of `{rows} AS new`.
            typed: The names and types of their columns.
            columns: What is in them.
            alike: Those that mostly hold the same value in all rows: it is given once, then, and not as an array,
                which the driver takes much longer to encode.
        """
        arrays: list[tuple[str, str]] = []
        places: list[str] = []
        for field, column in zip(typed.split(","), columns, strict=True):
            name, kind = field.split()
            if name in alike and column.count(column[0]) == len(column):
                places.append(f"{self.argument(column[0])}::{kind} AS {name}")
            else:
                arrays.append((name, f"{self.argument(column)}::{kind}[]"))
                places.append(name)
        names, arguments = ", ".join(name for name, _ in arrays), ", ".join(argument for _, argument in arrays)
        condition = f" WHERE {self._condition}" if self._condition else ""
        rows = f"(SELECT {', '.join(places)} FROM unnest({arguments}) AS given ({names}){condition})"
        self._parts.append(text.replace("{rows}", rows))

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return not self._parts

    def argument(self, value: object) -> str:
        """The place of another argument."""
        self._args.append(value)
        return f"${len(self._args)}"

    async def run(self, session: Session, answer: str = "SELECT 1", *, before: str = "") -> Sequence[Any]:
        """Make all changes at once.

        Args:
            session: Where.
            answer: A query, which sees none of the changes; its rows are returned.
            before: Common table expressions that the answer and the condition are about.
        """
        changes = [f"change_{index} AS ({part})" for index, part in enumerate(self._parts)]
        expressions = ", ".join([before, *changes] if before else changes)
        return await session.fetch(f"WITH {expressions} {answer}" if expressions else answer, *self._args)


def transposed(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _assignments(typed: str) -> str:
    names = [field.split()[0] for field in typed.split(",")]
    return ", ".join(f"{name} = new.{name}" for name in names)


_CHECKPOINTS: Final = (
    "INSERT INTO {s}.activity (execution, key, failed, payload) "
    "SELECT new.execution, new.key, new.failed, new.payload FROM {rows} AS new ON CONFLICT DO NOTHING"
)
_MARKS: Final = (
    "UPDATE {s}.execution e SET mark = new.mark, updated_at = new.updated_at FROM {rows} AS new WHERE e.key = new.key"
)
_EXECUTIONS: Final = (
    f"UPDATE {{s}}.execution e SET {_assignments(_EXECUTION_CHANGES)}, claimed_by_commit = new.number "
    "FROM {rows} AS new WHERE e.key = new.key"
)
_OUTCOMES: Final = (
    "INSERT INTO {s}.outcome (key, payload) SELECT new.key, new.payload FROM {rows} AS new "
    "ON CONFLICT (key) DO UPDATE SET payload = excluded.payload"
)
_EVENTS: Final = (
    "INSERT INTO {s}.event (batch, seq, at, tag, data) "
    "SELECT new.batch, new.seq, new.at, new.tag, new.data FROM {rows} AS new"
)
_BATCHES: Final = f"UPDATE {{s}}.batch b SET {_assignments(_CHANGES)} FROM {{rows}} AS new WHERE b.key = new.key"


def written(locked: Locked, writes: Writes, number: int | None, statement: Statement | None = None) -> Statement:
    """All that a plan writes but `forget` and `discard`; every part is about rows of its own."""
    keys, statement = locked.keys, statement or Statement()
    if writes.checkpoints:
        statement.add(
            _CHECKPOINTS,
            "execution bigint, key text, failed bool, payload bytea",
            transposed(
                [
                    (execution_key(keys[batch], position), key, kind == "failed", payload)
                    for batch, position, key, kind, payload in writes.checkpoints
                ]
            ),
            alike=["failed"],
        )
    if writes.marks:
        statement.add(
            _MARKS,
            "key bigint, mark int, updated_at bigint",
            transposed(
                [
                    (execution_key(keys[marked.batch_id], marked.position), marked.mark, marked.updated_at)
                    for marked in writes.marks
                ]
            ),
            alike=["updated_at"],
        )
    if writes.executions:
        statement.add(
            _EXECUTIONS,
            f"key bigint, number bigint, {_EXECUTION_CHANGES}",
            transposed(
                [
                    (execution_key(keys[execution.batch_id], execution.position), number, *execution[3:])
                    for execution in writes.executions
                ]
            ),
            alike=["number", "updated_at"],
        )
    if writes.outcomes:
        statement.add(
            _OUTCOMES,
            "key bigint, payload bytea",
            transposed(
                [(execution_key(keys[batch], position), payload) for (batch, position), payload in writes.outcomes]
            ),
        )
    if writes.events:
        statement.add(
            _EVENTS,
            "batch bigint, seq bigint, at bigint, tag text, data bytea",
            transposed([(keys[batch], seq, at, tag, data) for batch, seq, at, tag, data in writes.events]),
            alike=["batch", "at"],
        )
    if writes.batches:
        statement.add(
            _BATCHES,
            f"key bigint, {_CHANGES}",
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
    statement = written(locked, writes, None)
    if not statement.is_empty:
        await statement.run(session)
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
