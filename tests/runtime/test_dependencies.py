"""Dependencies: opened once a worker, closed after the drain, never part of a key."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any, cast

import pytest
from tests.conftest import StoreMaker
from tests.runtime.keys import key
from tests.support import AT_ONCE, ONCE, STAGES, everything, turns, within

from durable_batches import (
    BatchConfig,
    BatchOrchestrator,
    ConfigurationError,
    DependencyError,
    DocumentFailure,
    DocumentSucceeded,
    MemoryStore,
    Resolver,
    Results,
    Worker,
    dependency,
    durable_activity,
    workflow,
)
from durable_batches.runtime.dependencies import Dependencies
from durable_batches.runtime.discovery import activities_named_in


@dataclass
class Client:
    """Stands for a connection; its life is written down."""

    name: str = "real"
    log: list[str] = field(default_factory=list[str])

    async def ask(self, question: str) -> str:
        await asyncio.sleep(0)
        self.log.append(question)
        return f"{self.name}: {question}"


LOG: list[str] = []


@pytest.fixture(autouse=True)
def _fresh_log() -> Generator[None]:
    LOG.clear()
    yield
    LOG.clear()


async def opened_client() -> AsyncIterator[Client]:
    LOG.append("open client")
    yield Client()
    LOG.append("close client")


async def session(client: Client = dependency(opened_client)) -> AsyncIterator[str]:
    LOG.append(f"open session of {client.name}")
    yield f"session of {client.name}"
    LOG.append("close session")


@durable_activity
async def ask(question: str, client: Client = dependency(opened_client)) -> str:
    return await client.ask(question)


@durable_activity
async def within_session(question: str, which: str = dependency(session)) -> str:
    return f"{question} in {which}"


@workflow(STAGES)
async def asks(document: str) -> str:
    return await ask(document)


@workflow(STAGES)
async def asks_within_session(document: str) -> str:
    return await within_session(await ask(document))


async def test_it_is_opened_once_a_worker_and_closed_after_the_drain(open_store: StoreMaker) -> None:
    async with BatchOrchestrator(asks, store=open_store(None)) as batches:
        assert LOG == ["open client"]
        result = await batches.run(["a", "b", "c"])
        outcomes = await everything(batches.results(result.batch_id))
        assert LOG == ["open client"]
    assert LOG == ["open client", "close client"]
    assert [outcome.value for outcome in outcomes if isinstance(outcome, DocumentSucceeded)] == [
        "real: a",
        "real: b",
        "real: c",
    ]


async def test_what_runs_when_the_worker_is_closed_can_still_use_it(open_store: StoreMaker) -> None:
    begun = asyncio.Event()

    @durable_activity
    async def slow(question: str, client: Client = dependency(opened_client)) -> str:
        begun.set()
        await turns(50)
        assert "close client" not in LOG
        LOG.append("asked")
        return await client.ask(question)

    @workflow(STAGES)
    async def asks_slowly(document: str) -> str:
        return await slow(document)

    async with BatchOrchestrator(asks_slowly, store=open_store(None)) as batches:
        await batches.submit(["a"])
        await within(begun.wait())
    assert LOG == ["open client", "asked", "close client"]


async def test_one_may_depend_on_another_and_they_are_closed_in_the_reverse_order() -> None:
    async with BatchOrchestrator(asks_within_session, store=MemoryStore()) as batches:
        result = await batches.run(["a"])
        (outcome,) = await everything(batches.results(result.batch_id))
    assert isinstance(outcome, DocumentSucceeded)
    assert outcome.value == "real: a in session of real"
    assert LOG == ["open client", "open session of real", "close session", "close client"]


async def test_what_several_depend_on_is_opened_once() -> None:
    async def other_session(client: Client = dependency(opened_client)) -> str:
        return f"another session of {client.name}"

    @durable_activity
    async def act(question: str, one: str = dependency(session), other: str = dependency(other_session)) -> str:
        return f"{question} in {one} and {other}"

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await act(document)

    async with BatchOrchestrator(run, store=MemoryStore()) as batches:
        result = await batches.run(["a"])
        (outcome,) = await everything(batches.results(result.batch_id))
    assert isinstance(outcome, DocumentSucceeded)
    assert outcome.value == "a in session of real and another session of real"
    assert LOG == ["open client", "open session of real", "close session", "close client"]


async def test_a_worker_that_is_used_again_opens_it_again() -> None:
    worker = Worker(MemoryStore())
    for _ in range(2):
        async with BatchOrchestrator(asks, worker=worker) as batches:
            await batches.run(["a"])
    assert LOG == ["open client", "close client"] * 2


async def test_a_worker_that_only_submits_opens_nothing() -> None:
    async with BatchOrchestrator(asks, store=MemoryStore(), max_in_flight=0) as batches:
        await batches.submit(["a"])
    assert LOG == []


# ---- never in the key --------------------------------------------------------------------------------------------


async def test_it_is_no_part_of_the_key_however_it_is_passed(open_store: StoreMaker) -> None:
    calls: list[str] = []

    @durable_activity
    async def act(question: str, client: Client = dependency(opened_client), size: int = 3) -> str:
        calls.append(f"{client.name} {question} {size}")
        return question

    keys = {
        key(act, *args, **kwargs)
        for args, kwargs in (
            (("a",), {}),
            (("a", Client("other")), {}),
            (("a",), {"client": Client("third")}),
            (("a", Client("other"), 3), {}),
            ((), {"question": "a", "size": 3}),
        )
    }
    assert len(keys) == 1
    assert key(act, "a", Client(), 4) not in keys

    @workflow(STAGES)
    async def run(_: str) -> list[str]:
        return [await act("a"), await act("a", Client("given")), await act("a", size=4)]

    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        result = await batches.run(["x"])
        assert result.counts.succeeded == 1
    assert calls == ["real a 3", "given a 3", "real a 4"]


async def test_a_resolver_gets_its_own(open_store: StoreMaker) -> None:
    async def link(results: Results[str], client: Client = dependency(opened_client)) -> str:
        return await client.ask(" ".join([result.value async for result in results]))

    @workflow(STAGES, resolver=link)
    async def run(document: str) -> str:
        return document

    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        assert (await batches.run(["a", "b"])).value == "real: a b"
    assert LOG == ["open client", "close client"]


class Linker:
    """A resolver that is an object; what its code names is known before it runs, as of a function."""

    async def __call__(self, results: Results[str]) -> str:
        return await ask(" ".join([result.value async for result in results]))


async def test_a_resolver_may_be_an_object_that_can_be_called(open_store: StoreMaker) -> None:
    @workflow(STAGES, resolver=Linker())
    async def run(document: str) -> str:
        return document

    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        assert LOG == ["open client"]
        assert (await batches.run(["a", "b"])).value == "real: a b"
    assert LOG == ["open client", "close client"]


async def test_code_that_cannot_be_looked_into_has_it_opened_at_the_first_call(open_store: StoreMaker) -> None:
    async def link(_: object, greeting: str) -> str:
        return await ask(greeting)

    greets = partial(link, greeting="hello")

    @wraps(greets)
    async def resolver(results: object) -> str:
        return await greets(results)

    wrapped: Resolver[str, str] = cast(Any, resolver)

    @workflow(STAGES, resolver=wrapped)
    async def run(document: str) -> str:
        return document

    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        assert LOG == []
        assert (await batches.run(["a"])).value == "real: hello"
    assert LOG == ["open client", "close client"]


async def test_an_activity_that_only_a_variable_leads_to_has_it_opened_at_its_first_call() -> None:
    @durable_activity
    async def hidden(question: str, client: Client = dependency(opened_client)) -> str:
        return await client.ask(question)

    activities: dict[str, Any] = {"hidden": hidden}

    @workflow(STAGES)
    async def run(document: str) -> str:
        value: str = await activities[document](document)
        return value

    async with BatchOrchestrator(run, store=MemoryStore()) as batches:
        assert LOG == []
        result = await batches.run(["hidden", "hidden"])
        assert result.counts.succeeded == 2
        assert LOG == ["open client"]
    assert LOG == ["open client", "close client"]


async def test_a_sync_activity_and_one_within_another_get_it_too() -> None:
    @durable_activity
    def in_thread(question: str, client: Client = dependency(opened_client)) -> str:
        return f"{client.name} {question}"

    @durable_activity
    async def outer(question: str) -> str:
        return await in_thread(question)

    @workflow(STAGES)
    async def run(document: str) -> list[str]:
        return [await in_thread(document), await outer(document)]

    async with BatchOrchestrator(run, store=MemoryStore()) as batches:
        result = await batches.run(["a"])
        (outcome,) = await everything(batches.results(result.batch_id))
    assert isinstance(outcome, DocumentSucceeded)
    assert outcome.value == ["real a", "real a"]


# ---- providers of every kind -------------------------------------------------------------------------------------


def plain() -> str:
    return "plain"


async def awaited() -> str:
    await asyncio.sleep(0)
    return "awaited"


def generator() -> Generator[str]:
    LOG.append("open generator")
    yield "generator"
    LOG.append("close generator")


class Factory:
    def __call__(self) -> str:
        return "factory"


async def test_a_provider_may_be_a_factory_sync_or_async_or_a_generator() -> None:
    @durable_activity
    async def all_of_them(
        one: str = dependency(plain),
        two: str = dependency(awaited),
        three: str = dependency(generator),
        four: str = dependency(Factory()),
        five: dict[str, str] = dependency(dict),
    ) -> list[str]:
        return [one, two, three, four, *five]

    @workflow(STAGES)
    async def run(_: str) -> list[str]:
        return await all_of_them()

    async with BatchOrchestrator(run, store=MemoryStore()) as batches:
        result = await batches.run(["a"])
        (outcome,) = await everything(batches.results(result.batch_id))
    assert isinstance(outcome, DocumentSucceeded)
    assert outcome.value == ["plain", "awaited", "generator", "factory"]
    assert LOG == ["open generator", "close generator"]


@asynccontextmanager
async def as_manager() -> AsyncGenerator[Client]:
    yield Client()


def test_what_cannot_provide_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="a function that opens the value, not 'str'"):
        dependency("client")  # type: ignore[call-overload]  # pyright: ignore

    def needy(url: str) -> str:
        return url

    with pytest.raises(ConfigurationError, match=r"needy' has a required parameter 'url'; nobody passes it"):
        dependency(needy)  # type: ignore[arg-type]  # pyright: ignore

    with pytest.raises(ConfigurationError, match="without @asynccontextmanager"):
        dependency(as_manager)


async def test_what_opens_in_one_task_is_closed_in_it() -> None:
    """A task group, and much that is built on one, must be closed by the task that opened it."""

    async def group() -> AsyncIterator[asyncio.TaskGroup]:
        async with asyncio.TaskGroup() as tasks:
            LOG.append(repr(asyncio.current_task()))
            yield tasks
        LOG.append(repr(asyncio.current_task()))

    @durable_activity
    async def act(question: str, tasks: asyncio.TaskGroup = dependency(group)) -> str:
        return await tasks.create_task(Client().ask(question))

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await act(document)

    async with BatchOrchestrator(run, store=MemoryStore()) as batches:
        assert (await batches.run(["a", "b"])).counts.succeeded == 2
    opened, closed = LOG
    assert opened.split("coro=")[0] == closed.split("coro=")[0]


# ---- when it goes wrong ------------------------------------------------------------------------------------------


async def broken() -> AsyncIterator[Client]:
    if LOG:  # what it stands on was opened before
        raise OSError("no route to host")
    yield Client()


@durable_activity(retry=ONCE)
async def ask_the_broken(
    question: str, first: Client = dependency(opened_client), c: Client = dependency(broken)
) -> str:
    return question


@workflow(STAGES)
async def asks_the_broken(document: str) -> str:
    return await ask_the_broken(document)


async def test_what_cannot_be_opened_is_told_at_the_start_and_nothing_stays_open(open_store: StoreMaker) -> None:
    store = open_store(None)
    with pytest.raises(DependencyError, match=r"dependency 'broken' is not there: opening it raised OSError") as caught:
        async with BatchOrchestrator(asks_the_broken, store=store):
            pytest.fail("it must not begin")
    assert isinstance(caught.value.__cause__, OSError)
    assert LOG == ["open client", "close client"]
    async with BatchOrchestrator(asks, store=store) as batches:  # nothing was left behind, nobody registered
        assert await everything(batches.list_batches()) == []


async def test_what_cannot_be_opened_later_fails_the_activity_and_is_tried_again_by_its_policy() -> None:
    attempts: list[int] = []

    async def flaky() -> AsyncIterator[Client]:
        attempts.append(1)
        if len(attempts) < 3:
            raise OSError
        yield Client()

    @durable_activity(retry=AT_ONCE)
    async def act(question: str, client: Client = dependency(flaky)) -> str:
        return await client.ask(question)

    activities = [act]

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await activities[0](document)

    async with BatchOrchestrator(run, store=MemoryStore()) as batches:
        assert (await batches.run(["a"])).counts.succeeded == 1
    assert len(attempts) == 3


async def test_what_raises_when_it_is_closed_is_told_and_the_others_are_closed_all_the_same() -> None:
    async def sour(client: Client = dependency(opened_client)) -> AsyncIterator[Client]:
        yield client
        raise OSError("cannot say goodbye")

    @durable_activity
    async def act(question: str, client: Client = dependency(sour)) -> str:
        return await client.ask(question)

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await act(document)

    with pytest.raises(OSError, match="cannot say goodbye"):
        async with BatchOrchestrator(run, store=MemoryStore()) as batches:
            await batches.run(["a"])
    assert LOG == ["open client", "close client"]


# ---- in tests ----------------------------------------------------------------------------------------------------


async def test_a_worker_can_have_another_value_in_its_place() -> None:
    fake = Client("fake")
    async with BatchOrchestrator(asks, store=MemoryStore(), dependencies={opened_client: fake}) as batches:
        result = await batches.run(["a"])
        (outcome,) = await everything(batches.results(result.batch_id))
    assert isinstance(outcome, DocumentSucceeded)
    assert outcome.value == "fake: a"
    assert fake.log == ["a"]
    assert LOG == []


async def test_what_depends_on_a_replaced_one_gets_the_replacement() -> None:
    worker = Worker(MemoryStore(), dependencies={opened_client: Client("fake")})
    async with BatchOrchestrator(asks_within_session, worker=worker) as batches:
        await batches.run(["a"])
    assert LOG == ["open session of fake", "close session"]


async def test_another_provider_can_be_opened_in_its_place() -> None:
    async def fake() -> AsyncIterator[Client]:
        LOG.append("open fake")
        yield Client("fake")
        LOG.append("close fake")

    async with BatchOrchestrator(asks, store=MemoryStore(), dependencies={opened_client: dependency(fake)}) as batches:
        assert (await batches.run(["a"])).counts.succeeded == 1
    assert LOG == ["open fake", "close fake"]


def test_a_shared_worker_has_dependencies_of_its_own() -> None:
    with pytest.raises(ConfigurationError, match=r"Worker\(dependencies=...\)"):
        BatchOrchestrator(asks, worker=Worker(MemoryStore()), dependencies={})  # type: ignore[call-overload]  # pyright: ignore


async def test_outside_a_worker_it_has_to_be_passed() -> None:
    assert await ask("a", client=Client("given")) == "given: a"
    with pytest.raises(DependencyError, match=r"opened_client' is not there: nothing opens it outside a worker"):
        await ask("a")
    with pytest.raises(DependencyError):
        await asks("a")


async def test_a_failure_of_the_batch_is_not_hidden_by_what_it_depends_on() -> None:
    @durable_activity(retry=ONCE)
    async def act(question: str, client: Client = dependency(opened_client)) -> str:
        raise ValueError(client.name + question)

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await act(document)

    async with BatchOrchestrator(run, store=MemoryStore()) as batches:
        result = await batches.run(["a"], config=BatchConfig(concurrency=1))
        (outcome,) = await everything(batches.results(result.batch_id))
    assert isinstance(outcome, DocumentFailure)
    assert outcome.error_type == "ValueError"
    assert LOG == ["open client", "close client"]


# ---- the rest of its life ----------------------------------------------------------------------------------------


async def test_closing_what_is_closed_or_was_never_started_does_nothing() -> None:
    dependencies = Dependencies()
    await dependencies.close()
    dependencies.start()
    await dependencies.open([opened_client])
    await dependencies.close()
    await dependencies.close()
    assert LOG == ["open client", "close client"]


async def test_several_that_raise_when_they_are_closed_are_all_told() -> None:
    async def one() -> AsyncIterator[int]:
        yield 1
        raise OSError("one")

    async def two() -> AsyncIterator[int]:
        yield 2
        raise ValueError("two")

    @durable_activity
    async def act(_: str, first: int = dependency(one), second: int = dependency(two)) -> int:
        return first + second

    @workflow(STAGES)
    async def run(document: str) -> int:
        return await act(document)

    with pytest.raises(ExceptionGroup, match="dependencies could not be closed") as caught:
        async with BatchOrchestrator(run, store=MemoryStore()) as batches:
            assert (await batches.run(["a"])).counts.succeeded == 1
    assert [str(error) for error in caught.value.exceptions] == ["two", "one"]


async def test_leaving_that_is_cancelled_still_closes_what_is_open() -> None:
    closing = asyncio.Event()

    async def slow() -> AsyncIterator[int]:
        yield 1
        closing.set()
        await turns(50)
        LOG.append("closed")

    @durable_activity
    async def act(_: str, number: int = dependency(slow)) -> int:
        return number

    @workflow(STAGES)
    async def run(document: str) -> int:
        return await act(document)

    async def serve() -> None:
        async with BatchOrchestrator(run, store=MemoryStore()):
            pass

    serving = asyncio.create_task(serve())
    await within(closing.wait())
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert LOG == ["closed"]


async def test_a_provider_whose_own_work_is_cancelled_has_failed() -> None:
    async def lost() -> AsyncIterator[int]:
        if not LOG:
            raise asyncio.CancelledError
        yield 1

    @durable_activity
    async def act(_: str, number: int = dependency(lost)) -> int:
        return number

    @workflow(STAGES)
    async def run(document: str) -> int:
        return await act(document)

    with pytest.raises(DependencyError, match="opening it raised CancelledError"):
        async with BatchOrchestrator(run, store=MemoryStore()):
            pytest.fail("it must not begin")


async def test_a_start_that_is_cancelled_gives_up_what_it_was_opening() -> None:
    opening = asyncio.Event()

    async def endless(client: Client = dependency(opened_client)) -> AsyncIterator[Client]:
        opening.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            LOG.append("given up")
            raise
        yield client

    @durable_activity
    async def act(_: str, client: Client = dependency(endless)) -> str:
        return client.name

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await act(document)

    async def serve() -> None:
        async with BatchOrchestrator(run, store=MemoryStore()):
            pytest.fail("it must not begin")

    serving = asyncio.create_task(serve())
    await within(opening.wait())
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(serving)
    assert LOG == ["open client", "given up", "close client"]


def test_a_signature_shows_what_it_depends_on() -> None:
    assert "dependency(opened_client)" in str(inspect.signature(ask))
    assert repr(dependency(Factory())) == "dependency(Factory)"


def test_what_a_name_stands_for_is_looked_up_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(question: str) -> str:
        return await ask(question)

    assert list(activities_named_in(run)) == [ask]
    monkeypatch.setitem(globals(), "ask", within_session)
    assert list(activities_named_in(run)) == [within_session]
