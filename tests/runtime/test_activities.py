"""What an activity is: within an orchestrator, outside of one, and when it is declared."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial, wraps
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel
from tests.support import ONCE, STAGES, Gauge, Thinking, eventually, everything, turns, within

from durable_batches import (
    ActivityDefinitionError,
    ActivityFailedError,
    BatchOrchestrator,
    DocumentFailure,
    DocumentSucceeded,
    DurableActivity,
    MachineError,
    MemoryStore,
    Outcome,
    PayloadError,
    Results,
    Stage,
    Store,
    current_activity,
    durable_activity,
    durable_now,
    durable_uuid,
    enter_stage,
    map_activity,
    workflow,
)
from durable_batches.errors import NotInActivityError


class Chunk(BaseModel):
    text: str


async def outcome_of(
    body: Callable[[str], Coroutine[Any, Any, Any]], store: Store, document: str = "text"
) -> Outcome[Any]:
    """How a workflow of this body ends on one document."""

    @workflow(STAGES, name="one")
    async def run(document: str) -> Any:
        return await body(document)

    async with BatchOrchestrator(run, store=store) as batches:
        result = await within(batches.run([document]))
        (outcome,) = await everything(batches.results(result.batch_id))
        return outcome


async def value_of(body: Callable[[str], Coroutine[Any, Any, Any]], store: Store, document: str = "text") -> Any:
    outcome = await outcome_of(body, store, document)
    assert isinstance(outcome, DocumentSucceeded), outcome
    return outcome.value


# ---- in a workflow -----------------------------------------------------------------------------------------


async def test_an_async_activity_runs_on_the_loop(store: Store) -> None:
    threads: list[threading.Thread] = []

    @durable_activity
    async def act(text: str) -> Chunk:
        threads.append(threading.current_thread())
        return Chunk(text=text)

    async def body(text: str) -> str:
        return (await act(text)).text

    assert await value_of(body, store) == "text"
    assert threads == [threading.main_thread()]


async def test_a_sync_activity_runs_in_a_thread_and_the_loop_goes_on(store: Store) -> None:
    threads: list[threading.Thread] = []
    turned = threading.Event()

    @durable_activity
    def act(text: str) -> str:
        threads.append(threading.current_thread())
        # Only a loop that turns meanwhile can set it.
        loop.call_soon_threadsafe(turned.set)
        assert turned.wait(10)
        return text * 2

    loop = asyncio.get_running_loop()
    assert await value_of(lambda text: act(text), store, "ab") == "abab"
    assert threads[0] is not threading.main_thread()


async def test_sync_activities_run_side_by_side(store: Store) -> None:
    together = threading.Barrier(4)

    @durable_activity
    def act(number: int) -> int:
        together.wait(10)
        return number

    assert await value_of(lambda _: map_activity(act, range(4)), store) == [0, 1, 2, 3]


async def test_one_document_may_run_many_sync_activities_at_once(store: Store) -> None:
    together = threading.Barrier(20)

    @durable_activity
    def act(number: int) -> int:
        together.wait(10)
        return number

    @workflow(STAGES)
    async def run(document: str) -> int:
        return sum(await map_activity(act, range(20), concurrency=20))

    async with BatchOrchestrator(run, store=store, max_in_flight=1) as batches:
        assert (await within(batches.run(["x"]))).counts.succeeded == 1


async def test_a_sync_function_may_return_an_awaitable(store: Store) -> None:
    async def later(text: str) -> str:
        assert threading.current_thread() is threading.main_thread()
        return current_activity().document_id + text

    @durable_activity
    def act(text: str) -> Awaitable[str]:
        return later(text)

    assert await value_of(lambda text: act(text), store) == "0text"


async def test_a_result_is_what_a_replay_would_return(store: Store) -> None:
    seen: list[Any] = []

    @durable_activity
    async def act() -> list[float]:
        return [1, True]

    async def body(_: str) -> None:
        seen.extend(await act())

    await value_of(body, store)
    assert [(value, type(value)) for value in seen] == [(1.0, float), (1.0, float)]


@pytest.mark.parametrize("value", [(1, 2), Chunk(text="a")])
async def test_a_result_that_a_replay_could_not_return_is_refused(store: Store, value: Any) -> None:
    @durable_activity
    async def act() -> list[Any]:
        return [value]

    async def body(_: str) -> str:
        try:
            return str(await act())
        except ActivityFailedError as error:
            return f"{error.error_type} {error.message}"

    kinds = f"a value of type '{type(value).__name__}' comes back as one of type"
    assert (await value_of(body, store)).startswith(
        f"PayloadError the result of activity 'act' cannot be stored: at $[0]: {kinds}"
    )


async def test_a_model_comes_back_as_one(store: Store) -> None:
    @durable_activity
    async def act(chunk: Chunk) -> dict[str, list[Chunk]]:
        assert isinstance(chunk, Chunk)
        return {"a": [chunk]}

    async def body(text: str) -> bool:
        return await act(Chunk(text=text)) == {"a": [Chunk(text=text)]}

    assert await value_of(body, store) is True


async def test_an_iterator_is_no_input_but_may_be_ignored(store: Store) -> None:
    @durable_activity
    async def act(words: Iterable[str]) -> list[str]:
        return list(words)

    @durable_activity(ignore=("words",))
    async def act_ignoring(name: str, words: Iterator[str]) -> list[str]:
        return list(words)

    async def body(text: str) -> list[list[str]]:
        with pytest.raises(PayloadError, match="an iterator is used up by reading it"):
            await act(word for word in text.split())
        return [await act(text.split()), await act_ignoring("a", iter(text.split()))]

    assert await value_of(body, store, "a b") == [["a", "b"], ["a", "b"]]


async def test_an_activity_in_an_activity_is_a_plain_call(store: Store) -> None:
    keys: list[str] = []

    @durable_activity
    async def inner(text: str) -> str:
        keys.append(current_activity().idempotency_key)
        return text + "!"

    @durable_activity
    def inner_sync(text: str) -> str:
        keys.append(current_activity().idempotency_key)
        return text + "?"

    @durable_activity
    async def outer(text: str) -> str:
        keys.append(current_activity().idempotency_key)
        return await inner(text) + await inner_sync(text) + "".join(await map_activity(inner, ["a", "b"]))

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await outer(document)

    async with BatchOrchestrator(run, store=store) as batches:
        result = await within(batches.run(["x"]))
        (outcome,) = await everything(batches.results(result.batch_id))
        assert outcome == DocumentSucceeded(document_id="0", value="x!x?a!b!")
        assert await batches.count_checkpoints(result.batch_id) == 1
        assert batches.stats.activities_run == 1
    assert len(keys) == 5
    assert len(set(keys)) == 1


async def test_what_an_activity_leaves_behind_is_not_recorded_as_the_workflows(store: Store) -> None:
    tasks: list[asyncio.Task[str]] = []

    @durable_activity
    async def inner() -> str:
        return "inner"

    @durable_activity
    async def outer() -> str:
        async def soon() -> str:
            return await inner()

        tasks.append(asyncio.create_task(soon()))
        return "outer"

    @workflow(STAGES)
    async def run(document: str) -> str:
        value = await outer()
        return value + await tasks[0]

    async with BatchOrchestrator(run, store=store) as batches:
        result = await within(batches.run(["x"]))
        (outcome,) = await everything(batches.results(result.batch_id))
        assert outcome == DocumentSucceeded(document_id="0", value="outerinner")
        assert await batches.count_checkpoints(result.batch_id) == 1


# ---- outside of one ----------------------------------------------------------------------------------------


async def test_outside_an_orchestrator_everything_is_a_plain_call() -> None:
    @durable_activity
    async def split(text: str) -> list[str]:
        return text.split()

    @durable_activity
    def measure(word: str) -> int:
        return len(word)

    @durable_activity(retry=ONCE)
    async def fail(text: str) -> str:
        raise ZeroDivisionError(text)

    @workflow(STAGES)
    async def run(document: str) -> list[int]:
        enter_stage(Thinking)
        assert (await durable_now()).tzinfo is not None
        assert isinstance(await durable_uuid(), UUID)
        return await map_activity(measure, await split(document))

    assert await run("ab c def") == [2, 1, 3]
    with pytest.raises(ZeroDivisionError):
        await fail("a")
    with pytest.raises(NotInActivityError):
        current_activity()


async def test_a_plain_sync_call_is_in_a_thread_too() -> None:
    @durable_activity
    def act() -> bool:
        return threading.current_thread() is threading.main_thread()

    assert await act() is False


async def test_in_a_workflow_but_not_in_an_activity_there_is_no_current_activity(store: Store) -> None:
    async def body(_: str) -> None:
        current_activity()

    outcome = await outcome_of(body, store)
    assert isinstance(outcome, DocumentFailure)
    assert outcome.error_type == "NotInActivityError"


# ---- what it can know and say ------------------------------------------------------------------------------


async def test_the_current_activity_says_which_call_it_is(store: Store) -> None:
    seen: list[tuple[str, str, int, str]] = []

    def note() -> None:
        call = current_activity()
        seen.append((call.batch_id, call.document_id, call.attempt, call.idempotency_key))

    @durable_activity
    async def act(number: int) -> int:
        note()
        return number

    @durable_activity
    def act_sync(number: int) -> int:
        note()
        return number

    @workflow(STAGES)
    async def run(document: str) -> None:
        await asyncio.gather(act(1), act(1), act(2), act_sync(1))

    async with BatchOrchestrator(run, store=store) as batches:
        await within(batches.run(["x", "y"], batch_id="b", document_id=str.upper))
    assert {(batch, document, attempt) for batch, document, attempt, _ in seen} == {("b", "X", 1), ("b", "Y", 1)}
    assert len({key for _, _, _, key in seen}) == 8


async def test_reports_are_seen_while_the_activity_runs_and_not_after(store: Store) -> None:
    go_on = asyncio.Event()

    @durable_activity
    async def act(number: int) -> int:
        current_activity().report(number, 10)
        await go_on.wait()
        return number

    @workflow(STAGES)
    async def run(document: str) -> int:
        return sum(await asyncio.gather(act(3), act(4)))

    async with BatchOrchestrator(run, store=store) as batches:
        batch_id = await batches.submit(["x"], document_id=lambda _: "doc")
        await eventually(lambda: len(batches.reports(batch_id)) == 2)
        reports = sorted(batches.reports(batch_id), key=lambda report: report.current)
        assert [(report.document_id, report.activity, report.current, report.total) for report in reports] == [
            ("doc", "act", 3, 10),
            ("doc", "act", 4, 10),
        ]
        assert batches.reports("another batch") == []
        go_on.set()
        await within(batches.result(batch_id))
        assert batches.reports(batch_id) == []


# ---- map_activity ------------------------------------------------------------------------------------------


async def test_map_activity_keeps_the_order_and_the_bound() -> None:
    gauge = Gauge()

    @durable_activity
    async def act(number: int) -> int:
        with gauge:
            await turns(5 - number % 5)
        return number * 2

    assert await map_activity(act, range(40), concurrency=7) == [number * 2 for number in range(40)]
    assert gauge.most == 7


async def test_map_activity_takes_any_iterable_and_none_at_all() -> None:
    @durable_activity
    async def act(number: int) -> int:
        return number

    assert await map_activity(act, []) == []
    assert await map_activity(act, iter([])) == []
    assert await map_activity(act, (number for number in range(3))) == [0, 1, 2]
    assert await map_activity(act, {1: "a", 2: "b"}) == [1, 2]


async def test_map_activity_takes_items_one_at_a_time() -> None:
    taken: list[int] = []
    done: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(20):
            assert len(taken) - len(done) < 3
            taken.append(number)
            yield number

    @durable_activity
    async def act(number: int) -> None:
        await asyncio.sleep(0)
        done.append(number)

    await map_activity(act, numbers(), concurrency=3)
    assert len(done) == 20


async def test_the_first_failure_stops_new_calls_and_lets_the_running_ones_finish() -> None:
    started: list[int] = []
    finished: list[int] = []
    all_started, failed = asyncio.Barrier(4), asyncio.Event()

    @durable_activity
    async def act(number: int) -> int:
        started.append(number)
        await all_started.wait()
        if number == 2:
            failed.set()
            raise ValueError("two")
        await failed.wait()
        await turns(10)
        finished.append(number)
        return number

    with pytest.raises(ValueError, match="two"):
        await within(map_activity(act, range(10), concurrency=4))
    assert sorted(started) == [0, 1, 2, 3]
    assert sorted(finished) == [0, 1, 3]


async def test_of_several_failures_the_earliest_item_s_is_raised() -> None:
    both = asyncio.Barrier(2)

    @durable_activity
    async def act(number: int) -> int:
        await both.wait()
        # The later item fails earlier.
        await turns(10 * (1 - number))
        raise ValueError(str(number))

    with pytest.raises(ValueError, match="0"):
        await map_activity(act, [0, 1], concurrency=2)


async def test_after_a_failure_that_comes_at_once_nothing_is_called() -> None:
    """As on a replay, where recorded results and failures come back without waiting."""
    called: list[int] = []

    async def act(number: int) -> int:
        called.append(number)
        if number == 1:
            raise ValueError("one")
        return number

    with pytest.raises(ValueError, match="one"):
        await map_activity(act, range(10), concurrency=4)
    assert called == [0, 1]


async def test_an_iterable_that_raises_is_raised_once_the_running_calls_are_done() -> None:
    finished: list[int] = []

    def numbers() -> Iterator[int]:
        yield 0
        yield 1
        raise LookupError("no more")

    @durable_activity
    async def act(number: int) -> int:
        await turns(10)
        finished.append(number)
        return number

    with pytest.raises(LookupError, match="no more"):
        await map_activity(act, numbers(), concurrency=4)
    assert sorted(finished) == [0, 1]


@pytest.mark.parametrize("concurrency", [0, -1])
async def test_map_activity_needs_room(concurrency: int) -> None:
    async def act(number: int) -> int:
        return number

    with pytest.raises(ValueError, match="concurrency must be 1 or more"):
        await map_activity(act, [1], concurrency=concurrency)


async def test_cancelling_map_activity_cancels_its_calls_and_starts_no_more() -> None:
    started: list[int] = []
    cancelled: list[int] = []

    async def act(number: int) -> None:
        started.append(number)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    task = asyncio.create_task(map_activity(act, range(10), concurrency=3))
    await eventually(lambda: len(started) == 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(started) == sorted(cancelled) == [0, 1, 2]


async def test_map_activity_is_recorded_call_by_call(store: Store) -> None:
    @durable_activity
    async def act(number: int) -> int:
        return number

    @workflow(STAGES)
    async def run(document: str) -> list[int]:
        return await map_activity(act, [1, 2, 2, 3], concurrency=2)

    async with BatchOrchestrator(run, store=store) as batches:
        result = await within(batches.run(["x"]))
        (outcome,) = await everything(batches.results(result.batch_id))
        assert outcome == DocumentSucceeded(document_id="0", value=[1, 2, 2, 3])
        assert await batches.count_checkpoints(result.batch_id) == 4


# ---- when it is declared -----------------------------------------------------------------------------------


def test_a_result_needs_an_annotation() -> None:
    with pytest.raises(ActivityDefinitionError, match="'act' has no return annotation"):

        @durable_activity
        async def act(text: str):  # type: ignore[no-untyped-def]  # pyright: ignore[reportUnknownParameterType]
            return text


def test_a_parameter_needs_an_annotation_or_to_be_ignored() -> None:
    with pytest.raises(ActivityDefinitionError, match=r"parameter 'more' of activity 'act'.*ignore=\('more',\)"):

        @durable_activity
        async def act(text: str, more) -> str:  # type: ignore[no-untyped-def]  # pyright: ignore
            return text


class Foreign:
    pass


def test_types_that_cannot_be_recorded_are_refused() -> None:
    with pytest.raises(ActivityDefinitionError, match="argument 'thing' of activity 'takes'"):

        @durable_activity
        async def takes(thing: Foreign) -> None: ...

    with pytest.raises(ActivityDefinitionError, match="result of activity 'returns'"):

        @durable_activity
        async def returns() -> list[Foreign]:
            return []


def test_generators_are_refused() -> None:
    with pytest.raises(ActivityDefinitionError, match="'sync' is a generator"):

        @durable_activity
        def sync() -> Iterator[int]:
            yield 1

    async def asynchronous() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(ActivityDefinitionError, match="'asynchronous' is a generator"):
        durable_activity(asynchronous)


@pytest.mark.parametrize("timeout", [timedelta(0), timedelta(seconds=-1)])
def test_a_timeout_is_positive(timeout: timedelta) -> None:
    with pytest.raises(ActivityDefinitionError, match="timeout must be positive"):

        @durable_activity(timeout=timeout)
        async def act() -> None: ...


def test_a_stage_needs_a_tag() -> None:
    class Tagless(Stage):
        pass

    with pytest.raises(MachineError, match="Tagless has no tag"):

        @durable_activity(stage=Tagless)
        async def act() -> None: ...


async def test_types_that_are_local_to_a_function_are_known(store: Store) -> None:
    class Local(BaseModel):
        x: int

    @dataclass
    class AlsoLocal:
        y: int

    @durable_activity
    async def act(value: Local) -> list[AlsoLocal]:
        return [AlsoLocal(value.x + 1)]

    async def body(_: str) -> bool:
        return await act(Local(x=1)) == [AlsoLocal(2)]

    assert await value_of(body, store) is True


@durable_activity
async def looks_ahead(value: Later) -> list[Later]:
    return [value]


class Later(BaseModel):
    x: int


async def test_a_type_may_be_defined_further_down(store: Store) -> None:
    async def body(_: str) -> bool:
        return await looks_ahead(Later(x=1)) == [Later(x=1)]

    assert await value_of(body, store) is True


async def test_a_name_that_is_never_defined_fails_the_first_call_with_the_name(store: Store) -> None:
    @durable_activity
    async def act(value: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore

    outcome = await outcome_of(lambda _: act(1), store)
    assert isinstance(outcome, DocumentFailure)
    assert outcome.error_type == "ActivityDefinitionError"
    assert "Nowhere" in outcome.error


async def test_functions_come_in_many_kinds(store: Store) -> None:
    class Scaler:
        def __init__(self, by: int) -> None:
            self.by = by

        async def __call__(self, number: int) -> int:
            return number * self.by

        def method(self, number: int) -> int:
            return number + self.by

        @staticmethod
        def static(number: int) -> int:
            return -number

    def logged(function: Callable[..., Any]) -> Any:
        @wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            return await function(*args, **kwargs)

        return wrapper

    @logged
    async def wrapped(number: int) -> int:
        return number * 100

    instance = durable_activity(Scaler(3))
    bound = durable_activity(Scaler(3).method)
    static = durable_activity(Scaler.static)
    decorated: DurableActivity[[int], int] = durable_activity(wrapped)
    assert (instance.name, bound.name, static.name, decorated.name) == ("Scaler", "method", "static", "wrapped")

    async def body(_: str) -> list[int]:
        return [await instance(2), await bound(2), await static(2), await decorated(2)]

    assert await value_of(body, store) == [6, 5, -2, 200]


def test_a_partial_function_is_refused_with_a_reason() -> None:
    async def act(number: int, by: int) -> int:
        return number * by

    with pytest.raises(ActivityDefinitionError):
        durable_activity(partial(act, by=2))


async def lonely(document: str) -> str:
    return document


def test_the_activity_keeps_the_functions_name_and_text() -> None:
    @durable_activity
    async def act(number: int) -> int:
        """What it does."""
        return number

    names = [getattr(act, name) for name in ("__name__", "__doc__", "name", "version")]
    assert names == ["act", "What it does.", "act", "1"]
    assert repr(act) == "<durable activity 'act'>"
    assert repr(workflow(STAGES)(lonely)) == "<workflow 'lonely'>"


def test_a_workflow_is_an_async_function_of_one_annotated_document() -> None:
    def sync(document: str) -> str:
        return document

    with pytest.raises(ActivityDefinitionError, match="async function"):
        workflow(STAGES)(sync)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    async def two(document: str, other: str) -> str:
        return document

    async def untyped(document):  # type: ignore[no-untyped-def]  # pyright: ignore
        return document  # pyright: ignore[reportUnknownVariableType]

    unchecked: Any = workflow(STAGES)
    for wrong in (two, untyped):  # pyright: ignore[reportUnknownVariableType]
        with pytest.raises(ActivityDefinitionError, match="one parameter, the document"):
            BatchOrchestrator(unchecked(wrong), store=MemoryStore())


def test_a_workflow_s_types_are_checked_when_an_orchestrator_is_made() -> None:
    @workflow(STAGES)
    async def takes(document: Foreign) -> str:
        return ""

    @workflow(STAGES)
    async def returns(document: str) -> Foreign:
        return Foreign()

    @workflow(STAGES)
    async def undefined(document: str) -> Nowhere:  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore
        return document

    async def resolves(results: Results[str]):  # type: ignore[no-untyped-def]  # pyright: ignore[reportUnknownParameterType]
        return Foreign()

    unchecked: Any = resolves  # pyright: ignore[reportUnknownVariableType]

    @workflow(STAGES, resolver=unchecked)
    async def resolved(document: str) -> str:
        return document

    with pytest.raises(ActivityDefinitionError, match="the resolver of workflow 'resolved' has no return annotation"):
        BatchOrchestrator(resolved, store=MemoryStore())
    wrong: list[Any] = [takes, returns, undefined]
    for run in wrong:
        with pytest.raises(ActivityDefinitionError):
            BatchOrchestrator(run, store=MemoryStore())
