"""What users write, and the types that mypy and pyright must both infer for it.

Checked, and imported, but not run: `assert_type` does nothing at run time.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Generator,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeAlias, assert_never, assert_type
from uuid import UUID

import aiosqlite
import asyncpg
import psycopg
from pydantic import BaseModel
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.types import ASGIApp

import durable_batches.flow as flow
import durable_batches.testing as testing
import durable_batches.web as web
from durable_batches import (
    EXTRACTION,
    AbortAll,
    ActivityContext,
    ActivityFailedError,
    ActivityReport,
    Amount,
    Assembling,
    BatchCancelled,
    BatchClient,
    BatchCompleted,
    BatchConfig,
    BatchCreated,
    BatchEnded,
    BatchEvent,
    BatchFailed,
    BatchFilter,
    BatchId,
    BatchOrchestrator,
    BatchPaused,
    BatchRedriven,
    BatchResult,
    BatchResumed,
    BatchSealed,
    BatchSnapshot,
    BatchState,
    BatchStateMachine,
    BatchUpdated,
    BlockedLoop,
    Cancelled,
    Chunking,
    CircuitOpenError,
    Completed,
    ContinueOnFailure,
    Counts,
    DamagedBatch,
    DeadWorker,
    DocumentCancelled,
    DocumentCompleted,
    DocumentFailed,
    DocumentFailure,
    DocumentInfo,
    DocumentReleased,
    DocumentRetrying,
    DocumentsAdded,
    DocumentStarted,
    DocumentSucceeded,
    DocumentSuspended,
    DocumentWoken,
    DurableActivity,
    ErrorClassifier,
    ErrorDigest,
    ErrorGroup,
    ErrorKind,
    ExecutionContext,
    Explanation,
    ExtractingEntities,
    ExtractingMentions,
    ExtractingRelations,
    ExtractionStage,
    Failed,
    FailurePolicy,
    IsolatedDocument,
    LongCalls,
    MemoryStore,
    NoWorker,
    Outcome,
    PausedBatch,
    PauseReason,
    Pending,
    ProviderJobChanged,
    QueuedDocuments,
    QuotaExhausted,
    RateLimitedError,
    RawDocument,
    Reason,
    ResolutionCompleted,
    ResolutionFailed,
    ResolutionReleased,
    ResolutionStarted,
    Resolver,
    ResolverStatus,
    Resolving,
    Results,
    RetryFailed,
    RetryLater,
    RetryPolicy,
    RunningDocuments,
    RunStats,
    SQLiteStore,
    Stage,
    StageCount,
    StageProgress,
    StateChanged,
    Store,
    SuspendedDocuments,
    ThrottledLimiter,
    UnknownEvent,
    UnselectedBatch,
    Verdict,
    Worker,
    WorkerHealth,
    Workflow,
    current_activity,
    current_execution,
    default_classifier,
    dependency,
    durable_activity,
    durable_now,
    durable_uuid,
    enter_stage,
    map_activity,
    run_batch,
    workflow,
)
from durable_batches.executors import ExecutorOrFactory, process_pool
from durable_batches.lifecycle.commands import Command
from durable_batches.lifecycle.facts import Fact
from durable_batches.lifecycle.records import (
    BatchRecord,
    CheckpointRecord,
    ClaimRequest,
    Committed,
    DocumentRecord,
    EventRecord,
    ExecutionStatus,
    Micros,
    NewDocument,
    WorkerId,
    WorkerRecord,
)
from durable_batches.stores import BatchQuery, Capabilities, Heart
from durable_batches.stores.protocol import Expired
from durable_batches.testing import results_of

# ---- the example of the design ------------------------------------------------------------------------------------


@durable_activity(stage=Chunking)
async def split(text: str, size: int = 3) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@durable_activity(stage=ExtractingMentions)
def count(chunk: str) -> int:
    return len(chunk)


async def link(results: Results[dict[str, int]]) -> float:
    total = 0.0
    async for result in results:
        assert_type(result, DocumentSucceeded[dict[str, int]])
        assert_type(result.value, dict[str, int])
        total += result.value["total"]
    return total


@workflow(EXTRACTION, resolver=link)
async def extract(document: str) -> dict[str, int]:
    chunks = await split(document, size=4)
    assert_type(chunks, list[str])
    counts = await map_activity(count, chunks)
    assert_type(counts, list[int])
    return {"total": sum(counts)}


Extract: TypeAlias = Workflow[str, dict[str, int], ExtractionStage, float]

assert_type(EXTRACTION, BatchStateMachine[ExtractionStage])
assert_type(extract, Extract)


async def of_the_design() -> None:
    async with BatchOrchestrator(extract, store=SQLiteStore("batches.db")) as batches:
        assert_type(batches, BatchOrchestrator[str, dict[str, int], ExtractionStage, float])
        batch_id = await batches.submit(["a", "b"])
        assert_type(batch_id, BatchId)
        assert_type((await batches.result(batch_id, progress=True)).raise_for_failures().value, float)
        state = await batches.state(batch_id)
        assert_type(
            state,
            Pending
            | Chunking
            | ExtractingMentions
            | ExtractingEntities
            | ExtractingRelations
            | Assembling
            | Resolving
            | Completed
            | Failed
            | Cancelled,
        )
        match state:
            case Pending() | Resolving():
                pass
            case Chunking(done=done, total=total):
                assert_type((done, total), tuple[int, int])
            case ExtractingMentions() | ExtractingEntities() | ExtractingRelations() | Assembling():
                pass
            case Completed() | Failed() | Cancelled():
                pass
            case _:
                assert_never(state)
        async for outcome in batches.results(batch_id):
            match outcome:
                case DocumentSucceeded(value=value):
                    assert_type(value, dict[str, int])
                case DocumentFailure(error=error):
                    assert_type(error, str)
                case DocumentCancelled():
                    pass
                case _:
                    assert_never(outcome)


# ---- machines of one's own ----------------------------------------------------------------------------------------


class A(Stage):
    tag: Literal["a"] = "a"


class B(Stage):
    tag: Literal["b"] = "b"


class C(Stage):
    tag: Literal["c"] = "c"


class D(Stage):
    tag: Literal["d"] = "d"


class E(Stage):
    tag: Literal["e"] = "e"


class F(Stage):
    tag: Literal["f"] = "f"


class G(Stage):
    tag: Literal["g"] = "g"


class H(Stage):
    tag: Literal["h"] = "h"


class I(Stage):  # noqa: E742  (the ninth letter of a row of letters)
    tag: Literal["i"] = "i"


class J(Stage):
    tag: Literal["j"] = "j"


class K(Stage):
    tag: Literal["k"] = "k"


class L(Stage):
    tag: Literal["l"] = "l"


ONE = BatchStateMachine(A)
TWO = BatchStateMachine(A, B)
THREE = BatchStateMachine(A, B, C)
SIX = BatchStateMachine(A, B, C, D, E, F)
TWELVE = BatchStateMachine(A, B, C, D, E, F, G, H, I, J, K, L)
EXPLICIT = BatchStateMachine[A | B](A, B)

assert_type(ONE, BatchStateMachine[A])
assert_type(TWO, BatchStateMachine[A | B])
assert_type(THREE, BatchStateMachine[A | B | C])
assert_type(SIX, BatchStateMachine[A | B | C | D | E | F])
assert_type(TWELVE, BatchStateMachine[A | B | C | D | E | F | G | H | I | J | K | L])
assert_type(EXPLICIT, BatchStateMachine[A | B])
assert_type(TWO.stages, Sequence[type[A | B]])
assert_type(TWO.tags, tuple[str, ...])
assert_type(TWO.transitions, Mapping[str, frozenset[str]])
assert_type(TWO.can_transition("a", "b"), bool)
assert_type(TWO.stage("a", done=0, total=1), A | B | None)

# From a list, or more than there are overloads.
LISTED: list[type[A | B]] = [A, B]
assert_type(BatchStateMachine(*LISTED), BatchStateMachine[A | B])


@workflow(ONE)
async def of_one(document: str) -> str:
    return document


@workflow(TWO)
async def of_two(document: str) -> str:
    return document


@workflow(THREE)
async def of_three(document: str) -> str:
    return document


@workflow(SIX)
async def of_six(document: str) -> str:
    return document


@workflow(TWELVE)
async def of_twelve(document: str) -> str:
    return document


async def states_of(
    one: BatchOrchestrator[str, str, A],
    two: BatchOrchestrator[str, str, A | B],
    three: BatchOrchestrator[str, str, A | B | C],
) -> None:
    first = await one.state("")
    assert_type(first, Pending | A | Resolving | Completed | Failed | Cancelled)
    match first:
        case A(done=done) | Pending(total=done):
            assert_type(done, int)
        case Resolving(counts=counts) | Completed(counts=counts):
            assert_type(counts, Counts)
        case Failed(error=text) | Cancelled(reason=text):
            assert_type(text, str)
        case _:
            assert_never(first)
    assert_type(first.tag, Literal["pending", "a", "resolving", "completed", "failed", "cancelled"])
    second: BatchState[A | B] = await two.state("")
    assert_type(second, Pending | A | B | Resolving | Completed | Failed | Cancelled)
    third = (await three.snapshot("")).state
    assert_type(third, Pending | A | B | C | Resolving | Completed | Failed | Cancelled)
    if third.tag == "b":
        assert_type(third, B)


async def states_of_many(store: Store) -> None:
    six = BatchOrchestrator(of_six, store=store)
    assert_type(await six.state(""), Pending | A | B | C | D | E | F | Resolving | Completed | Failed | Cancelled)
    twelve = await BatchOrchestrator(of_twelve, store=store).state("")
    assert_type(
        twelve,
        Pending | A | B | C | D | E | F | G | H | I | J | K | L | Resolving | Completed | Failed | Cancelled,
    )
    match twelve:
        case A() | B() | C() | D() | E() | F() | G() | H() | I() | J() | K() | L():
            assert_type(twelve.total, int)
        case Pending() | Resolving() | Completed() | Failed() | Cancelled():
            pass
        case _:
            assert_never(twelve)


def states_are_dataclasses() -> None:
    stage = A(done=1, total=2)
    assert_type(A.tag, Literal["a"])
    assert_type(dataclasses.replace(stage, done=2), A)
    assert_type(dataclasses.asdict(stage), dict[str, Any])
    assert_type(dataclasses.asdict(Pending(total=1)), dict[str, Any])
    kinds: set[Stage | Pending] = {stage, Pending(total=1)}
    assert_type(kinds.pop().total, int)


# ---- activities ---------------------------------------------------------------------------------------------------


class Query(BaseModel):
    text: str


@dataclass(frozen=True)
class Answer:
    text: str


@durable_activity
async def bare(query: Query) -> Answer:
    return Answer(query.text)


@durable_activity
def bare_sync(query: Query, *, times: int = 1) -> Answer:
    return Answer(query.text * times)


@durable_activity()
def no_options(query: Query) -> Answer:
    return Answer(query.text)


@durable_activity
def eventual(number: int) -> Awaitable[str]:
    return words(number)


async def words(number: int) -> str:
    return str(number)


def text_of(query: Query, session: str) -> str:
    return f"{session}:{query.text}"


@durable_activity(key=text_of, stage=A, version="2")
async def keyed(query: Query, session: str) -> Answer:
    return Answer(query.text + session)


def in_session(query: Query, *, session: str = "") -> str:
    return f"{session}:{query.text}"


@durable_activity(key=in_session)
def keyed_sync(query: Query, *, session: str = "") -> Answer:
    return Answer(query.text + session)


def judge(error: BaseException) -> Verdict:
    if isinstance(error, QuotaExhausted):
        assert_type(error.retry_after, timedelta | None)
    verdict = default_classifier(error)
    assert_type(verdict.kind, ErrorKind)
    return Verdict(kind="overloaded", retry_after=timedelta(seconds=1)) if verdict.kind == "retry" else verdict


_classifier: ErrorClassifier = judge


@durable_activity(
    name="ask",
    ignore=("client",),
    timeout=timedelta(seconds=30),
    retry=RetryPolicy(max_attempts=5, non_retryable=(KeyError, ValueError), retryable=lambda error: bool(error.args)),
    classify=judge,
)
async def with_options(query: Query, client: object = None) -> tuple[Answer, ...]:
    here = current_activity()
    assert_type(here, ActivityContext)
    assert_type(here.idempotency_key, str)
    here.report(1, 2)
    if here.attempt == 1:
        raise RetryLater(timedelta(seconds=1))
    return (Answer(query.text),)


@durable_activity(run_on="cpu", stage=B)
def heavy(text: str, times: int = 1) -> list[str]:
    return [text] * times


assert_type(heavy.run_on, str | None)
_on_a_gpu = heavy.with_options(run_on="gpu")


def pool_of_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(4)


_executors: dict[str, ExecutorOrFactory] = {
    "cpu": process_pool(2, calls_per_process=100, start_method="spawn"),
    "threads": pool_of_threads,
    "given": ThreadPoolExecutor(4),
}
Worker(MemoryStore(), executors=_executors)
Worker(MemoryStore(), executors={"cpu": process_pool(), "io": ThreadPoolExecutor})


@durable_activity
async def nothing() -> None:
    return None


ask_again = durable_activity(stage=B)(words)

assert_type(nothing, DurableActivity[[], None])
assert_type(bare.name, str)
assert_type(bare.stage, type[Stage] | None)


async def calls() -> None:
    query = Query(text="")
    pending = assert_type(split(text="a", size=4), Coroutine[Any, Any, list[str]])
    assert_type(await pending, list[str])
    assert_type(await split(text="a", size=4), list[str])
    assert_type(await split("a", 4), list[str])
    assert_type(await split("a"), list[str])
    assert_type(await count("a"), int)
    assert_type(await bare(query), Answer)
    assert_type(await bare(query=query), Answer)
    assert_type(await bare_sync(query, times=2), Answer)
    assert_type(await no_options(query=query), Answer)
    assert_type(await eventual(1), str)
    assert_type(await ask_again(number=1), str)
    assert_type(await nothing(), None)
    assert_type(await keyed(query, "s"), Answer)
    assert_type(await keyed(query=query, session="s"), Answer)
    assert_type(await keyed_sync(query, session="s"), Answer)
    assert_type(await with_options(query), tuple[Answer, ...])
    assert_type(await heavy("a", times=2), list[str])
    assert_type(await _on_a_gpu("a"), list[str])
    assert_type(await map_activity(bare, [query]), list[Answer])
    assert_type(await map_activity(bare_sync, (query for _ in range(3)), concurrency=2), list[Answer])
    assert_type(await map_activity(words, {1, 2}), list[str])
    assert_type(await durable_now(), datetime)
    assert_type(await durable_uuid(), UUID)


# ---- workflows ----------------------------------------------------------------------------------------------------


@workflow(TWO, name="plain", version="3", accepts=("1", "2"))
async def plain(query: Query) -> Answer:
    enter_stage(A)
    try:
        return await bare(query)
    except ActivityFailedError as error:
        assert_type(error.caused_by(KeyError), bool)
        return Answer(error.message)


assert_type(plain, Workflow[Query, Answer, A | B, None])
assert_type(plain.name, str)
assert_type(plain.accepts, tuple[str, ...])


async def gather(results: Results[Answer]) -> list[str]:
    assert_type(results.batch_id, BatchId)
    assert_type(results.counts.failed, int)
    texts = [result.value.text async for result in results]
    async with aclosing(aiter(results)) as found, aclosing(aiter(results.reopen())) as again:
        assert_type(await anext(found), DocumentSucceeded[Answer])
        async for result in again:
            assert_type(result, DocumentSucceeded[Answer])
    assert_type(results.reopen(), Results[Answer])
    assert_type(results.again(), Results[Answer])  # type: ignore[deprecated]  # pyright: ignore[reportDeprecated]
    async with aclosing(results.pages(100)) as pages:
        async for page in pages:
            assert_type(page, list[DocumentSucceeded[Answer]])
    async with aclosing(results.failures()) as failures:
        async for failure in failures:
            assert_type(failure, DocumentFailure)
            assert_type(failure.activity, str | None)
    return texts


# A resolver that returns nothing is not the same as none.
async def announce(results: Results[Answer]) -> None:
    async for _ in results:
        pass


class Gatherer:
    async def gather(self, results: Results[Answer]) -> Answer:
        return Answer(" ".join([result.value.text async for result in results]))


named: Resolver[Answer, list[str]] = gather


@workflow(THREE, resolver=gather, resolver_retry=RetryPolicy(max_attempts=1))
async def resolved(query: Query) -> Answer:
    return Answer(query.text)


@workflow(THREE, resolver=announce)
async def announced(query: Query) -> Answer:
    return Answer(query.text)


@workflow(ONE, resolver=Gatherer().gather)
async def by_method(query: Query) -> Answer:
    return Answer(query.text)


@workflow(ONE, resolver=named)
async def by_name(query: Query) -> Answer:
    return Answer(query.text)


assert_type(resolved, Workflow[Query, Answer, A | B | C, list[str]])
assert_type(announced, Workflow[Query, Answer, A | B | C, None])
assert_type(by_method, Workflow[Query, Answer, A, Answer])
assert_type(by_name, Workflow[Query, Answer, A, list[str]])


class Known:
    """Results for the unit test of a resolver."""

    batch_id: BatchId = BatchId("")
    counts: Counts = Counts(total=1, succeeded=1)
    answer: DocumentSucceeded[Answer] = DocumentSucceeded(document_id="", value=Answer("a"))

    def reopen(self) -> Known:
        return self

    def again(self) -> Known:
        return self

    async def __aiter__(self) -> AsyncGenerator[DocumentSucceeded[Answer], None]:
        yield self.answer

    async def pages(self, size: int) -> AsyncGenerator[list[DocumentSucceeded[Answer]], None]:
        yield [self.answer][:size]

    async def failures(self) -> AsyncGenerator[DocumentFailure, None]:
        for _ in range(self.counts.failed):
            yield DocumentFailure(document_id="", error="", error_type="", activity=None, attempts=1)


async def a_workflow_is_its_function() -> None:
    assert_type(await gather(Known()), list[str])
    assert_type(await gather(results_of([Answer("a"), Answer("b")])), list[str])
    known = results_of({"a": 1, "b": 2}, failures={"c": ValueError("no")}, batch_id="nightly")
    assert_type(known, Results[int])
    assert_type(results_of(range(3), failures=[failure async for failure in known.failures()]), Results[int])
    pending = assert_type(plain(Query(text="")), Coroutine[Any, Any, Answer])
    assert_type(await pending, Answer)
    assert_type(await extract("a"), dict[str, int])


# ---- orchestrators ------------------------------------------------------------------------------------------------


async def submissions_in_transactions(
    batches: BatchOrchestrator[Query, Answer, A | B | C, list[str]],
    asyncs: tuple[
        aiosqlite.Connection,
        AsyncConnection,
        AsyncSession,
        asyncpg.Connection[asyncpg.Record],
        psycopg.AsyncConnection[dict[str, object]],
    ],
    syncs: tuple[sqlite3.Connection, Connection, Session, psycopg.Connection[tuple[object, ...]]],
) -> None:
    documents = [Query(text="")]
    assert_type(await batches.submit(documents, connection=asyncs[0]), BatchId)
    assert_type(await batches.submit(documents, connection=asyncs[1]), BatchId)
    assert_type(await batches.submit(documents, connection=asyncs[2]), BatchId)
    assert_type(await batches.submit(documents, connection=asyncs[3]), BatchId)
    assert_type(await batches.submit(documents, connection=asyncs[4]), BatchId)
    assert_type(batches.submit_sync(documents, connection=syncs[0]), BatchId)
    assert_type(batches.submit_sync(documents, connection=syncs[1], batch_id="nightly"), BatchId)
    assert_type(batches.submit_sync(documents, connection=syncs[2], document_id=lambda query: query.text), BatchId)
    assert_type(batches.submit_sync(documents, connection=syncs[3], if_exists="error"), BatchId)


async def submissions(batches: BatchOrchestrator[Query, Answer, A | B | C, list[str]], path: Path) -> None:
    async def streamed() -> AsyncIterator[Query]:
        yield Query(text="")

    assert_type(await batches.submit(Query(text=line) for line in path.read_text().splitlines()), BatchId)
    assert_type(await batches.submit(streamed(), if_exists="error"), BatchId)
    assert_type(
        await batches.submit((Query(text=""),), batch_id="nightly", document_id=lambda query: query.text), BatchId
    )
    assert_type(batches.submit_sync([Query(text="")]), BatchId)
    result = await batches.run(streamed(), config=BatchConfig(concurrency=2), batch_id="nightly")
    assert_type(result, BatchResult[list[str]])
    assert_type(result.value, list[str])
    assert_type(result.resolution, list[str] | None)
    assert_type(result.raise_for_failures(), BatchResult[list[str]])
    assert_type(result.failures, Sequence[DocumentFailure])
    assert_type(result.state, Completed | Failed | Cancelled)
    match result.state:
        case Completed():
            pass
        case Failed(error=text) | Cancelled(reason=text):
            assert_type(text, str)
        case _:
            assert_never(result.state)


async def without_a_resolver(batches: BatchOrchestrator[Query, Answer, A | B]) -> None:
    result = await batches.result("")
    assert_type(result, BatchResult[None])
    assert_type(result.resolution, None)


def in_a_script(path: Path) -> None:
    assert_type(run_batch(extract, ["a", "b"], store="batches.db"), BatchResult[float])
    assert_type(run_batch(plain, [Query(text="")], store=path), BatchResult[None])
    result = run_batch(
        resolved,
        (Query(text=line) for line in path.read_text().splitlines()),
        store=MemoryStore(),
        batch_id="nightly",
        config=BatchConfig(concurrency=2),
        document_id=lambda query: query.text,
        max_in_flight=8,
        drain=timedelta(minutes=1),
        progress=False,
    )
    assert_type(result.raise_for_failures().value, list[str])
    assert_type(result.exit_code, int)


async def readings(batches: BatchOrchestrator[Query, Answer, A | B, None]) -> None:
    assert_type(batches.results(""), AsyncGenerator[Outcome[Answer], None])
    async for outcome in batches.results(""):
        assert_type(outcome, DocumentSucceeded[Answer] | DocumentFailure | DocumentCancelled)
        if outcome.tag == "succeeded":
            assert_type(outcome, DocumentSucceeded[Answer])
        elif outcome.tag == "failed":
            assert_type(outcome, DocumentFailure)
        else:
            assert_type(outcome, DocumentCancelled)
    async with aclosing(batches.results("")) as outcomes:
        async for outcome in outcomes:
            match outcome:
                case DocumentSucceeded(value=answer):
                    assert_type(answer, Answer)
                case DocumentFailure(error=error):
                    assert_type(error, str)
                case DocumentCancelled(document_id=document_id):
                    assert_type(document_id, str)
                case _:
                    assert_never(outcome)
    async for info in batches.documents("", status="failed"):
        assert_type(info, DocumentInfo[Query])
        assert_type(info.document, Query)
        assert_type(info.failure, DocumentFailure | None)
        assert_type(info.status, Literal["pending", "running", "waiting", "succeeded", "failed", "cancelled"])
    async for event in batches.progress("", after=3):
        assert_type(event, BatchEvent)
        told(event)
    async for snapshot in batches.watch("", interval=timedelta(seconds=1)):
        assert_type(snapshot, BatchSnapshot[A | B])
        assert_type(snapshot.state, Pending | A | B | Resolving | Completed | Failed | Cancelled)
        assert_type(snapshot.stages, Sequence[StageCount])
        assert_type(snapshot.eta, datetime | None)
        assert_type(snapshot.metadata, dict[str, str])
    async for snapshot in batches.list_batches(states=["failed"], metadata={"kind": "nightly"}):
        assert_type(snapshot, BatchSnapshot[A | B])
    assert_type(await batches.cancel("", reason="enough"), bool)
    assert_type(batches.stats, RunStats)
    assert_type(batches.reports(""), list[ActivityReport])
    assert_type(batches.events("", after=3), AsyncGenerator[BatchEvent, None])
    assert_type((await batches.snapshot("")).ended_at, datetime | None)


async def from_outside(store: Store) -> None:
    async with BatchClient(store, read_only=True) as client:
        assert_type(client, BatchClient)
        async for batch in client.list_batches(workflow="extract", states=["failed"], metadata={"kind": "nightly"}):
            assert_type(batch, BatchSnapshot[Stage])
            assert_type(batch.workflow, str)
            match batch.state:
                case Stage(tag=tag, done=done):
                    assert_type(tag, str)
                    assert_type(done, int)
                case Pending() | Resolving() | Completed() | Failed() | Cancelled():
                    pass
                case _:
                    assert_never(batch.state)
        assert_type(client.documents("", fingerprint="v1:ab"), AsyncGenerator[RawDocument, None])
        async for document in client.documents("", status="failed", payloads=False):
            assert_type(document, RawDocument)
            assert_type(document.document, str | None)
            assert_type(document.failure, DocumentFailure | None)
            assert_type(document.due, datetime | None)
        async for event in client.progress("", after=3):
            assert_type(event, BatchEvent)
        async for snapshot in client.watch("", interval=timedelta(seconds=1)):
            assert_type(snapshot, BatchSnapshot[Stage])
        assert_type(client.events(""), AsyncGenerator[BatchEvent, None])
        assert_type(await client.state(""), BatchState[Stage])
        assert_type(await client.cancel("", reason="enough"), bool)
        digest = await client.errors("", examples=1)
        assert_type(digest, ErrorDigest)
        assert_type(digest.groups, Sequence[ErrorGroup])
        assert_type(digest.groups[0].examples, Sequence[DocumentFailure])
        explanation = await client.explain("")
        assert_type(explanation, Explanation[Stage])
        for reason in explanation.reasons:
            assert_type(described(reason), str)


async def explained(batches: BatchOrchestrator[Query, Answer, A | B, None]) -> None:
    explanation = await batches.explain("")
    assert_type(explanation, Explanation[A | B])
    assert_type(explanation.state, BatchState[A | B])


def described(reason: Reason) -> str:
    match reason:
        case RunningDocuments(oldest_document_id=oldest, workers=workers):
            assert_type(workers, Mapping[str, int])
            return oldest
        case SuspendedDocuments(what=what):
            assert_type(what, Literal["signal", "timer", "retry", "rate-limit", "provider-batch"])
            return what
        case NoWorker(known=known, too_old=too_old):
            assert_type(known, Sequence[tuple[str, str]])
            assert_type(too_old, Sequence[str])
            return str(known)
        case UnselectedBatch(workers=take_others):
            assert_type(take_others, Mapping[str, Literal["mine", "filter"]])
            return str(take_others)
        case DeadWorker(lease_until=until) | QueuedDocuments(since=until):
            assert_type(until, datetime)
            return str(until)
        case PausedBatch(reason=why, note=note):
            assert_type(why, PauseReason)
            return note
        case DamagedBatch(problem=problem):
            return problem
        case BlockedLoop(where=where, until=turned):
            assert_type(turned, datetime | None)
            return where
        case LongCalls(activity=activity, workers=on_workers):
            assert_type(on_workers, Mapping[str, int])
            return activity
        case ThrottledLimiter(limiter=limiter, workers=on_workers, breaker=breaker, until=turned):
            assert_type(on_workers, Mapping[str, int])
            assert_type(breaker, Literal["closed", "open", "half-open"])
            assert_type(turned, datetime | None)
            return limiter
        case IsolatedDocument(worker=worker):
            assert_type(worker, str | None)
            return worker or ""
        case ResolverStatus(waits=waits):
            assert_type(waits, Literal["worker", "retry", "signal", "timer"] | None)
            return waits or ""
        case BatchEnded(counts=counts):
            assert_type(counts, Counts)
            return reason.tag
        case _:
            assert_never(reason)


def told(event: BatchEvent) -> str:
    assert_type(event.batch_id, BatchId)
    assert_type(event.seq, int)
    assert_type(event.at, datetime)
    assert_type(dataclasses.asdict(event), dict[str, Any])
    match event:
        case BatchCreated(workflow=name, version=version):
            return name + version
        case StateChanged(previous=previous, state=state):
            return previous + state
        case DocumentStarted(document_id=document_id, attempt=attempt):
            return document_id * attempt
        case StageProgress(stage=stage, current=current, total=total, percentage=percentage):
            assert_type(percentage, float)
            return stage * (current + total)
        case DocumentCompleted(unused_checkpoints=number):
            return "." * number
        case DocumentRetrying(due=due):
            assert_type(due, datetime)
            return due.isoformat()
        case DocumentReleased(reason=reason):
            assert_type(reason, Literal["shutdown", "crash", "paused"])
            return reason
        case DocumentFailed(error=error) | ResolutionFailed(error=error):
            return error
        case ResolutionStarted() | ResolutionCompleted():
            return event.tag
        case BatchCompleted(counts=counts) | BatchFailed(counts=counts) | BatchCancelled(counts=counts):
            assert_type(counts, Counts)
            return str(counts.ended)
        case BatchPaused(reason=reason, until=until):
            assert_type(reason, Literal["operator", "budget", "canary", "quota"])
            assert_type(until, datetime | None)
            return reason
        case BatchResumed() | BatchSealed() | DocumentWoken():
            return event.tag
        case BatchRedriven(run=run, counts=counts):
            return str(run + counts.total)
        case BatchUpdated(changes=changes):
            return ", ".join(changes)
        case DocumentsAdded(count=count, total=total):
            return str(count + total)
        case DocumentSuspended(waits_for=names, due=due):
            assert_type(due, datetime | None)
            return ", ".join(names)
        case ProviderJobChanged(job=job):
            return str(job)
        case ResolutionReleased(reason=reason):
            assert_type(reason, Literal["shutdown", "crash", "paused"])
            return reason
        case UnknownEvent(name=name, data=data):
            return name + data
        case _:
            assert_never(event)


def one_worker_for_two() -> None:
    worker = Worker(MemoryStore(), max_in_flight=8, lease=timedelta(seconds=10), clock=testing.ManualClock())
    assert_type(
        BatchOrchestrator(extract, worker=worker), BatchOrchestrator[str, dict[str, int], ExtractionStage, float]
    )
    assert_type(BatchOrchestrator(plain, worker=worker).worker, Worker)
    assert_type(
        BatchOrchestrator(announced, worker=worker, config=BatchConfig(concurrency=1)),
        BatchOrchestrator[Query, Answer, A | B | C, None],
    )
    BatchOrchestrator(plain, store=SQLiteStore(Path("batches.db")), max_in_flight=0)


# ---- configurations -----------------------------------------------------------------------------------------------


POLICIES: list[FailurePolicy] = [
    ContinueOnFailure(max_failures=3, max_failure_ratio=0.5),
    AbortAll(),
    RetryFailed(max_attempts=2, backoff=timedelta(0), then=AbortAll()),
]

CONFIGS = [
    BatchConfig(),
    BatchConfig(concurrency=2, failure_policy=ContinueOnFailure()),
    BatchConfig(failure_policy=AbortAll(), deadline=timedelta(hours=1)),
    BatchConfig(failure_policy=RetryFailed(then=ContinueOnFailure()), document_timeout=timedelta(minutes=1)),
    BatchConfig(max_crashes=2, metadata={"kind": "nightly"}),
]


def policies(config: BatchConfig) -> str:
    match config.failure_policy:
        case ContinueOnFailure(max_failures=most):
            assert_type(most, int | None)
            return "continue"
        case AbortAll(tag=tag):
            assert_type(tag, Literal["abort-all"])
            return tag
        case RetryFailed(then=then):
            assert_type(then, ContinueOnFailure | AbortAll)
            return "retry"
        case _:
            assert_never(config.failure_policy)


# ---- covariance ---------------------------------------------------------------------------------------------------


class Animal(BaseModel):
    name: str


class Dog(Animal):
    tricks: int = 0


def of_results(
    succeeded: DocumentSucceeded[Dog],
    outcome: Outcome[Dog],
    result: BatchResult[Dog],
    info: DocumentInfo[Dog],
    machine: BatchStateMachine[A],
    activity: DurableActivity[[int], Dog],
) -> tuple[
    DocumentSucceeded[Animal],
    Outcome[Animal],
    BatchResult[Animal],
    DocumentInfo[Animal],
    BatchStateMachine[A | B],
    DurableActivity[[int], Animal],
]:
    return succeeded, outcome, result, info, machine, activity


# ---- stores -------------------------------------------------------------------------------------------------------


class Loud(MemoryStore):
    async def open(self) -> None:
        print("open")
        await super().open()


class Wrapped:
    """A store by its methods alone."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def capabilities(self) -> Capabilities:
        return dataclasses.replace(self._store.capabilities, pushes=False)

    async def open(self) -> None:
        await self._store.open()

    async def close(self) -> None:
        await self._store.close()

    async def register(self, worker: WorkerRecord, lease: Micros) -> None:
        await self._store.register(worker, lease)

    def heart(self, worker: WorkerId) -> Heart:
        return self._store.heart(worker)

    async def workers(self) -> Sequence[WorkerRecord]:
        return await self._store.workers()

    async def expire(self, *, dead: Collection[WorkerId] = ()) -> Expired:
        return await self._store.expire(dead=dead)

    async def leave(self, worker: WorkerId) -> Sequence[EventRecord]:
        return await self._store.leave(worker)

    async def create(self, batch: BatchRecord) -> BatchRecord | None:
        return await self._store.create(batch)

    async def add(self, batch_id: BatchId, loader: WorkerId, documents: Sequence[NewDocument]) -> None:
        await self._store.add(batch_id, loader, documents)

    async def commit(
        self, worker: WorkerId, number: int, facts: Sequence[Fact], claim: ClaimRequest | None = None
    ) -> Committed:
        return await self._store.commit(worker, number, facts, claim)

    async def control(self, batch_id: BatchId, command: Command) -> Committed:
        return await self._store.control(batch_id, command)

    async def batch(self, batch_id: BatchId) -> BatchRecord | None:
        return await self._store.batch(batch_id)

    async def batches(self, query: BatchQuery, *, after: BatchId | None = None, limit: int) -> list[BatchRecord]:
        return list(await self._store.batches(query, after=after, limit=limit))

    async def documents(
        self,
        batch_id: BatchId,
        *,
        statuses: Collection[ExecutionStatus] = (),
        after: int = -1,
        limit: int,
        inputs: bool = True,
    ) -> Sequence[DocumentRecord]:
        return await self._store.documents(batch_id, statuses=statuses, after=after, limit=limit, inputs=inputs)

    async def checkpoints(
        self, batch_id: BatchId, position: int, *, after: str = "", limit: int
    ) -> Sequence[CheckpointRecord]:
        return await self._store.checkpoints(batch_id, position, after=after, limit=limit)

    async def count_checkpoints(self, batch_id: BatchId) -> int:
        return await self._store.count_checkpoints(batch_id)

    async def events(self, batch_id: BatchId, *, after: int, limit: int) -> Sequence[EventRecord]:
        return await self._store.events(batch_id, after=after, limit=limit)

    async def wait(self, seen: Mapping[BatchId, int], *, work: Collection[tuple[str, str]], timeout: Micros) -> None:
        await self._store.wait(seen, work=work, timeout=timeout)


