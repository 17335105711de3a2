"""The columns of the stores' tables: the one place of their names, types and order.

The numbered migrations make the tables. Every statement that reads or writes them takes its columns from here, for
SQLite and Postgres alike, and so do `durable_batches.stores.rows` (rows to records and back) and
`durable_batches.stores.tables` (the same as SQLAlchemy's `MetaData`). A test applies the migrations to real databases
and compares.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from durable_batches.lifecycle.records import BatchRecord, EventRecord, ExecutionRecord, WorkerRecord

__all__ = [
    "ACTIVITY",
    "BATCH",
    "BATCH_CHANGES",
    "BATCH_FRONTS",
    "BATCH_RECORD",
    "BIGINT",
    "BOOLEAN",
    "BYTES",
    "CHECKPOINT",
    "DOCUMENT",
    "EVENT",
    "EVENT_RECORD",
    "EXECUTION",
    "EXECUTION_CHANGES",
    "EXECUTION_RECORD",
    "FAILURE",
    "FAILURE_GROUP",
    "INTEGER",
    "JOB",
    "OUTCOME",
    "REQUEST",
    "REQUESTS_A_COMMAND",
    "SCHEMA_VERSION",
    "SHARED_LIMIT",
    "SHARED_SLOT",
    "SIGNAL",
    "SMALLINT",
    "TABLES",
    "TEXT",
    "TEXTS",
    "WAIT",
    "WORKER",
    "WORKER_RECORD",
    "Backend",
    "Column",
    "Columns",
    "Table",
    "Type",
    "workflows_as_text",
]

Backend: TypeAlias = Literal["sqlite", "postgres"]


class Type(NamedTuple):
    """The type of a column, as each database names it."""

    sqlite: str
    postgres: str


SMALLINT: Final = Type("INTEGER", "smallint")
INTEGER: Final = Type("INTEGER", "integer")
BIGINT: Final = Type("INTEGER", "bigint")
BOOLEAN: Final = Type("INTEGER", "boolean")
TEXT: Final = Type("TEXT", "text")
TEXTS: Final = Type("TEXT", "text[]")
BYTES: Final = Type("BLOB", "bytea")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table."""

    name: str
    type: Type
    field: str | None = None
    """The record's field, with a dot for a nested field. None: the column belongs to the store alone."""
    nullable: bool = False
    fixed: bool = False
    """Written with its row, and never changed."""
    encode: Callable[[Any], object] | None = None
    """Convert the field's value to the column's; None: unchanged."""
    decode: Callable[[Any], Any] | None = None
    """Convert the column's value to the field's; None: unchanged."""
    only: Backend | None = None
    """The one database that has it; None: both have."""


class Columns(tuple[Column, ...]):
    """Some columns of one table in a certain order, as statements name them."""

    __slots__ = ()

    @property
    def names(self) -> str:
        """Return the names: `a, b`."""
        return ", ".join([column.name for column in self])

    @property
    def marks(self) -> str:
        """Return SQLite's placeholders for a row: `?, ?`."""
        return ", ".join("?" * len(self))

    @property
    def marked(self) -> str:
        """Return the assignments of an UPDATE in SQLite: `a = ?, b = ?`."""
        return ", ".join([f"{column.name} = ?" for column in self])

    def of(self, alias: str) -> str:
        """Return the names with an alias: `t.a, t.b`."""
        return ", ".join([f"{alias}.{column.name}" for column in self])

    def assigned_from(self, alias: str) -> str:
        """Return the assignments of an UPDATE from rows with an alias: `a = new.a, b = new.b`."""
        return ", ".join([f"{column.name} = {alias}.{column.name}" for column in self])

    def numbered(self, first: int) -> str:
        """Return Postgres' placeholders for a row: `$1, $2`."""
        return ", ".join([f"${number}" for number in range(first, first + len(self))])

    def arrays(self, first: int) -> str:
        """Return Postgres' placeholders for many rows, one array per column: `$1::bigint[], $2::text[]`."""
        return ", ".join([f"${number}::{column.type.postgres}[]" for number, column in enumerate(self, first)])

    def and_also(self, *more: Column) -> Columns:
        """Append other columns."""
        return Columns((*self, *more))


