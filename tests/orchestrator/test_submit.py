"""How batches come in: lazily, idempotently, all at once or not at all."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from typing import Any, cast

import pytest
from pydantic import BaseModel, field_serializer, field_validator
from tests.conftest import StoreMaker
from tests.support import STAGES, eventually, everything, within

from durable_batches import (
    BatchConfig,
    BatchCreated,
    BatchExistsError,
    BatchId,
    BatchNotFoundError,
    BatchOrchestrator,
    Completed,
    DocumentSucceeded,
    DuplicateDocumentError,
    PayloadError,
    PayloadTooLargeError,
    Results,
    RetryFailed,
    RetryPolicy,
    Store,
    SubmissionInProgressError,
    Worker,
    WorkflowMismatchError,
    workflow,
)
from durable_batches.errors import ConfigurationError
from durable_batches.lifecycle.records import NewDocument, WorkerId


class Page(BaseModel):
    url: str
    score: float = 0.0
    data: Any = None


@workflow(STAGES)
async def echo(document: str) -> str:
    return document


@workflow(STAGES)
async def read(document: Page) -> str:
    return document.url


async def nothing_remains(batches: BatchOrchestrator[Any, Any, Any, Any], batch_id: str) -> bool:
    with pytest.raises(BatchNotFoundError):
        await batches.state(batch_id)
    store = batches.worker.store
    return (
        await store.batch(BatchId(batch_id)) is None
        and await store.documents(BatchId(batch_id), limit=10) == []
        and await everything(batches.list_batches()) == []
    )


# ---- what comes in -----------------------------------------------------------------------------------------


async def asynchronously(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        await asyncio.sleep(0)
        yield item


class Library:
    """Iterable, and nothing else."""

    def __iter__(self) -> Iterator[str]:
        yield from ("a", "b", "c")


SOURCES: dict[str, Callable[[], Any]] = {
    "list": lambda: ["a", "b", "c"],
    "tuple": lambda: ("a", "b", "c"),
    "generator": lambda: (letter for letter in "abc"),
    "iterator": lambda: iter(["a", "b", "c"]),
    "dict": lambda: {"a": 1, "b": 2, "c": 3},
    "object": Library,
    "async generator": lambda: asynchronously("abc"),
}


@pytest.mark.parametrize("source", SOURCES)
async def test_any_iterable_will_do(source: str, store: Store) -> None:
    async with BatchOrchestrator(echo, store=store) as batches:
        batch_id = await batches.submit(SOURCES[source]())
        assert (await within(batches.result(batch_id))).counts.succeeded == 3
        assert await everything(batches.results(batch_id)) == [
            DocumentSucceeded(document_id=str(position), value=letter) for position, letter in enumerate("abc")
        ]


@pytest.mark.parametrize(
    "documents", ["one string", b"bytes", bytearray(b"x"), memoryview(b"x"), Page(url="u"), 5, None], ids=range(7)
)
async def test_what_is_no_collection_is_refused(documents: Any, store: Store) -> None:
    async with BatchOrchestrator(echo, store=store) as batches:
        with pytest.raises(ConfigurationError, match=r"submit\(\) takes"):
            await batches.submit(documents, batch_id="b")
        assert await nothing_remains(batches, "b")


async def test_documents_are_taken_a_chunk_at_a_time(open_store: StoreMaker) -> None:
    store = open_store(None)
    added: list[int] = []
    taken = 0
    most = 0

    async def add(batch_id: BatchId, loader: WorkerId, documents: list[NewDocument]) -> None:
        nonlocal most
        most = max(most, taken - sum(added))
        added.append(len(documents))
        await original(batch_id, loader, documents)

    original = store.add
    store.add = add  # type: ignore[method-assign, assignment]  # pyright: ignore[reportAttributeAccessIssue]

    def documents() -> Iterator[str]:
        nonlocal taken
        for number in range(1_250):
            taken += 1
            yield f"document {number}"

    async with BatchOrchestrator(echo, store=store) as batches:
        batch_id = await batches.submit(documents())
        assert (await batches.snapshot(batch_id)).counts.total == 1_250
        assert (await within(batches.result(batch_id))).counts.succeeded == 1_250
    assert sum(added) == 1_250
    assert most <= 500


async def test_large_documents_are_stored_in_smaller_chunks(open_store: StoreMaker) -> None:
    store = open_store(None)
    added: list[int] = []

    async def add(batch_id: BatchId, loader: WorkerId, documents: list[NewDocument]) -> None:
        added.append(sum(len(document.input) for document in documents))
        await original(batch_id, loader, documents)

    original = store.add
    store.add = add  # type: ignore[method-assign, assignment]  # pyright: ignore[reportAttributeAccessIssue]
    async with BatchOrchestrator(echo, store=store) as batches:
        await within(batches.run(["x" * 3_000_000] * 5))
    assert max(added) < 8_000_000
    assert len(added) >= 3


async def test_documents_are_invisible_until_all_are_there(store: Store) -> None:
    seen: list[str] = []
    go_on = asyncio.Event()

    @workflow(STAGES)
    async def note(document: str) -> None:
        seen.append(document)

    async def documents() -> AsyncIterator[str]:
        for number in range(1_200):
            yield str(number)
        await go_on.wait()
        yield "last"

    async with BatchOrchestrator(note, store=store) as batches:
        submission = asyncio.create_task(batches.submit(documents(), batch_id="b"))

        async def loading() -> bool:
            return bool(await store.documents(BatchId("b"), limit=1))

        await eventually(loading)
        with pytest.raises(BatchNotFoundError):
            await batches.state("b")
        assert await everything(batches.list_batches()) == []
        with batches.worker.signals.scheduler.idle.listen() as idle:
            batches.worker.wake()
            await idle.next()
        assert seen == []
        go_on.set()
        assert (await within(batches.result(await within(submission)))).counts.succeeded == 1_201


@pytest.mark.parametrize("successor", ["has sealed", "loads", "has failed"])
async def test_a_submitter_that_another_has_taken_over_from_says_so(store: Store, successor: str) -> None:
    """Its lease had run out: it attaches to what the other one has loaded, or says that it is still being loaded."""
    loading, go_on = asyncio.Event(), asyncio.Event()

    async def documents() -> AsyncIterator[str]:
        for number in range(600):
            yield str(number)
        loading.set()
        await go_on.wait()
        for number in range(600, 1_200):
            yield str(number)

    async def endless() -> AsyncIterator[str]:
        yield "other"
        await asyncio.Event().wait()

    async def broken() -> AsyncIterator[str]:
        yield "other"
        raise ConnectionError("the source is gone")

    async with BatchOrchestrator(echo, store=store) as batches, AsyncExitStack() as stack:
        submission = asyncio.create_task(batches.submit(documents(), batch_id="b"))
        await loading.wait()
        await batches.worker.store.expire(dead=[batches.worker.worker_id])
        other = await stack.enter_async_context(BatchOrchestrator(echo, store=store, max_in_flight=0))
        taken_over = asyncio.create_task(asyncio.sleep(0))
        if successor == "has sealed":
            await other.submit(["other"], batch_id="b")
        elif successor == "has failed":
            with pytest.raises(ConnectionError):
                await other.submit(broken(), batch_id="b")
        else:
            taken_over = asyncio.create_task(other.submit(endless(), batch_id="b"))  # type: ignore[arg-type]
            await eventually(lambda: bool(other.worker.loading))
        go_on.set()
        if successor == "has sealed":
            assert await within(submission) == "b"
            assert (await batches.snapshot("b")).counts.total == 1
        else:
            with pytest.raises(SubmissionInProgressError):
                await within(submission)
        taken_over.cancel()
        await asyncio.wait([taken_over])


# ---- ids ---------------------------------------------------------------------------------------------------


async def test_an_id_is_made_where_none_is_given(store: Store) -> None:
    async with BatchOrchestrator(echo, store=store) as batches:
        ids = {await batches.submit(["a"]) for _ in range(5)}
        assert len(ids) == 5
        for batch_id in ids:
            await within(batches.result(batch_id))


async def test_documents_have_ids_of_the_user_s_making(store: Store) -> None:
    async with BatchOrchestrator(read, store=store) as batches:
        pages = [Page(url="https://a/"), Page(url="https://b/?ü=1 2")]
        result = await within(batches.run(pages, document_id=lambda page: page.url))
        found = await everything(batches.documents(result.batch_id))
        assert [info.document_id for info in found] == [page.url for page in pages]


UNUSABLE: list[Any] = ["", "x" * 513, "a\0b", "a\ud800", 5, None, b"a"]


@pytest.mark.parametrize("unusable", UNUSABLE, ids=range(len(UNUSABLE)))
async def test_ids_that_no_store_can_keep_are_refused(unusable: Any, store: Store) -> None:
    async with BatchOrchestrator(echo, store=store) as batches:
        if unusable is not None:
            with pytest.raises(ConfigurationError, match="batch_id must"):
                await batches.submit(["a"], batch_id=unusable)
        with pytest.raises(ConfigurationError, match="document_id must"):
            await batches.submit(["a", "b"], batch_id="b", document_id=lambda _: cast(str, unusable))
        assert await nothing_remains(batches, "b")


@pytest.mark.parametrize(
    "unusual", ["x" * 512, "/../", "'; DROP TABLE batch; --", "%_", " ", "\n", "ü\U0001f600"], ids=repr
)
async def test_ids_may_hold_anything_else(unusual: str, store: Store) -> None:
    async with BatchOrchestrator(echo, store=store) as batches:
        result = await within(batches.run(["a"], batch_id=unusual, document_id=lambda _: unusual))
        assert result.batch_id == unusual
        assert await everything(batches.results(unusual)) == [DocumentSucceeded(document_id=unusual, value="a")]
        assert [event.seq for event in await everything(batches.progress(unusual))][:2] == [1, 2]


@pytest.mark.parametrize("apart", [1, 700], ids=["in one chunk", "in two chunks"])
async def test_two_documents_of_one_id_are_refused_and_nothing_remains(apart: int, store: Store) -> None:
    documents = ["twice", *[f"document {number}" for number in range(apart)], "twice"]
    async with BatchOrchestrator(echo, store=store) as batches:
        with pytest.raises(DuplicateDocumentError, match="two documents of batch 'b' have the id 'twice'") as caught:
            await batches.submit(documents, batch_id="b", document_id=str)
        assert (caught.value.batch_id, caught.value.document_id) == ("b", "twice")
        assert await nothing_remains(batches, "b")
        result = await within(batches.run(documents[1:], batch_id="b", document_id=str))
        assert result.counts.succeeded == apart + 1


async def test_a_key_function_that_raises_is_raised_and_nothing_remains(store: Store) -> None:
    def document_id(document: str) -> str:
        raise LookupError("no id")

    async with BatchOrchestrator(echo, store=store) as batches:
        with pytest.raises(LookupError, match="no id"):
            await batches.submit(["a"], batch_id="b", document_id=document_id)
        assert await nothing_remains(batches, "b")


# ---- bad documents -----------------------------------------------------------------------------------------


class Elsewhere:
    pass


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


BAD_DOCUMENTS: list[tuple[Any, str]] = [
    (Page(url="u", score=math.nan), "$.score"),
    (Page(url="u", score=math.inf), "$.score"),
    (Page(url="u", data={"x": [math.nan]}), "$.data['x'][0]"),
    (Page(url="\ud800"), "$.url"),
    (Page(url="u", data={"\ud800": 1}), "$.data"),
    (Page(url="u", data=Elsewhere()), "$.data"),
    (Page(url="u", data=nested(1_000)), "$.data"),
    (Page(url="u", data=nested(215)), "$"),
    (Page.model_construct(url=5), "$"),
    ({"url": "u"}, "$"),
    ("u", "$"),
    (None, "$"),
]


@pytest.mark.parametrize(("document", "path"), BAD_DOCUMENTS, ids=range(len(BAD_DOCUMENTS)))
async def test_a_document_that_cannot_be_stored_is_refused_and_nothing_remains(
    document: Any, path: str, store: Store
) -> None:
    async with BatchOrchestrator(read, store=store) as batches:
        with pytest.raises(PayloadError, match="a document of workflow 'read'") as caught:
            await batches.submit([Page(url="good"), document], batch_id="b")
        assert caught.value.path.startswith(path)
        assert await nothing_remains(batches, "b")


async def test_a_document_over_the_limit_is_refused_with_both_sizes(store: Store) -> None:
    async with BatchOrchestrator(echo, store=store) as batches:
        with pytest.raises(PayloadTooLargeError, match=r"16,777,219 bytes encoded, over the limit of 16,777,216"):
            await batches.submit(["x" * (16 * 1024 * 1024 + 1)], batch_id="b")
        assert await nothing_remains(batches, "b")


# ---- submissions that break off ----------------------------------------------------------------------------


def breaking(after: int) -> Iterator[str]:
    for number in range(after):
        yield str(number)
    raise LookupError("the source is gone")


async def breaking_asynchronously(after: int) -> AsyncIterator[str]:
    for document in range(after):
        yield str(document)
    raise LookupError("the source is gone")


@pytest.mark.parametrize("source", [breaking, breaking_asynchronously])
@pytest.mark.parametrize("after", [0, 3, 1_200])
async def test_an_iterable_that_raises_half_way_leaves_nothing_and_can_be_submitted_again(
    source: Callable[[int], Any], after: int, store: Store
) -> None:
    async with BatchOrchestrator(echo, store=store) as batches:
        with pytest.raises(LookupError, match="the source is gone"):
            await batches.submit(source(after), batch_id="b")
        assert await nothing_remains(batches, "b")
        assert (await within(batches.run(["a"], batch_id="b"))).counts.total == 1


async def test_a_submission_that_is_cancelled_leaves_nothing(store: Store) -> None:
    waiting = asyncio.Event()

    async def documents() -> AsyncIterator[str]:
        for number in range(600):
            yield str(number)
        waiting.set()
        await asyncio.Event().wait()

    async with BatchOrchestrator(echo, store=store) as batches:
        submission = asyncio.create_task(batches.submit(documents(), batch_id="b"))
        await within(waiting.wait())
        submission.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(submission)
        assert await nothing_remains(batches, "b")


async def test_while_a_batch_is_loading_its_id_is_taken(open_store: StoreMaker) -> None:
    store = open_store(None)
    waiting, go_on = asyncio.Event(), asyncio.Event()

    async def documents() -> AsyncIterator[str]:
        yield "a"
        waiting.set()
        await go_on.wait()

    async with (
        BatchOrchestrator(echo, store=store) as batches,
        BatchOrchestrator(echo, worker=Worker(store)) as others,
    ):
        submission = asyncio.create_task(batches.submit(documents(), batch_id="b"))
        await within(waiting.wait())
        for orchestrator in (batches, others):
            with pytest.raises(SubmissionInProgressError, match="batch 'b' is being loaded"):
                await within(orchestrator.submit(["b"], batch_id="b"))
        go_on.set()
        assert await within(submission) == "b"
        assert (await within(others.result("b"))).counts.total == 1


async def test_what_a_dead_submitter_left_is_wiped(open_store: StoreMaker) -> None:
    store = open_store(None)
    waiting = asyncio.Event()

    async def documents() -> AsyncIterator[str]:
        for number in range(700):
            yield f"left {number}"
        waiting.set()
        await asyncio.Event().wait()

    async with BatchOrchestrator(echo, worker=Worker(store)) as others:
        doomed = BatchOrchestrator(echo, worker=Worker(store))
        async with doomed:
            submission = asyncio.create_task(doomed.submit(documents(), batch_id="b", document_id=str))
            await within(waiting.wait())
            await store.expire(dead=[doomed.worker.worker_id])
            result = await within(others.run(["a", "b"], batch_id="b"))
            assert result.counts.total == result.counts.succeeded == 2
            submission.cancel()
            await asyncio.wait([submission])
        # The late clean-up of the one that was cancelled is not to remove the new one.
        assert await others.state("b") == Completed(counts=result.counts)


# ---- again -------------------------------------------------------------------------------------------------


class Untouchable:
    def __iter__(self) -> Iterator[str]:
        raise AssertionError("an existing batch is attached to without looking at the documents")


async def test_the_same_id_again_attaches(open_store: StoreMaker) -> None:
    async with BatchOrchestrator(echo, store=open_store(None)) as batches:
        first = await batches.submit(["a", "b"], batch_id="b", config=BatchConfig(concurrency=3))
        await within(batches.result(first))
    async with BatchOrchestrator(echo, store=open_store(None)) as batches:
        assert await batches.submit(Untouchable(), batch_id="b", config=BatchConfig(metadata={"a": "b"})) == first
        result = await within(batches.run(Untouchable(), batch_id="b"))
        assert result.counts.total == 2
        assert (await batches.snapshot("b")).metadata == {}
        events = await everything(batches.progress("b"))
        assert sum(isinstance(event, BatchCreated) for event in events) == 1


@pytest.mark.parametrize(
    ("ends", "advice"),
    [
        (
            "cancelled",
            "results('b') has the results of 1 of its 2 documents, and no other batch uses them: to pay for none of "
            "them again, submit only the others under another id; activities that are recorded for those run again",
        ),
        (
            "failed",
            "results('b') has the results of all of its documents, and no other batch uses them: to pay for none of "
            "them again, call the resolver's code on them",
        ),
        ("completed", None),
    ],
)
async def test_a_batch_that_ended_without_all_names_the_way(
    ends: str, advice: str | None, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """What was paid for is still there, and nothing runs again by itself."""
    waiting = asyncio.Event()

    async def resolve(results: Results[str]) -> int:
        if ends == "failed":
            raise LookupError("no such table")
        return results.counts.succeeded

    @workflow(STAGES, resolver=resolve, resolver_retry=RetryPolicy(max_attempts=1))
    async def run(document: str) -> str:
        if ends == "cancelled" and document == "b":
            waiting.set()
            await asyncio.Event().wait()
        return document

    async with BatchOrchestrator(run, store=store) as batches:
        await batches.submit(["a", "b"], batch_id="b", config=BatchConfig(concurrency=1))
        if ends == "cancelled":
            await within(waiting.wait())
            await batches.cancel("b")
        assert (await within(batches.result("b"))).state.tag == ends
        caplog.clear()
        await batches.submit(Untouchable(), batch_id="b")
    told = [record.getMessage() for record in caplog.records if "submitted again" in record.getMessage()]
    assert told == (
        []
        if advice is None
        else [f"batch 'b' was submitted again, but has ended ({ends}), and nothing is run; {advice}"]
    )


async def test_the_same_id_at_once_makes_one_batch(store: Store) -> None:
    async with BatchOrchestrator(echo, store=store) as batches:
        answers = await within(
            asyncio.gather(*(batches.submit(["a"], batch_id="b") for _ in range(5)), return_exceptions=True)
        )
        assert "b" in answers
        assert all(answer == "b" or isinstance(answer, SubmissionInProgressError) for answer in answers)
        assert (await within(batches.result("b"))).counts.total == 1


async def test_the_same_id_can_be_refused(store: Store) -> None:
    async with BatchOrchestrator(echo, store=store) as batches:
        await batches.submit(["a"], batch_id="b", if_exists="error")
        with pytest.raises(BatchExistsError, match="batch 'b' exists already"):
            await batches.submit(Untouchable(), batch_id="b", if_exists="error")
        await within(batches.result("b"))


async def test_a_batch_belongs_to_its_workflow(store: Store) -> None:
    worker = Worker(store)
    async with BatchOrchestrator(echo, worker=worker) as batches:
        others = BatchOrchestrator(read, worker=worker)
        await batches.submit(["a"], batch_id="b")
        calls: list[Callable[[], Any]] = [
            lambda: others.submit([Page(url="u")], batch_id="b"),
            lambda: others.state("b"),
            lambda: others.snapshot("b"),
            lambda: others.result("b"),
            lambda: others.cancel("b"),
            lambda: everything(others.progress("b")),
            lambda: everything(others.watch("b")),
            lambda: everything(others.results("b")),
            lambda: everything(others.documents("b")),
        ]
        for call in calls:
            with pytest.raises(WorkflowMismatchError, match="batch 'b' belongs to workflow 'echo', not to 'read'"):
                await within(call())
        await within(batches.result("b"))


async def test_unknown_ids_are_not_found(store: Store) -> None:
    async with BatchOrchestrator(echo, store=store) as batches:
        calls: list[Callable[[], Any]] = [
            lambda: batches.state("b"),
            lambda: batches.snapshot("b"),
            lambda: batches.result("b"),
            lambda: batches.cancel("b"),
            lambda: batches.count_checkpoints("b"),
            lambda: everything(batches.progress("b")),
            lambda: everything(batches.watch("b")),
            lambda: everything(batches.results("b")),
            lambda: everything(batches.documents("b")),
        ]
        for call in calls:
            with pytest.raises(BatchNotFoundError, match="there is no batch 'b' in this store"):
                await within(call())
        assert batches.reports("b") == []


async def test_a_bad_result_fails_its_document_without_retries_and_no_other(store: Store) -> None:
    runs: list[str] = []

    @workflow(STAGES)
    async def score(document: str) -> Any:
        runs.append(document)
        return {
            "nan": {"a": [math.nan]},
            "surrogate": "\ud800",
            "foreign": Elsewhere(),
            "deep": nested(5_000),
            "unreadable": nested(215),
            "large": "x" * (16 * 1024 * 1024 + 1),
        }.get(document, document)

    config = BatchConfig(failure_policy=RetryFailed(max_attempts=3))
    documents = ["fine", "nan", "surrogate", "foreign", "deep", "unreadable", "large"]
    async with BatchOrchestrator(score, store=store, config=config) as batches:
        result = await within(batches.run(documents, document_id=str))
        assert sorted(runs) == sorted(documents)
        assert result.counts.succeeded == 1
        errors = {failure.document_id: failure for failure in result.failures}
    assert {failure.error_type for failure in errors.values()} == {"PayloadError", "PayloadTooLargeError"}
    assert "the result of workflow 'score' cannot be stored: at $['a'][0]: nan is no JSON number" in errors["nan"].error


class Talkative(BaseModel):
    """Its own code fails when it is written, or read."""

    x: int

    @field_serializer("x")
    def _written(self, value: int) -> int:
        if value == 1:
            raise KeyError(value)
        return value

    @field_validator("x")
    @classmethod
    def _read(cls, value: int) -> int:
        if value == 2:
            raise KeyError(value)
        return value


async def test_a_result_whose_own_code_fails_fails_its_document(store: Store) -> None:
    @workflow(STAGES)
    async def run(document: int) -> Talkative:
        return Talkative.model_construct(x=document)

    async with BatchOrchestrator(run, store=store) as batches:
        result = await within(batches.run([1, 2, 3]))
        assert [failure.error_type for failure in result.failures] == ["PayloadError"] * 2
        assert result.counts.succeeded == 1


async def test_a_result_of_another_type_fails_its_document(store: Store) -> None:
    @workflow(STAGES)
    async def read(document: str) -> Page:
        return {"url": document}  # type: ignore[return-value]  # pyright: ignore[reportReturnType]

    async with BatchOrchestrator(read, store=store) as batches:
        result = await within(batches.run(["secret-document"]))
        assert result.failures[0].error_type == "PayloadError"
        assert "secret-document" not in result.failures[0].error