# ---- dependencies, methods, options ---------------------------------------------------------------------------------


class Http:
    async def get(self, url: str) -> bytes:
        return url.encode()


async def http() -> AsyncIterator[Http]:
    yield Http()


async def connected() -> Http:
    return Http()


def held() -> Generator[Http]:
    yield Http()


async def nested(client: Http = dependency(http)) -> AsyncGenerator[bytes]:
    yield await client.get("/")


assert_type(dependency(http), Http)
assert_type(dependency(connected), Http)
assert_type(dependency(held), Http)
assert_type(dependency(Http), Http)
assert_type(dependency(nested), bytes)


@durable_activity
async def fetch(url: str, client: Http = dependency(http)) -> bytes:
    return await client.get(url)


class Service:
    @durable_activity
    async def ask(self, question: str, loud: bool = False) -> list[str]:
        return [question] * (2 if loud else 1)

    @durable_activity(stage=Chunking)
    def think(self, number: int) -> float:
        return number / 2


async def uses_forms(service: Service) -> None:
    assert_type(await fetch("u"), bytes)
    assert_type(await fetch("u", client=Http()), bytes)
    assert_type(await service.ask("q", loud=True), list[str])
    assert_type(await Service.ask(service, "q"), list[str])
    assert_type(await service.think(3), float)
    assert_type(await map_activity(service.think, [1, 2]), list[float])
    assert_type(await fetch.with_options(key="k", timeout=timedelta(seconds=1))("u"), bytes)
    assert_type(await service.ask.with_options(stage=Chunking)("q"), list[str])
    assert_type(current_execution(), ExecutionContext)
    assert_type(current_execution().metadata, Mapping[str, str])


