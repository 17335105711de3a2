"""Rows and records: the columns' declarations, the keys of executions, and statements over many rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_batches.lifecycle.records import (
    RESOLVER_POSITION,
    BatchRecord,
    EventRecord,
    ExecutionRecord,
    WorkerId,
    WorkerRecord,
)
from durable_batches.lifecycle.states import BatchId, Counts
from durable_batches.stores.columns import (
    ACTIVITY,
    BATCH,
    BATCH_CHANGES,
    BATCH_RECORD,
    EVENT_RECORD,
    EXECUTION,
    EXECUTION_CHANGES,
    EXECUTION_RECORD,
    WORKER_RECORD,
    Column,
    Columns,
    Table,
)
from durable_batches.stores.postgres.commit.write import Statement
from durable_batches.stores.rows import (
    batch_changes,
    batch_of,
    batch_of_execution,
    batch_values,
    events_of,
    execution_changes,
    execution_key,
    execution_keys,
    execution_of,
    execution_values,
    position_of,
    worker_of,
    worker_values,
)
from durable_batches.stores.sqlite import queries


def batch(number: int, **fields: Any) -> BatchRecord:
    """A batch of which no two fields hold the same."""
    record = BatchRecord(
        batch_id=BatchId(f"batch-{number}"),
        workflow=f"workflow-{number}",
        version=f"version-{number}",
        loader=WorkerId(f"loader-{number}"),
        run=number + 1,
        state=f"state-{number}",
        paused=number % 2 == 0,
        counts=Counts(
            total=number + 2,
            pending=number + 3,
            running=number + 4,
            waiting=number + 5,
            succeeded=number + 6,
            failed=number + 7,
            cancelled=number + 8,
        ),
        seq=number + 9,
        free=number + 10,
        wake=number + 11,
        served=number + 12,
        core=f"core-{number}".encode(),
        metadata={"customer": f"customer-{number}", "größe": "\0 ?"},
        created_at=number + 13,
        needs=number + 14,
        next_due=number + 15,
        priority=number + 16,
        partition=f"partition-{number}",
        purged=number + 17,
        ended_at=number + 18,
    )
    return replace(record, **fields)


def execution(number: int, **fields: Any) -> ExecutionRecord:
    """An execution of which no two fields hold the same."""
    record = ExecutionRecord(
        batch_id=BatchId(f"batch-{number}"),
        position=number,
        document_id=f"document-{number}",
        run=number + 1,
        status="running",
        mark=number + 2,
        attempt=number + 3,
        failures=number + 4,
        crashes=number + 5,
        alone=number % 2 == 0,
        owner=WorkerId(f"owner-{number}"),
        due=number + 6,
        updated_at=number + 7,
        expires=number + 8,
        taken_from=WorkerId(f"taken-from-{number}"),
        forget_from=number + 9,
        fingerprint=f"fingerprint-{number}",
    )
    return record._replace(**fields)


def named(columns: Columns, values: Any) -> dict[str, Any]:
    return dict(zip([column.name for column in columns], values, strict=True))


@pytest.mark.parametrize("sqlite", [False, True])
@pytest.mark.parametrize("record", [batch(100), batch(201, loader=None, wake=None, metadata={})], ids=["full", "bare"])
def test_a_batch_is_what_its_row_says(record: BatchRecord, sqlite: bool) -> None:
    row = named(BATCH_RECORD, batch_values(record))
    assert row["total"] == record.counts.total
    assert (row["cancelled"], row["wake"], row["seq"]) == (record.counts.cancelled, record.wake, record.seq)
    if sqlite:  # where a boolean is a number
        row["paused"] = int(row["paused"])
    read = batch_of(list(row.values()))
    assert read == record
    assert type(read.paused) is bool


def test_a_batch_s_changes_are_all_of_it_but_what_never_changes() -> None:
    before, after = batch(100), batch(201, loader=None)
    row = named(BATCH_RECORD, batch_values(before)) | named(BATCH_CHANGES, batch_changes(after))
    never = ("batch_id", "workflow", "version", "created_at")
    assert batch_of(list(row.values())) == replace(after, **{name: getattr(before, name) for name in never})


def test_an_execution_is_what_its_row_says() -> None:
    before, after = execution(100), execution(201, owner=None, due=None)
    row = named(EXECUTION_RECORD, execution_values(before))
    assert execution_of(before.batch_id, before.position, list(row.values())) == before
    row |= named(EXECUTION_CHANGES, execution_changes(after))
    expected = after._replace(document_id=before.document_id)
    assert execution_of(after.batch_id, after.position, list(row.values())) == expected


def test_events_and_workers_are_what_their_rows_say() -> None:
    event = EventRecord(BatchId("batch"), 3, 4, "tag", b"data")
    row = [getattr(event, column.name) for column in EVENT_RECORD]
    assert events_of(event.batch_id, [row, row]) == [event, event]
    worker = WorkerRecord(WorkerId("w"), "boot", "namespace", 7, "now", frozenset({("b", "1"), ("a", "2")}))
    worker = worker._replace(note="note", before=WorkerId("u"), generation=8)
    assert worker_of(worker_values(worker)) == worker
    assert named(WORKER_RECORD, worker_values(worker))["workflows"] == '[["a", "2"], ["b", "1"]]'


def test_columns_stand_in_statements_as_each_database_has_them() -> None:
    some = EXECUTION.choose("key", "owner", "alone")
    assert some.names == "key, owner, alone"
    assert some.marks == "?, ?, ?"
    assert some.marked == "key = ?, owner = ?, alone = ?"
    assert some.of("e") == "e.key, e.owner, e.alone"
    assert some.assigned_from("new") == "key = new.key, owner = new.owner, alone = new.alone"
    assert some.numbered(4) == "$4, $5, $6"
    assert some.arrays(2) == "$2::bigint[], $3::text[], $4::boolean[]"
    assert [column.name for column in BATCH.columns if column not in BATCH.in_backend("sqlite")] == [
        "labels",
        "from_due",
        "from_key",
        "woken_due",
        "woken_key",
    ]
    assert BATCH.in_backend("postgres") == BATCH.columns
    with pytest.raises(KeyError):
        EXECUTION.choose("key", "position")
    column = Column(name="key", type=ACTIVITY.columns[0].type)
    with pytest.raises(AssertionError):
        Table("twice", [column, column])


# ---- the keys of executions ------------------------------------------------------------------------------------------

POSITIONS = st.integers(RESOLVER_POSITION, 2**32 - 2)
"""All that a batch's part of the keys has room for, from the resolver's on."""
KEYS = st.integers(1, 2**31 - 2)


@given(KEYS, POSITIONS)
def test_an_execution_s_key_tells_its_batch_and_its_position(batch: int, position: int) -> None:
    key = execution_key(batch, position)
    assert (batch_of_execution(key), position_of(key)) == (batch, position)
    low, behind = execution_keys(batch)
    assert low <= key < behind
    assert low == execution_key(batch, RESOLVER_POSITION)
    assert behind == execution_key(batch + 1, RESOLVER_POSITION)
    assert key < 2**63, "it fits both databases"


@given(KEYS, POSITIONS)
def test_a_key_is_the_first_document_s_moved_on_by_the_position(batch: int, position: int) -> None:
    """What a plan's rows are written by: one look at a batch, and one addition an execution."""
    assert execution_key(batch, 0) + position == execution_key(batch, position)


