"""One real instance of each error, for `docs/errors/`; raised by the library wherever that is no long story."""

from __future__ import annotations

import asyncio
import sqlite3
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from textwrap import fill
from typing import Any, Final, Literal, TypeAlias

import aiosqlite
import asyncpg
import pytest
from tests.support import moving

from durable_batches import (
    ActivityFailedError,
    BatchClient,
    BatchConfig,
    BatchOrchestrator,
    BatchStateMachine,
    DocumentTimeoutError,
    DurableBatchesError,
    ExecutorError,
    MemoryStore,
    MissingExtraError,
    OldWorkersError,
    QuotaExhausted,
    RetryPolicy,
    SchemaTooOldError,
    SQLiteStore,
    Stage,
    SubmissionInProgressError,
    Worker,
    WorkerFencedError,
    current_activity,
    current_execution,
    dependency,
    durable_activity,
    workflow,
)
from durable_batches.errors import CommitUnknownError, CrashLoopError, StoreLockedError
from durable_batches.executors.beginning import Probing, Timeout
from durable_batches.executors.placement import Placement
from durable_batches.flow import CentralRateLimiter, CircuitBreaker
from durable_batches.lifecycle.transitions import check_transition
from durable_batches.runtime.threads import Threads
from durable_batches.stores.postgres.connection.errors import translated
from durable_batches.stores.sqlite.connection import connect, connect_for_reading, transaction
from durable_batches.testing import ManualClock, activity_context
from durable_batches.version import VERSION

Example: TypeAlias = Callable[[Path], Awaitable[object]]

BATCH: Final = "invoices-2031-05"
DOCUMENT: Final = "inv-0017"


class Reading(Stage):
    tag: Literal["reading"] = "reading"


class Rereading(Stage):
    tag: Literal["reading"] = "reading"


class Summing(Stage):
    tag: Literal["summing"] = "summing"


MACHINE = BatchStateMachine(Reading, Summing)
ONCE = RetryPolicy(max_attempts=1)


@durable_activity(stage=Reading, retry=RetryPolicy(max_attempts=3, initial=timedelta(0)))
async def read_amounts(invoice: str) -> list[float]:
    if invoice != "fine":
        raise ConnectionError("the service did not answer")
    return [1.5]


@workflow(MACHINE)
async def invoices(invoice: str) -> float:
    return sum(await read_amounts(invoice))


@workflow(MACHINE)
async def letters(letter: str) -> str:
    return letter


def batches_of(of: Any, *, worker: Worker | None = None) -> BatchOrchestrator[Any, Any, Any, Any]:
    return BatchOrchestrator(of, worker=worker) if worker else BatchOrchestrator(of, store=MemoryStore())


async def caught_in_a_workflow(body: Callable[[], Awaitable[Any]], worker: Worker | None = None) -> None:
    """Raise what an invoice's workflow gets."""
    errors: list[Exception] = []

    @workflow(MACHINE, name="invoices")
    async def run(invoice: str) -> None:
        try:
            await body()
        except Exception as error:  # noqa: BLE001  (raised below, outside)
            errors.append(error)

    async with batches_of(run, worker=worker) as batches:
        await batches.run(["an invoice"], batch_id=BATCH, document_id=its_id)
    raise errors[0]


def its_id(_: object) -> str:
    return DOCUMENT


async def submitted(documents: list[Any], **options: Any) -> object:
    async with batches_of(invoices) as batches:
        return await batches.submit(documents, batch_id=BATCH, **options)


# ---- how the library is used ---------------------------------------------------------------------------------


async def configuration(_: Path) -> object:
    return await submitted("a single invoice")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def machine(_: Path) -> object:
    return BatchStateMachine(Reading, Rereading).tags


async def foreign_stage(_: Path) -> object:
    @workflow(BatchStateMachine(Summing), name="totals")
    async def run(invoice: str) -> float:
        return sum(await read_amounts(invoice))

    return batches_of(run)