async def fake_fetch(url: str, client: Http = dependency(http)) -> bytes:
    return url.encode() + str(client).encode()


def fake_ask(question: str, loud: bool = False) -> list[str]:
    return [question, str(loud)]


def replaces(service: Service) -> None:
    with fetch.override(fake_fetch), service.ask.override(fake_ask) as nothing:
        assert_type(nothing, None)
    with fetch.replaced(fake_fetch) as nothing:  # type: ignore[deprecated]  # pyright: ignore[reportDeprecated]
        assert_type(nothing, None)


async def count_all(results: Results[object], client: Http = dependency(http)) -> int:
    return len([result async for result in results]) + len(await client.get("/"))


@workflow(EXTRACTION, resolver=count_all)
async def counted(document: str) -> list[str]:
    return [document]


WITH_DEPENDENCIES = Worker(MemoryStore(), dependencies={http: Http(), held: dependency(connected)})
WITH_ITS_OWN = BatchOrchestrator(counted, store=MemoryStore(), dependencies={http: Http()})
assert_type(WITH_ITS_OWN, BatchOrchestrator[str, object, ExtractionStage, int])

# Where values only come out, what gives a narrower one will do.
OF_ANY_STAGE: BatchOrchestrator[str, object, Stage, object] = WITH_ITS_OWN
WORKFLOWS: list[Workflow[str, object, Stage, object]] = [counted]

