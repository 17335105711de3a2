"""Orchestrators and workers that are given or asked for what they do not take or give."""

from __future__ import annotations

from collections.abc import Sequence

from tests.typing.accepted import A, Answer, B, C, Query, Wrapped, extract, plain, words

from durable_batches import (
    BatchClient,
    BatchConfig,
    BatchFilter,
    BatchOrchestrator,
    BatchResult,
    DocumentSucceeded,
    MemoryStore,
    Pending,
    SQLiteStore,
    Store,
    Worker,
    run_batch,
)
from durable_batches.lifecycle.records import WorkerRecord
from durable_batches.stores import BatchQuery, Capabilities
from durable_batches.web import Access, create_app

# ---- stores -------------------------------------------------------------------------------------------------------


class HalfAStore:
    async def open(self) -> None: ...

    async def close(self) -> None: ...


class NotAsync(Wrapped):
    def workers(self) -> Sequence[WorkerRecord]:  # error
        return []


class OtherParameters(Wrapped):
    async def batches(self, query: BatchQuery, *, page: int) -> list[object]:  # error
        return []


Worker(object())  # error
Worker(MemoryStore(), executors={"cpu": 3})  # error
Worker(MemoryStore(), executors={3: list})  # error
Worker("batches.db")  # error
Worker(None)  # error
Worker(MemoryStore)  # error
Worker(HalfAStore())  # error
Worker(SQLiteStore)  # error
_half: Store = HalfAStore()  # error
SQLiteStore()  # error
SQLiteStore(3)  # error
Capabilities(durable=True)  # error

# ---- construction -------------------------------------------------------------------------------------------------

STORE = MemoryStore()
WORKER = Worker(STORE)

Worker()  # error
Worker(STORE, max_in_flight="8")  # error
Worker(STORE, max_in_fligth=8)  # error
Worker(STORE, lease=30)  # error
Worker(STORE, 8)  # error
Worker(STORE, batches="ours")  # error
Worker(STORE, batches=None)  # error
Worker(STORE, batches=["march"])  # error
Worker(STORE, batches={"team": "search"})  # error
BatchFilter(["march"])  # error
BatchFilter(batch_ids=[3])  # error
BatchFilter(metadata={"team": 3})  # error
BatchFilter(labels={"team": "search"})  # error
BatchFilter(batch_ids=["march"]).batch_ids = ["april"]  # error
BatchFilter(metadata={"team": "search"}).metadata["team"] = "sales"  # error

BatchOrchestrator(extract)  # error
BatchOrchestrator(store=STORE)  # error
BatchOrchestrator(extract, STORE)  # error
BatchOrchestrator(extract, store=STORE, worker=WORKER)  # error
BatchOrchestrator(extract, store=WORKER)  # error
BatchOrchestrator(extract, worker=STORE)  # error
BatchOrchestrator(extract, store=HalfAStore())  # error
BatchOrchestrator(extract, store="batches.db")  # error
BatchOrchestrator(extract, store=STORE, max_in_flight="8")  # error
BatchOrchestrator(extract, worker=WORKER, max_in_flight=8)  # error
BatchOrchestrator(extract, store=STORE, config={"concurrency": 8})  # error
BatchOrchestrator(extract, store=STORE, concurrency=8)  # error
BatchOrchestrator(words, store=STORE)  # error
_other: BatchOrchestrator[int, str, A, None] = BatchOrchestrator(plain, store=STORE)  # error

# ---- submission ---------------------------------------------------------------------------------------------------


async def wrong_documents(texts: BatchOrchestrator[str, str, A], queries: BatchOrchestrator[Query, str, A]) -> None:
    numbers = [1, 2]
    await texts.submit(numbers)  # error
    await texts.submit(["a", 1])  # error
    await texts.submit(3)  # error
    await queries.submit(Query(text=""))  # error
    await queries.submit("text")  # error
    await queries.run(["text"])  # error
    texts.submit_sync(numbers)  # error
    async with texts as entered:
        await entered.submit(numbers)  # error