class Table:
    """One table: its columns, in the order in which the migrations name them.

    Args:
        name: Its name, without the schema.
        columns: All of them.
        primary_key: The names of its primary key's columns.
        unique: The names of those that are unique together, once for each such constraint.
    """

    def __init__(
        self,
        name: str,
        columns: Iterable[Column],
        *,
        primary_key: Sequence[str] = (),
        unique: Sequence[Sequence[str]] = (),
    ) -> None:
        self.name: Final = name
        self.columns: Final = Columns(columns)
        self.primary_key: Final = tuple(primary_key)
        self.unique: Final = tuple(tuple(names) for names in unique)
        self._by_name: Final[Mapping[str, Column]] = {column.name: column for column in self.columns}
        assert len(self._by_name) == len(self.columns), f"a column of {name} is there twice"

    def choose(self, *names: str) -> Columns:
        """Choose columns, in this order."""
        return Columns(self._by_name[name] for name in names)

    def in_backend(self, backend: Backend) -> Columns:
        """Return the table's columns in this database."""
        return Columns(column for column in self.columns if column.only in (None, backend))


def workflows_as_text(workflows: Iterable[tuple[str, str]]) -> str:
    """Encode (name, version) pairs as JSON, the same text for the same pairs."""
    return json.dumps(sorted(workflows))


def _workflows_of(text: str) -> frozenset[tuple[str, str]]:
    return frozenset((name, version) for name, version in json.loads(text))


def _labels_as_text(metadata: Mapping[str, str]) -> str:
    return json.dumps(dict(metadata))


# ---- batches ---------------------------------------------------------------------------------------------------------

BATCH: Final = Table(
    "batch",
    [
        Column(name="key", type=BIGINT),
        Column(name="batch_id", type=TEXT, field="batch_id", fixed=True),
        Column(name="workflow", type=TEXT, field="workflow", fixed=True),
        Column(name="version", type=TEXT, field="version", fixed=True),
        Column(name="loader", type=TEXT, field="loader", nullable=True),
        Column(name="run", type=INTEGER, field="run"),
        Column(name="state", type=TEXT, field="state"),
        Column(name="paused", type=BOOLEAN, field="paused", decode=bool),
        Column(name="total", type=BIGINT, field="counts.total"),
        Column(name="pending", type=BIGINT, field="counts.pending"),
        Column(name="running", type=BIGINT, field="counts.running"),
        Column(name="waiting", type=BIGINT, field="counts.waiting"),
        Column(name="succeeded", type=BIGINT, field="counts.succeeded"),
        Column(name="failed", type=BIGINT, field="counts.failed"),
        Column(name="cancelled", type=BIGINT, field="counts.cancelled"),
        Column(name="seq", type=BIGINT, field="seq"),
        Column(name="free", type=BIGINT, field="free"),
        Column(name="wake", type=BIGINT, field="wake", nullable=True),
        Column(name="served", type=BIGINT, field="served"),
        Column(name="core", type=BYTES, field="core"),
        Column(name="metadata", type=TEXT, field="metadata", encode=_labels_as_text, decode=json.loads),
        Column(name="created_at", type=BIGINT, field="created_at", fixed=True),
        Column(name="labels", type=TEXTS, fixed=True, only="postgres"),
        Column(name="from_due", type=BIGINT, only="postgres"),
        Column(name="from_key", type=BIGINT, only="postgres"),
        Column(name="needs", type=SMALLINT, field="needs"),
        Column(name="next_due", type=BIGINT, field="next_due", nullable=True),
        Column(name="priority", type=SMALLINT, field="priority"),
        Column(name="partition", type=TEXT, field="partition"),
        Column(name="purged", type=SMALLINT, field="purged"),
        Column(name="ended_at", type=BIGINT, field="ended_at", nullable=True),
        Column(name="woken_due", type=BIGINT, only="postgres"),
        Column(name="woken_key", type=BIGINT, only="postgres"),
    ],
    primary_key=["key"],
    unique=[["batch_id"]],
)
BATCH_RECORD: Final = Columns(column for column in BATCH.columns if column.field is not None)
"""The columns of a `BatchRecord`."""
BATCH_CHANGES: Final = Columns(column for column in BATCH_RECORD if not column.fixed)
"""The columns that a plan may change."""
BATCH_FRONTS: Final = BATCH.choose("from_due", "from_key", "woken_due", "woken_key")
"""Where a claim starts in the index of due executions, on Postgres: for those never started, and for those woken."""

# ---- executions ------------------------------------------------------------------------------------------------------