# ---- testing ------------------------------------------------------------------------------------------------------


async def in_virtual_time(batch_environment: testing.BatchEnvironment, path: Path) -> None:
    async with testing.environment(extract) as env:
        assert_type(env, testing.Environment[str, dict[str, int], ExtractionStage, float])
        assert_type(env.batches, BatchOrchestrator[str, dict[str, int], ExtractionStage, float])
        assert_type(env.clock, testing.ManualClock)
        assert_type(env.store, Store)
        batch_id = await env.batches.submit(["a"])
        await env.settled()
        await env.advance(timedelta(hours=1))
        await env.crash()
        assert_type(await env.finished(batch_id), BatchResult[float])
        async for outcome in env.batches.results(batch_id):
            assert_type(outcome, Outcome[dict[str, int]])
        of_any_stage: testing.Environment[str, object, Stage, object] = env
        print(of_any_stage)
    clock = testing.ManualClock(jitter=0.5)
    async with (
        testing.environment(plain, store=lambda clock: SQLiteStore(path, clock=clock)) as one,
        testing.environment(plain, store=MemoryStore(clock=clock), clock=clock, dependencies={http: Http()}) as two,
        batch_environment(plain, config=BatchConfig(concurrency=1), patience=timedelta(seconds=1)) as three,
    ):
        assert_type(one, testing.Environment[Query, Answer, A | B, None])
        assert_type(two, testing.Environment[Query, Answer, A | B, None])
        assert_type(three, testing.Environment[Query, Answer, A | B, None])