async def wrong_options(batches: BatchOrchestrator[Query, str, A], queries: list[Query]) -> None:
    await batches.submit(queries, conf=BatchConfig())  # error
    await batches.submit(queries, BatchConfig())  # error
    await batches.submit(queries, batch_id=3)  # error
    await batches.submit(queries, document_id=len)  # error
    await batches.submit(queries, document_id=lambda query: query.number)  # error
    await batches.submit(queries, if_exists="ignore")  # error
    await batches.run(queries, if_exists="ignore")  # error
    _number: int = await batches.submit(queries)  # error
    await batches.submit(queries, connection="shop.db")  # error
    batches.submit_sync(queries, connection=object())  # error
    batches.submit_sync(queries, batch_id=3)  # error
    await batches.submit_sync(queries)  # error


# ---- scripts ------------------------------------------------------------------------------------------------------


def wrong_scripts(queries: list[Query]) -> None:
    run_batch(extract, [1], store="batches.db")  # error
    run_batch(plain, ["text"], store="batches.db")  # error
    run_batch(plain, queries)  # error
    run_batch(plain, queries, "batches.db")  # error
    run_batch(plain, queries, store=3)  # error
    run_batch(plain, queries, store=SQLiteStore)  # error
    run_batch(plain, queries, store=STORE, document_id=lambda query: query.number)  # error
    run_batch(plain, queries, store=STORE, progress="yes")  # error
    run_batch(plain, queries, store=STORE, drain=30)  # error
    run_batch(words, ["text"], store=STORE)  # error
    _text: str = run_batch(plain, queries, store=STORE).value  # error
    _result: BatchResult[str] = run_batch(extract, ["text"], store=STORE)  # error


async def awaited_a_script(queries: list[Query]) -> None:
    await run_batch(plain, queries, store=STORE)  # error


# ---- reading ------------------------------------------------------------------------------------------------------


async def wrong_types(batches: BatchOrchestrator[Query, Answer, A | B, list[str]]) -> None:
    _state: Pending = await batches.state("")  # error
    _foreign: Pending | C = await batches.state("")  # error
    result = await batches.result("")
    _value: str = result.value  # error
    print(len(result.resolution))  # error
    _result: BatchResult[str] = result  # error
    async for outcome in batches.results(""):
        print(outcome.value)  # error
        _outcome: DocumentSucceeded[Answer] = outcome  # error
    async for info in batches.documents(""):
        _document: Answer = info.document  # error
        print(info.failure.error)  # error
    async for event in batches.progress(""):
        print(event.counts)  # error
    async for snapshot in batches.watch(""):
        print(snapshot.state.done)  # error
        print(snapshot.eta.isoformat())  # error


async def without_a_resolver(batches: BatchOrchestrator[Query, Answer, A | B]) -> None:
    _text: str = (await batches.result("")).resolution  # error


async def wrong_arguments(batches: BatchOrchestrator[Query, Answer, A | B]) -> None:
    await batches.cancel("", "reason")  # error
    await batches.cancel(3)  # error
    batches.documents("", status="done")  # error
    batches.progress("", after="3")  # error
    batches.progress("", 3)  # error
    batches.watch("", interval=1)  # error
    batches.list_batches(states=[A])  # error


async def awaited_the_wrong_thing(batches: BatchOrchestrator[Query, Answer, A | B]) -> None:
    await batches.results("")  # error
    await batches.progress("")  # error
    await batches.worker  # error
    await (await batches.state(""))  # error
    batches.state("")  # error
    batches.submit([])  # error
    print(batches.state("").tag)  # error
    for _ in batches.results(""):  # error
        pass
    with batches:  # error
        pass
    await BatchOrchestrator(plain, store=STORE)  # error


# ---- clients ------------------------------------------------------------------------------------------------------

BatchClient()  # error
BatchClient("batches.db")  # error
BatchClient(MemoryStore)  # error
BatchClient(STORE, read_only="yes")  # error
BatchClient(STORE, max_in_flight=0)  # error


async def from_outside(client: BatchClient) -> None:
    await client.submit([])  # error
    await client.result("")  # error
    client.documents("", status="done")  # error
    client.documents("", fingerprint=3)  # error
    client.list_batches(states=3)  # error
    await client.snapshot(3)  # error
    await client.cancel("", "enough")  # error
    (await client.explain("")).reasons.append(1)  # error


async def anyone(request: object) -> None: ...


async def everything(request: object) -> bool:
    return True


def over_http(client: BatchClient) -> None:
    create_app(client)  # error
    create_app(client, allow_anonymous=False)  # error
    create_app(client, authorize=everything)  # error
    create_app(MemoryStore(), authorize=anyone)  # error
    create_app(client, authorize=anyone, keep_alive=15)  # error
    Access(actions={"write"})  # error