EXECUTION: Final = Table(
    "execution",
    [
        Column(name="key", type=BIGINT),
        Column(name="batch", type=BIGINT, fixed=True),
        Column(name="document_id", type=TEXT, field="document_id", fixed=True),
        Column(name="run", type=INTEGER, field="run"),
        Column(name="status", type=TEXT, field="status"),
        Column(name="mark", type=INTEGER, field="mark"),
        Column(name="attempt", type=INTEGER, field="attempt"),
        Column(name="failures", type=INTEGER, field="failures"),
        Column(name="crashes", type=INTEGER, field="crashes"),
        Column(name="alone", type=BOOLEAN, field="alone"),
        Column(name="owner", type=TEXT, field="owner", nullable=True),
        Column(name="due", type=BIGINT, field="due", nullable=True),
        Column(name="updated_at", type=BIGINT, field="updated_at"),
        Column(name="claimed_by_commit", type=BIGINT, nullable=True),
        Column(name="expires", type=BIGINT, field="expires", nullable=True),
        Column(name="taken_from", type=TEXT, field="taken_from", nullable=True),
        Column(name="forget_from", type=INTEGER, field="forget_from", nullable=True),
        Column(name="fingerprint", type=TEXT, field="fingerprint", nullable=True),
    ],
    primary_key=["key"],
    unique=[["batch", "document_id"]],
)
EXECUTION_RECORD: Final = Columns(column for column in EXECUTION.columns if column.field is not None)
"""The columns of an `ExecutionRecord`, except the batch and the position, which are in the key."""
EXECUTION_CHANGES: Final = Columns(column for column in EXECUTION_RECORD if not column.fixed)
"""The columns that a plan may change."""

# ---- what belongs to executions and batches --------------------------------------------------------------------------

DOCUMENT: Final = Table(
    "document",
    [Column(name="key", type=BIGINT), Column(name="input", type=BYTES, fixed=True)],
    primary_key=["key"],
)
OUTCOME: Final = Table(
    "outcome",
    [Column(name="key", type=BIGINT), Column(name="payload", type=BYTES)],
    primary_key=["key"],
)
ACTIVITY: Final = Table(
    "activity",
    [
        Column(name="execution", type=BIGINT, fixed=True),
        Column(name="key", type=TEXT, fixed=True),
        Column(name="failed", type=BOOLEAN, fixed=True),
        Column(name="payload", type=BYTES, fixed=True),
        Column(name="stage", type=SMALLINT, fixed=True, nullable=True),
        Column(name="spent", type=TEXT, fixed=True, nullable=True),
    ],
    primary_key=["execution", "key"],
)
"""The checkpoints. In SQLite its key is a unique constraint, see the migration."""
CHECKPOINT: Final = Columns(ACTIVITY.columns[1:])
"""The columns of a checkpoint, without its execution."""
EVENT: Final = Table(
    "event",
    [
        Column(name="batch", type=BIGINT, fixed=True),
        Column(name="seq", type=BIGINT, field="seq", fixed=True),
        Column(name="at", type=BIGINT, field="at", fixed=True),
        Column(name="tag", type=TEXT, field="tag", fixed=True),
        Column(name="data", type=BYTES, field="data", fixed=True),
    ],
    primary_key=["batch", "seq"],
)
EVENT_RECORD: Final = Columns(column for column in EVENT.columns if column.field is not None)
"""The columns of an `EventRecord`, except the batch."""
SIGNAL: Final = Table(
    "signal",
    [
        Column(name="execution", type=BIGINT, fixed=True),
        Column(name="ordinal", type=BIGINT, fixed=True),
        Column(name="name", type=TEXT, fixed=True),
        Column(name="payload", type=BYTES, fixed=True),
    ],
    primary_key=["execution", "ordinal"],
)
WAIT: Final = Table(
    "wait",
    [
        Column(name="execution", type=BIGINT, fixed=True),
        Column(name="topic", type=TEXT, fixed=True),
        Column(name="ordinal", type=BIGINT, fixed=True),
        Column(name="key", type=TEXT, nullable=True),
        Column(name="due", type=BIGINT, nullable=True),
        Column(name="payload", type=BYTES, nullable=True),
        Column(name="job", type=BIGINT, nullable=True),
    ],
    primary_key=["execution", "topic", "ordinal"],
)
"""What executions wait for, and what was sent to them before they asked."""
REQUEST: Final = Table(
    "request",
    [
        Column(name="batch", type=BIGINT, fixed=True),
        Column(name="id", type=TEXT, fixed=True),
        Column(name="at", type=BIGINT, fixed=True),
        Column(name="answer", type=TEXT, fixed=True),
    ],
    primary_key=["batch", "id"],
)
"""The commands that were carried out, so that one that is repeated is answered as before."""
REQUESTS_A_COMMAND: Final = 100
"""How many requests, that are too old to be answered again, a command deletes at most."""
FAILURE: Final = Table(
    "failure",
    [
        Column(name="batch", type=BIGINT, fixed=True),
        Column(name="run", type=INTEGER, fixed=True),
        Column(name="fingerprint", type=TEXT, fixed=True),
        Column(name="error_type", type=TEXT, fixed=True),
        Column(name="activity", type=TEXT, fixed=True, nullable=True),
        Column(name="stage", type=TEXT, fixed=True, nullable=True),
        Column(name="message", type=TEXT, fixed=True),
        Column(name="count", type=BIGINT),
        Column(name="first_position", type=BIGINT),
        Column(name="first_at", type=BIGINT, fixed=True),
        Column(name="last_at", type=BIGINT),
        Column(name="examples", type=BYTES),
    ],
    primary_key=["batch", "run", "fingerprint"],
)
"""A run's failed documents, by group; `examples` is JSON, a line each."""
FAILURE_GROUP: Final = Columns(column for column in FAILURE.columns if column.name not in ("batch", "run"))
JOB: Final = Table(
    "job",
    [
        Column(name="batch", type=BIGINT, fixed=True),
        Column(name="number", type=BIGINT, fixed=True),
        Column(name="provider", type=TEXT, fixed=True),
        Column(name="external", type=TEXT, nullable=True),
        Column(name="state", type=TEXT),
        Column(name="requests", type=BIGINT),
        Column(name="succeeded", type=BIGINT),
        Column(name="failed", type=BIGINT),
        Column(name="updated_at", type=BIGINT),
    ],
    primary_key=["batch", "number"],
)
"""What providers were asked to answer together, later."""