async def crashes(new_batch_store: testing.StoreMaker) -> None:
    queries = (Query(text=text) for text in "ab")
    assert_type(await testing.survives_crashes(plain, queries, store=new_batch_store), testing.CrashReport)
    await testing.survives_crashes(
        extract,
        ["a", "b"],
        comparing=lambda counts: counts.keys(),
        comparing_resolution=lambda number: number.is_integer(),
        document_id=lambda text: text.upper(),
        dependencies={http: Http()},
        limit=10,
    )


def stand_ins() -> None:
    with testing.activity_context(attempt=2, dependencies={http: Http()}) as activity:
        assert_type(activity, testing.RecordingActivityContext)
        assert_type(activity.reports, list[tuple[int, int]])
        as_activities_see_it: ActivityContext = activity
        print(as_activities_see_it)
    with testing.execution_context(metadata={"customer": "acme"}, dependencies={http: Http()}) as execution:
        assert_type(execution, ExecutionContext)


STORES: list[Store] = [MemoryStore(), SQLiteStore("batches.db"), Loud(), Wrapped(MemoryStore())]
MAKERS: list[Callable[[], Store]] = [MemoryStore, Loud]
HEALTH: WorkerHealth = Worker(MemoryStore()).health()
assert_type(HEALTH.not_ready, Literal["closed", "starting", "draining", "lease-lost"] | None)
assert_type(HEALTH.last_commit, datetime | None)
assert_type(HEALTH.lease_left, timedelta)

