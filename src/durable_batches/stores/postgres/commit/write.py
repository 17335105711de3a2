"""Writes a plan: in one statement, whatever the number of rows; these go as arrays (`unnest`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

from durable_batches.lifecycle.failure_groups import EXAMPLES_KEPT
from durable_batches.lifecycle.planning import NEVER_STARTED, WOKEN, Writes, claim_order
from durable_batches.lifecycle.records import ExecutionRecord
from durable_batches.stores.columns import (
    ACTIVITY,
    BATCH,
    BATCH_CHANGES,
    BATCH_FRONTS,
    EVENT,
    EXECUTION,
    EXECUTION_CHANGES,
    FAILURE,
    OUTCOME,
    Columns,
    Table,
)
from durable_batches.stores.postgres.commit.lock import Locked
from durable_batches.stores.postgres.connection.session import Session
from durable_batches.stores.postgres.queries import delete_batch, write_request
from durable_batches.stores.rows import batch_changes, execution_changes, execution_key

_MARKED: Final = EXECUTION.choose("key", "mark", "updated_at")
_CHANGED_EXECUTION: Final = EXECUTION.choose("key", "claimed_by_commit").and_also(*EXECUTION_CHANGES)
_CHANGED_BATCH: Final = BATCH.choose("key").and_also(*BATCH_CHANGES, *BATCH_FRONTS)


__all__ = ["Statement", "apply", "draw_fronts_back", "statement_of"]


class Statement:
    """One statement that makes many changes, each to rows of its own.

    Args:
        args: What it has as arguments already.
        condition: Unless it holds, nothing is changed.
    """

    def __init__(self, args: Iterable[object] = (), *, condition: str = "") -> None:
        self._parts: list[str] = []
        self.args: Final[list[object]] = list(args)
        """What its places stand for, in their order."""
        self._condition = condition

    def add(
        self, text: str, columns: Columns, values: Sequence[Sequence[object]], *, alike: Collection[str] = ()
    ) -> None:
        """Add a change.

        Args:
            text: The change, of `{rows} AS new`.
            columns: The columns of those rows.
            values: What is in them, a column each.
            alike: Those that mostly hold the same value in all rows: it is given once, then, and not as an array,
                which the driver takes much longer to encode.
        """
        arrays: list[tuple[str, str]] = []
        places: list[str] = []
        for column, held in zip(columns, values, strict=True):
            name, kind = column.name, column.type.postgres
            if name in alike and held.count(held[0]) == len(held):
                places.append(f"{self.argument(held[0])}::{kind} AS {name}")
            else:
                arrays.append((name, f"{self.argument(held)}::{kind}[]"))
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
        """Add an argument, and return its place."""
        self.args.append(value)
        return f"${len(self.args)}"

    async def run(self, session: Session, answer: str = "SELECT 1", *, before: str = "") -> Sequence[Any]:
        """Make all changes at once.

        Args:
            session: Where.
            answer: A query, which sees none of the changes; its rows are returned.
            before: Common table expressions that the answer and the condition are about.
        """
        changes = [f"change_{index} AS ({part})" for index, part in enumerate(self._parts)]
        expressions = ", ".join([before, *changes] if before else changes)
        return await session.fetch(f"WITH {expressions} {answer}" if expressions else answer, *self.args)


def _transposed(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _insert(table: Table) -> str:
    return (
        f"INSERT INTO {{s}}.{table.name} ({table.columns.names}) SELECT {table.columns.of('new')} FROM {{rows}} AS new"
    )


def _update(table: Table, changed: Columns) -> str:
    """Write the UPDATE of rows, which are found by the key: the first of the columns."""
    assert changed[0].name == "key"
    assigned = Columns(changed[1:]).assigned_from("new")
    return f"UPDATE {{s}}.{table.name} t SET {assigned} FROM {{rows}} AS new WHERE t.key = new.key"


_CHECKPOINTS: Final = f"{_insert(ACTIVITY)} ON CONFLICT DO NOTHING"
_MARKS: Final = _update(EXECUTION, _MARKED)
_EXECUTIONS: Final = _update(EXECUTION, _CHANGED_EXECUTION)
_OUTCOMES: Final = f"{_insert(OUTCOME)} ON CONFLICT (key) DO UPDATE SET payload = excluded.payload"
_FAILURES: Final = (
    _insert(FAILURE).replace(f".{FAILURE.name} (", f".{FAILURE.name} AS t (")
    + " ON CONFLICT (batch, run, fingerprint) DO UPDATE SET count = t.count + excluded.count, "
    "first_position = least(t.first_position, excluded.first_position), "
    "last_at = greatest(t.last_at, excluded.last_at), "
    f"examples = CASE WHEN t.count < {EXAMPLES_KEPT} THEN t.examples || excluded.examples ELSE t.examples END"
)
"""As `failure_groups.added` adds."""
_EVENTS: Final = _insert(EVENT)
_BATCHES: Final = _update(BATCH, _CHANGED_BATCH)


def statement_of(locked: Locked, writes: Writes, number: int | None, statement: Statement | None = None) -> Statement:
    """Make the statement that writes a plan, but for `forget` and `discard`.

    Args:
        locked: The batches, with their keys.
        writes: The plan; each part is about rows of its own.
        number: The number of the commit that claims its executions, if one does.
        statement: What to add it to; by default an empty one.
    """
    keys, statement = locked.keys, statement or Statement()
    if writes.checkpoints:
        statement.add(
            _CHECKPOINTS,
            ACTIVITY.columns,
            _transposed(
                [
                    (execution_key(keys[batch], position), key, kind == "failed", *rest)
                    for batch, position, key, kind, *rest in writes.checkpoints
                ]
            ),
            alike=["failed", "stage", "spent"],
        )
    if writes.marks:
        statement.add(
            _MARKS,
            _MARKED,
            _transposed(
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
            _CHANGED_EXECUTION,
            _transposed(
                [
                    (execution_key(keys[execution.batch_id], execution.position), number, *execution_changes(execution))
                    for execution in writes.executions
                ]
            ),
            alike=["claimed_by_commit", "updated_at", "expires", "taken_from", "forget_from", "fingerprint"],
        )
    if writes.outcomes:
        statement.add(
            _OUTCOMES,
            OUTCOME.columns,
            _transposed(
                [(execution_key(keys[batch], position), payload) for (batch, position), payload in writes.outcomes]
            ),
        )
    if writes.failures:
        statement.add(
            _FAILURES, FAILURE.columns, _transposed([(keys[batch], *rest) for batch, *rest in writes.failures])
        )
    if writes.events:
        statement.add(
            _EVENTS,
            EVENT.columns,
            _transposed([(keys[batch], seq, at, tag, data) for batch, seq, at, tag, data in writes.events]),
            alike=["batch", "at"],
        )
    if writes.batches:
        statement.add(
            _BATCHES,
            _CHANGED_BATCH,
            _transposed(
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
    statement = statement_of(locked, writes, None)
    if not statement.is_empty:
        await statement.run(session)
    if writes.forget:
        await session.fetch(
            "DELETE FROM {s}.activity a USING unnest($1::bigint[], $2::text[]) AS gone(execution, key) "
            "WHERE a.execution = gone.execution AND a.key = gone.key AND a.failed",
            *_transposed(
                [(execution_key(locked.keys[batch], position), name) for (batch, position), name in writes.forget]
            ),
        )
    for request in writes.requests:
        await write_request(session, locked.keys[request.batch_id], request)
    if writes.discard is not None:
        await delete_batch(session, locked.keys[writes.discard])


def draw_fronts_back(locked: Locked, executions: Iterable[ExecutionRecord]) -> None:
    """Move fronts back: what becomes due may be before everything that was due until now."""
    for execution in executions:
        if execution.due is not None:
            batch = locked.keys[execution.batch_id]
            place = execution.due, execution_key(batch, execution.position)
            fronts = locked.fronts[batch]
            which = claim_order(execution)[0]
            if which == WOKEN and place < fronts[2:]:
                locked.fronts[batch] = fronts.with_woken(place)
            elif which == NEVER_STARTED and place < fronts[:2]:
                locked.fronts[batch] = fronts.with_new(place)