async def activity_definition(_: Path) -> object:
    def read_header(invoice: str):  # type: ignore[no-untyped-def]  # noqa: ANN202, RUF100
        return invoice

    return durable_activity(read_header)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


async def missing_extra(_: Path) -> object:
    raise MissingExtraError("extraction", "rapidfuzz")


async def not_in_activity(_: Path) -> object:
    return current_activity()


async def not_in_workflow(_: Path) -> object:
    return current_execution()


async def broken_client() -> str:
    raise ConnectionError("no route to the host")


async def dependency_example(_: Path) -> object:
    @durable_activity
    async def ask(text: str, client: str = dependency(broken_client)) -> str:
        return client

    @workflow(MACHINE)
    async def run(text: str) -> str:
        return await ask(text)

    async with batches_of(run):
        return None


async def executor(_: Path) -> object:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    placement = Placement("cpu", pool, ManualClock())
    threads = Threads(1)
    try:
        await placement.open(threads)
        return await placement.run(
            b"", activity="read_amounts", timeout=Timeout(None), beginning=Probing(), suspect=False
        )
    except ExecutorError as error:
        # The executor's own comes first in a traceback.
        raise error from None
    finally:
        threads.close()


async def worker_not_running(_: Path) -> object:
    return await batches_of(invoices).state(BATCH)


# ---- payloads ------------------------------------------------------------------------------------------------


async def payload(_: Path) -> object:
    return await submitted(["an invoice with a \ud800"], document_id=its_id)


async def payload_too_large(_: Path) -> object:
    return await submitted(["x" * (16 * 1024 * 1024)], document_id=its_id)


# ---- activities and workflows --------------------------------------------------------------------------------


async def activity_failed(_: Path) -> None:
    await caught_in_a_workflow(lambda: read_amounts("an invoice"))


async def activity_timeout(_: Path) -> None:
    @durable_activity(timeout=timedelta(seconds=30), retry=ONCE, name="read_amounts")
    async def slow(invoice: str) -> None:
        await asyncio.Event().wait()

    clock = ManualClock()
    async with moving(clock, 1):
        try:
            await caught_in_a_workflow(lambda: slow("an invoice"), Worker(MemoryStore(clock=clock), clock=clock))
        except ActivityFailedError as error:
            raise error.__cause__ or error from None


async def document_timeout(_: Path) -> object:
    raise DocumentTimeoutError(BATCH, DOCUMENT, 600)


async def checkpoint_mismatch(_: Path) -> None:
    def by_customer(customer: str, invoice: str) -> str:
        return customer

    @durable_activity(key=by_customer, name="read_amounts")
    async def read(customer: str, invoice: str) -> str:
        return invoice

    async def body() -> None:
        await read("ACME", "first")
        await read("ACME", "second")

    await caught_in_a_workflow(body)


async def crash_loop(_: Path) -> object:
    raise CrashLoopError(BATCH, DOCUMENT, 3)


async def quota_exhausted(_: Path) -> object:
    raise QuotaExhausted("the free plan of this month is used up", retry_after=timedelta(hours=1))


async def rate_limited(_: Path) -> object:
    limiter = CentralRateLimiter(name="openai", requests_per_minute=60)
    with activity_context(clock=ManualClock()):
        for _call in range(3):
            async with limiter.permit(wait=False):
                pass
    return None


async def circuit_open(_: Path) -> object:
    limiter = CentralRateLimiter(name="openai", breaker=CircuitBreaker(failure_threshold=1))
    with activity_context(clock=ManualClock()):
        with suppress(TimeoutError):
            async with limiter.permit():
                raise TimeoutError
        async with limiter.permit(max_wait=timedelta(seconds=5)):
            pass
    return None


# ---- batches -------------------------------------------------------------------------------------------------


async def duplicate_document(_: Path) -> object:
    return await submitted(["first", "second"], document_id=its_id)


