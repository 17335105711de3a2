"""Tracebacks begin with the user's frames: in what a workflow catches, in groups, and in what is logged."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from tests.runtime.attempts import Trial
from tests.support import NO_DELAY, ONCE, STAGES, moving, within

from durable_batches import (
    ActivityFailedError,
    ActivityTimeoutError,
    BatchConfig,
    BatchOrchestrator,
    ContinueOnFailure,
    DependencyError,
    DocumentTimeoutError,
    MemoryStore,
    PayloadError,
    Results,
    RetryFailed,
    RetryPolicy,
    Store,
    Worker,
    dependency,
    durable_activity,
    map_activity,
    workflow,
)
from durable_batches.codec import codec
from durable_batches.runtime import tracebacks
from durable_batches.runtime.attempt_result import AttemptFailed
from durable_batches.runtime.tracebacks import trim
from durable_batches.testing import ManualClock


def frames(error: BaseException | None) -> list[str]:
    """The functions in its traceback, the outermost first."""
    assert error is not None
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


async def caught(body: Callable[[], Awaitable[Any]], store: Store | None = None) -> BaseException:
    """What a workflow that awaits this catches."""
    errors: list[BaseException] = []

    @workflow(STAGES)
    async def run(document: str) -> None:
        try:
            await body()
        except BaseException as error:
            errors.append(error)
            raise

    async with BatchOrchestrator(run, store=store or MemoryStore()) as batches:
        await within(batches.run(["x"]))
    return errors[0]


def deeper(text: str) -> str:
    raise ConnectionError(text)


@durable_activity(retry=ONCE)
async def ask(text: str) -> str:
    return deeper(text)


@durable_activity(retry=ONCE)
def ask_sync(text: str) -> str:
    return deeper(text)


@durable_activity(retry=ONCE, timeout=timedelta(minutes=1))
async def ask_in_time(text: str) -> str:
    return deeper(text)


@durable_activity(retry=ONCE, timeout=timedelta(minutes=1))
def ask_in_time_sync(text: str) -> str:
    return deeper(text)


@pytest.mark.parametrize("activity", [ask, ask_sync, ask_in_time, ask_in_time_sync], ids=lambda activity: activity.name)
async def test_the_cause_of_a_failure_begins_in_the_activity(activity: Any) -> None:
    error = await caught(lambda: activity("x"))
    assert isinstance(error, ActivityFailedError)
    assert frames(error.__cause__) == [activity.name, "deeper"]


async def test_the_failure_itself_shows_the_workflow_s_own_lines_only(store: Store) -> None:
    async def body() -> str:
        return await ask("x")

    error = await caught(body, store)
    # Looked at after the attempt; while it was caught, the frame that caught it was the first as well.
    assert frames(error) == ["run", "body"]


async def test_what_a_cause_came_from_is_trimmed_too() -> None:
    @durable_activity
    async def inner() -> None:
        raise LookupError("first")

    @durable_activity(retry=ONCE)
    async def outer() -> None:
        try:
            await inner()
        except LookupError as error:
            raise ValueError("second") from error

    error = (await caught(outer)).__cause__
    assert isinstance(error, ValueError)
    assert frames(error) == ["outer"]
    # The plain call of an activity has a frame of the library's, which is not before the user's own.
    assert frames(error.__cause__)[0] == "outer"
    assert frames(error.__cause__)[-1] == "inner"


@pytest.mark.parametrize("way", ["gather", "map_activity"])
async def test_of_several_calls(way: str) -> None:
    async def body() -> object:
        if way == "gather":
            return await asyncio.gather(ask("a"), ask("b"))
        return await map_activity(ask, ["a", "b"])

    error = await caught(body)
    assert frames(error) == ["run", "body"]
    assert frames(error.__cause__) == ["ask", "deeper"]


async def test_of_a_group_and_of_all_that_it_holds(store: Store) -> None:
    async def own() -> None:
        raise ValueError("of the workflow")

    async def body() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(ask("a"))
            group.create_task(ask_sync("b"))
            group.create_task(nested())

    async def nested() -> None:
        raise ExceptionGroup("nested", [await caught_here()])

    async def caught_here() -> Exception:
        try:
            await own()
        except ValueError as error:
            return error
        raise AssertionError

    error = await caught(body, store)
    assert type(error) is ExceptionGroup
    assert frames(error)[:2] == ["run", "body"]
    for leaf in tracebacks.related(error):
        names = frames(leaf)
        if isinstance(leaf, ActivityFailedError):
            # The task that the group made began in the library: there is no line of the user's.
            assert names == []
            assert frames(leaf.__cause__)[-1] == "deeper"
        else:
            assert names[0] in ("run", "ask", "ask_sync", "nested", "caught_here")


async def test_what_a_resolver_raises(caplog: pytest.LogCaptureFixture) -> None:
    async def link(results: Results[str]) -> str:
        return deeper("x")

    @workflow(STAGES, resolver=link, resolver_retry=ONCE)
    async def run(document: str) -> str:
        return document

    async with BatchOrchestrator(run, store=MemoryStore()) as batches:
        await within(batches.run(["x"]))
    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert record.exc_info is not None
    assert frames(record.exc_info[1]) == ["link", "deeper"]


@pytest.mark.parametrize("kind", ["function", "generator", "async generator"])
async def test_what_the_provider_of_a_dependency_raises(kind: str) -> None:
    async def function() -> str:
        return deeper("x")

    def generator() -> Iterator[str]:
        yield deeper("x")

    async def async_generator() -> AsyncIterator[str]:
        yield deeper("x")

    provider: Any = {"function": function, "generator": generator, "async generator": async_generator}[kind]

    @durable_activity
    async def ask_it(client: str = dependency(provider)) -> str:
        return client

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await ask_it()

    with pytest.raises(DependencyError) as failed:
        async with BatchOrchestrator(run, store=MemoryStore()):
            pass
    assert frames(failed.value.__cause__) == [provider.__name__, "deeper"]


# ---- timeouts: where it was at that moment -------------------------------------------------------------------


async def wait_for_ever() -> None:
    await asyncio.Event().wait()


async def test_an_activity_that_is_too_slow_shows_where_it_was() -> None:
    @durable_activity(retry=ONCE, timeout=timedelta(seconds=30))
    async def slow() -> None:
        await wait_for_ever()

    clock = ManualClock()
    errors: list[ActivityFailedError] = []

    @workflow(STAGES)
    async def run(document: str) -> None:
        try:
            await slow()
        except ActivityFailedError as error:
            errors.append(error)

    worker = Worker(MemoryStore(clock=clock), clock=clock, lease=timedelta(days=1))
    async with BatchOrchestrator(run, worker=worker) as batches, moving(clock, 1):
        await within(batches.run(["x"], batch_id="b"))
    late = errors[0].__cause__
    assert isinstance(late, ActivityTimeoutError)
    assert (late.activity, late.attempt, late.batch_id, late.document_id) == ("slow", 1, "b", "0")
    assert frames(late) == []
    assert isinstance(late.__cause__, asyncio.CancelledError)
    assert frames(late.__cause__)[:2] == ["slow", "wait_for_ever"]


async def test_a_document_that_is_too_slow_shows_where_it_was(caplog: pytest.LogCaptureFixture) -> None:
    @workflow(STAGES)
    async def run(document: str) -> None:
        await wait_for_ever()

    clock = ManualClock()
    worker = Worker(MemoryStore(clock=clock), clock=clock, lease=timedelta(days=1))
    config = BatchConfig(document_timeout=timedelta(seconds=30), failure_policy=ContinueOnFailure())
    async with BatchOrchestrator(run, worker=worker) as batches, moving(clock, 1):
        await within(batches.run(["x"], config=config))
    (record,) = (record for record in caplog.records if "failed in attempt" in record.getMessage())
    assert record.exc_info is not None
    late = record.exc_info[1]
    assert isinstance(late, DocumentTimeoutError)
    assert frames(late.__cause__)[:2] == ["run", "wait_for_ever"]


async def test_a_failure_that_was_caught_before_a_timeout_stays_recorded() -> None:
    runs: list[str] = []

    @durable_activity(retry=ONCE)
    async def first() -> None:
        runs.append("first")
        raise ConnectionError("down")

    @durable_activity
    async def instead(attempt: int) -> str:
        runs.append("instead")
        if len(runs) == 2:
            await wait_for_ever()
        return "done"

    @workflow(STAGES)
    async def run(document: str) -> str:
        try:
            await first()
        except ActivityFailedError:
            # The timeout's cause has this failure as its context.
            return await instead(1)
        return "never"

    clock = ManualClock()
    worker = Worker(MemoryStore(clock=clock), clock=clock, lease=timedelta(days=1))
    config = BatchConfig(
        document_timeout=timedelta(seconds=30), failure_policy=RetryFailed(max_attempts=2, backoff=NO_DELAY)
    )
    async with BatchOrchestrator(run, worker=worker) as batches, moving(clock, 1):
        result = await within(batches.run(["x"], config=config))
    assert result.counts.succeeded == 1
    assert runs == ["first", "instead", "instead"]


# ---- trimming ------------------------------------------------------------------------------------------------


def raised(function: Callable[[], object]) -> Exception:
    try:
        function()
    except Exception as error:  # noqa: BLE001  (to be looked at)
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        return error
    raise AssertionError("nothing was raised")


def test_a_mistake_of_the_library_s_is_shown_whole() -> None:
    error = raised(lambda: list(tracebacks.related(3)))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert error.__traceback__ is not None
    # Without the test's own frame, there are the library's only.
    error.__traceback__ = error.__traceback__.tb_next
    assert frames(error) == ["related", "own_attribute"]
    trim(error)
    assert frames(error) == ["related", "own_attribute"]


def test_an_error_of_the_library_s_needs_no_frames_of_its_own() -> None:
    error = raised(lambda: codec.Codec[str](str, "value").encode("\ud800"))
    assert isinstance(error, PayloadError)
    trim(error)
    assert frames(error) == ["<lambda>"]


def test_errors_that_lead_to_each_other_in_a_circle_are_trimmed_once() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__context__ = other, one
    trim(one)
    assert list(tracebacks.related(one)) == [one, other]


@pytest.mark.parametrize(
    ("module", "shown"),
    [
        ("durable_batches.runtime.attempt", ["deeper"]),
        ("durable_batches.clock", ["deeper"]),
        ("durable_batches.extraction.workflow", ["inside", "deeper"]),
        ("durable_batches.cli.demo", ["inside", "deeper"]),
        ("durable_batches_of_mine", ["inside", "deeper"]),
    ],
)
def test_what_the_library_ships_as_an_example_is_as_the_user_s(module: str, shown: list[str]) -> None:
    namespace: dict[str, Any] = {"__name__": module, "deeper": deeper}
    exec("def inside():\n    deeper('x')", namespace)
    error = raised(namespace["inside"])
    trim(error)
    assert frames(error) == shown


@dataclass(frozen=True)
class Frozen(Exception):
    status: int

    def __str__(self) -> str:
        return f"the service said {self.status}"


@pytest.mark.parametrize("where", ["activity", "sync activity", "workflow"])
async def test_an_error_of_a_class_that_refuses_assignments_is_the_user_s(where: str) -> None:
    @durable_activity(retry=RetryPolicy(max_attempts=2, initial=timedelta(0)))
    async def ask() -> None:
        raise Frozen(503)

    @durable_activity(retry=RetryPolicy(max_attempts=2, initial=timedelta(0)))
    def ask_sync() -> None:
        raise Frozen(503)

    async def body() -> None:
        if where == "workflow":
            raise Frozen(503)
        await (ask() if where == "activity" else ask_sync())

    ended = await Trial().end(body)
    assert isinstance(ended, AttemptFailed)
    assert (ended.record.error_type, "the service said 503" in ended.record.error) == ("Frozen", True)