MINE: BatchFilter = BatchFilter(batch_ids={BatchId("march")}, metadata={"team": "search"})
assert_type(MINE.batch_ids, Collection[str])
assert_type(MINE.metadata, Mapping[str, str])
SELECTIONS: list[BatchFilter | Literal["all", "mine"]] = [
    "all",
    "mine",
    MINE,
    BatchFilter(batch_ids=["march"]),
    BatchFilter(metadata={"team": "search"}),
]
WORKERS = [
    Worker(Wrapped(MemoryStore())),
    Worker(Loud()),
    *(Worker(MemoryStore(), batches=batches) for batches in SELECTIONS),
]
ORCHESTRATOR = BatchOrchestrator(plain, store=Wrapped(MemoryStore()))


# ---- over HTTP -------------------------------------------------------------------------------------------------------


async def by_header(request: Request) -> web.Access | None:
    name = request.headers.get("x-user")
    return None if name is None else web.Access(actions={"read", "control"}, metadata={"team": name}, principal=name)


APPS: list[web.WebApp] = [
    web.create_app(BatchClient(MemoryStore(), read_only=False), authorize=by_header),
    web.create_app(WORKERS[0], allow_anonymous=True, max_clients=10, keep_alive=timedelta(seconds=5)),
    web.create_app(ORCHESTRATOR, authorize=by_header, allowed_origins=["https://example.org"], page=False),
]
MOUNTED: ASGIApp = APPS[0]