async def batch_not_found(_: Path) -> object:
    async with batches_of(invoices) as batches:
        return await batches.state("invoices-2013-05")


async def batch_ended(_: Path) -> object:
    async with batches_of(invoices) as batches:
        await batches.run(["fine"], batch_id=BATCH)
        return await batches.pause(BATCH)


async def batch_exists(_: Path) -> object:
    async with batches_of(invoices) as batches:
        await batches.run(["fine"], batch_id=BATCH)
        return await batches.submit(["fine"], batch_id=BATCH, if_exists="error")


async def submission_in_progress(_: Path) -> object:
    raise SubmissionInProgressError(BATCH)


async def transaction_open(folder: Path) -> object:
    @workflow(BatchStateMachine(Reading))
    async def read(document: str) -> str:
        return document

    store = SQLiteStore(folder / "batches.db")
    async with BatchOrchestrator(read, store=store) as batches, aiosqlite.connect(store.path) as connection:
        await batches.submit(["page"], batch_id=BATCH, connection=connection)
        return await batches.result(BATCH)


async def workflow_mismatch(_: Path) -> object:
    worker = Worker(MemoryStore())
    async with batches_of(invoices, worker=worker) as batches, batches_of(letters, worker=worker) as others:
        await batches.run(["fine"], batch_id=BATCH)
        return await others.state(BATCH)


async def invalid_transition(_: Path) -> None:
    check_transition(BATCH, MACHINE.tags, "summing", "reading")


async def batch_failed(_: Path) -> object:
    async with batches_of(invoices) as batches:
        return (await batches.run(["a", "b"], batch_id=BATCH)).value


async def batch_cancelled(_: Path) -> object:
    go_on = asyncio.Event()

    @workflow(MACHINE, name="invoices")
    async def run(invoice: str) -> None:
        await go_on.wait()

    async with batches_of(run) as batches:
        await batches.submit(["a", "b"], batch_id=BATCH)
        await batches.cancel(BATCH, reason="the wrong month")
        go_on.set()
        return (await batches.result(BATCH)).value


async def documents_failed(_: Path) -> object:
    async with batches_of(invoices) as batches:
        config = BatchConfig(concurrency=1)
        return (await batches.run(["fine", "b", "c"], batch_id=BATCH, config=config)).raise_for_failures()


# ---- the store -----------------------------------------------------------------------------------------------


async def store_unavailable(folder: Path) -> object:
    return connect(folder / "missing" / "batches.db")


async def store_read_only(folder: Path) -> object:
    connect(folder / "batches.db").close()
    connection = connect_for_reading(folder / "batches.db")
    try:
        with transaction(connection, folder / "batches.db"):
            return connection.execute("CREATE TABLE one (a)")
    finally:
        connection.close()


async def store_full(folder: Path) -> object:
    connection = connect(folder / "batches.db")
    try:
        connection.execute("PRAGMA max_page_count = 2").fetchall()
        with transaction(connection, folder / "batches.db"):
            connection.execute("CREATE TABLE one (a)")
            return connection.execute("INSERT INTO one VALUES (randomblob(100000))")
    finally:
        connection.close()


async def store_access(folder: Path) -> object:
    def refuse() -> object:
        raise asyncpg.InsufficientPrivilegeError("permission denied for database shop")

    with translated("db.internal:5432/shop"):
        return refuse()


async def store_locked(folder: Path) -> object:
    raise StoreLockedError("db.internal:5432/shop", ["invoices-march"])


async def store_corrupt(folder: Path) -> object:
    path = folder / "batches.db"
    path.write_text("this is a text, and as long as a database's header; that much is looked at " * 4)
    return connect(path)


async def schema_too_new(folder: Path) -> None:
    store = SQLiteStore(folder / "batches.db")
    await store.open()
    await store.close()
    with sqlite3.connect(folder / "batches.db") as connection:
        connection.execute("UPDATE schema_version SET readable_since = '9.1.0'")
    connection.close()
    await store.open()