# ---- statements over many rows ---------------------------------------------------------------------------------------


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("CREATE TABLE activity (execution INTEGER, key TEXT, failed INTEGER, payload BLOB)")
    yield connection
    connection.close()


def steps_for(connection: sqlite3.Connection, work: Callable[[], None]) -> list[int]:
    """How many rows each statement took that the work executed."""
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    work()
    connection.set_trace_callback(None)
    return [statement.count("), (") + 1 for statement in statements]


@pytest.mark.parametrize(
    ("rows", "steps"),
    [
        (0, []),
        (1, [1]),
        (3, [1, 1, 1]),
        (4, [4]),
        (63, [16, 16, 16, 4, 4, 4, 1, 1, 1]),
        (64, [64]),
        (65, [64, 1]),
        (149, [64, 64, 16, 4, 1]),
    ],
)
def test_many_rows_are_written_in_few_steps_of_few_sizes(
    connection: sqlite3.Connection, rows: int, steps: list[int]
) -> None:
    written = [(number, f"step-{number}", number % 2, b"result") for number in range(rows)]
    statement = "INSERT INTO activity (execution, key, failed, payload) VALUES {rows}"
    assert steps_for(connection, lambda: queries._many(connection, statement, written)) == steps
    assert connection.execute("SELECT * FROM activity ORDER BY rowid").fetchall() == written


def test_a_value_that_all_rows_share_is_given_once() -> None:
    """The driver takes much longer to encode an array."""
    alike, unlike = Statement(), Statement()
    for statement, failed in ((alike, [False, False]), (unlike, [False, True])):
        columns = ACTIVITY.choose("execution", "key", "failed", "payload")
        statement.add("{rows}", columns, [[1, 2], ["a", "b"], failed, [b"", b""]], alike=["failed"])
    assert alike.args == [[1, 2], ["a", "b"], False, [b"", b""]]
    assert alike._parts == [
        "(SELECT execution, key, $3::boolean AS failed, payload "
        "FROM unnest($1::bigint[], $2::text[], $4::bytea[]) AS given (execution, key, payload))"
    ]
    assert unlike.args == [[1, 2], ["a", "b"], [False, True], [b"", b""]]
    assert "$3::boolean[]" in unlike._parts[0]