def events_over_http(event: BatchEvent) -> None:
    assert_type(web.event_json(event), str)
    assert_type(web.event_of(b"{}"), BatchEvent)
    assert_type(web.openapi(), Mapping[str, Any])


# ---- flow control ----------------------------------------------------------------------------------------------------

LIMITER = flow.CentralRateLimiter(
    name="openai",
    requests_per_minute=3_000,
    tokens_per_minute=400_000,
    max_concurrent=64,
    breaker=flow.CircuitBreaker(failure_threshold=3, counts=lambda error: isinstance(error, OSError)),
)


class FreeForAll:
    """A limiter of the user's own: nothing to inherit."""

    name: str = "free for all"

    @asynccontextmanager
    async def permit(
        self, *, tokens: int = 0, wait: bool = True, max_wait: timedelta | None = None
    ) -> AsyncGenerator[flow.Permit]:
        async with LIMITER.permit(tokens=tokens, wait=wait, max_wait=max_wait) as permit:
            yield permit


LIMITERS: list[flow.Limiter] = [LIMITER, FreeForAll()]


async def with_permits() -> None:
    async with LIMITER.permit(tokens=800, max_wait=timedelta(seconds=5)) as permit:
        assert_type(permit, flow.Permit)
        permit.settle(tokens=650)
        permit.observe({"x-ratelimit-limit-tokens": "400000"})
        permit.refused(timedelta(seconds=1))
    metrics = LIMITER.metrics()
    assert_type(metrics.breaker, Literal["closed", "open", "half-open"])
    assert_type(metrics.next_permit_in, timedelta | None)
    LIMITER.force("auto")