# ---- workers ---------------------------------------------------------------------------------------------------------

WORKER: Final = Table(
    "worker",
    [
        Column(name="worker_id", type=TEXT, field="worker_id", fixed=True),
        Column(name="boot_id", type=TEXT, field="boot_id", fixed=True),
        Column(name="pid_namespace", type=TEXT, field="pid_namespace", fixed=True),
        Column(name="pid", type=BIGINT, field="pid", fixed=True),
        Column(name="started", type=TEXT, field="started", fixed=True),
        Column(
            name="workflows",
            type=TEXT,
            field="workflows",
            encode=workflows_as_text,
            decode=_workflows_of,
        ),
        Column(name="lease", type=BIGINT, fixed=True),
        Column(name="lease_until", type=BIGINT),
        Column(name="commits", type=BIGINT),
        Column(name="refused", type=TEXT),
        Column(name="dead", type=TEXT, nullable=True, only="postgres"),
        Column(name="note", type=TEXT, field="note", nullable=True),
        Column(name="before", type=TEXT, field="before", nullable=True, fixed=True),
        Column(name="generation", type=SMALLINT, field="generation", fixed=True),
    ],
    primary_key=["worker_id"],
)
WORKER_RECORD: Final = Columns(column for column in WORKER.columns if column.field is not None)
"""The columns of a `WorkerRecord`."""

SHARED_LIMIT: Final = Table(
    "shared_limit",
    [
        Column(name="name", type=TEXT, fixed=True),
        Column(name="data", type=BYTES),
        Column(name="updated_at", type=BIGINT),
    ],
    primary_key=["name"],
)
"""Limits that all workers share."""
SHARED_SLOT: Final = Table(
    "shared_slot",
    [
        Column(name="name", type=TEXT, fixed=True),
        Column(name="worker", type=TEXT, fixed=True),
        Column(name="amount", type=BIGINT),
        Column(name="until", type=BIGINT, nullable=True),
        Column(name="data", type=BYTES, nullable=True),
    ],
    primary_key=["name", "worker"],
)
"""What each worker holds of a shared limit; it goes with the worker's row."""

SCHEMA_VERSION: Final = Table(
    "schema_version",
    [
        Column(name="version", type=INTEGER),
        Column(name="readable_since", type=TEXT),
        Column(name="library", type=TEXT),
    ],
)

TABLES: Final = (
    *(BATCH, EXECUTION, DOCUMENT, OUTCOME, ACTIVITY, EVENT, SIGNAL, WAIT, REQUEST, FAILURE, JOB),
    *(WORKER, SHARED_LIMIT, SHARED_SLOT, SCHEMA_VERSION),
)


def _top(columns: Columns) -> list[str]:
    """List the record's top-level fields in these columns, each once."""
    return list(dict.fromkeys((column.field or "").partition(".")[0] for column in columns))


# A row and its record have the same order, so that one is made of the other without a look at any name.
assert _top(BATCH_RECORD) == list(BatchRecord.__dataclass_fields__)
assert _top(EXECUTION_RECORD) == list(ExecutionRecord._fields[2:])
assert _top(EVENT_RECORD) == list(EventRecord._fields[1:])
assert _top(WORKER_RECORD) == list(WorkerRecord._fields)