async def old_workers(folder: Path) -> None:
    raise OldWorkersError(str(folder / "batches.db"), {"worker-7f3a": 4021}, 21.4, "0.2.0")


async def schema_too_old(folder: Path) -> object:
    raise SchemaTooOldError(str(folder / "batches.db"), 1, 2)


async def store_not_found(folder: Path) -> None:
    async with BatchClient(SQLiteStore(folder / "batches.db")):
        pass


async def read_only_client(folder: Path) -> None:
    async with BatchClient(MemoryStore(), read_only=True) as client:
        await client.cancel(BATCH)


async def fact_rejected(folder: Path) -> object:
    connection = connect(folder / "batches.db")
    try:
        with transaction(connection, folder / "batches.db"):
            connection.execute("CREATE TABLE document (id NOT NULL)")
            return connection.execute("INSERT INTO document VALUES (NULL)")
    finally:
        connection.close()


async def commit_unknown(_: Path) -> object:
    raise CommitUnknownError("the connection was lost before the reply to commit 4711 came")


async def worker_fenced(_: Path) -> object:
    raise WorkerFencedError("5f0c2b9d7a5e4c1f8a3b")


EXAMPLES: Final[dict[str, Example]] = {
    "configuration": configuration,
    "machine": machine,
    "foreign-stage": foreign_stage,
    "activity-definition": activity_definition,
    "missing-extra": missing_extra,
    "not-in-activity": not_in_activity,
    "not-in-workflow": not_in_workflow,
    "dependency": dependency_example,
    "executor": executor,
    "worker-not-running": worker_not_running,
    "read-only-client": read_only_client,
    "payload": payload,
    "payload-too-large": payload_too_large,
    "activity-failed": activity_failed,
    "activity-timeout": activity_timeout,
    "document-timeout": document_timeout,
    "checkpoint-mismatch": checkpoint_mismatch,
    "crash-loop": crash_loop,
    "quota-exhausted": quota_exhausted,
    "rate-limited": rate_limited,
    "circuit-open": circuit_open,
    "duplicate-document": duplicate_document,
    "batch-not-found": batch_not_found,
    "batch-ended": batch_ended,
    "batch-exists": batch_exists,
    "submission-in-progress": submission_in_progress,
    "transaction-open": transaction_open,
    "workflow-mismatch": workflow_mismatch,
    "invalid-transition": invalid_transition,
    "batch-failed": batch_failed,
    "batch-cancelled": batch_cancelled,
    "documents-failed": documents_failed,
    "store-unavailable": store_unavailable,
    "store-access": store_access,
    "store-locked": store_locked,
    "store-read-only": store_read_only,
    "store-full": store_full,
    "store-corrupt": store_corrupt,
    "old-workers": old_workers,
    "schema-too-new": schema_too_new,
    "schema-too-old": schema_too_old,
    "store-not-found": store_not_found,
    "fact-rejected": fact_rejected,
    "commit-unknown": commit_unknown,
    "worker-fenced": worker_fenced,
}


async def example_of(code: str, folder: Path) -> DurableBatchesError:
    """The instance, as the library raised it."""
    with pytest.raises(DurableBatchesError) as caught:
        await EXAMPLES[code](folder)
    assert caught.value.code == code
    return caught.value


def as_printed(error: DurableBatchesError, folder: Path) -> str:
    """What the end of its traceback shows; the folder of the test and the library's version are no part of it."""
    text = "".join(traceback.format_exception_only(error)).strip()
    return text.replace(str(folder), "/srv").replace(VERSION, "0.2.0")


def on_a_page(text: str) -> str:
    """Wrap a printed error for the documentation, whose pages show 78 columns."""
    lines = [fill(line, 78, subsequent_indent="    ", break_on_hyphens=False) for line in text.splitlines()]
    return "\n".join(lines)