def tokens_of(query: Query, session: str) -> Amount:
    return Amount(tokens=len(query.text) + len(session))


@durable_activity(limiter=LIMITER, estimate=Amount(tokens=800), stage=Chunking)
async def limited(query: Query) -> Answer:
    current_activity().settle(tokens=650)
    current_activity().observe({"x-ratelimit-remaining-tokens": "0"})
    return Answer(text=query.text)


@durable_activity(limiter=FreeForAll(), estimate=tokens_of, timeout=timedelta(seconds=30))
async def estimated(query: Query, session: str) -> Answer:
    return Answer(text=query.text)


@durable_activity(estimate=tokens_of, key=text_of)
def estimated_and_keyed(query: Query, session: str) -> Answer:
    return Answer(text=query.text)


async def with_limiters(query: Query) -> None:
    assert_type(await limited(query), Answer)
    assert_type(await estimated(query, session="s"), Answer)
    assert_type(await estimated_and_keyed(query, "s"), Answer)
    assert_type(await limited.with_options(limiter=LIMITER)(query), Answer)
    assert_type(await limited.with_options(limiter="openai")(query), Answer)
    assert_type(limited.limiter, flow.Limiter | str | None)


def with_a_limit(error: RateLimitedError | CircuitOpenError) -> timedelta:
    return error.retry_after
