"""What runs round each attempt of an activity."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from benchmarks.journeys import tracer
from pydantic import BaseModel
from tests.runtime.attempts import Trial
from tests.support import AT_ONCE, ONCE, STAGES, moving

from durable_batches import (
    ActivityFailedError,
    BatchOrchestrator,
    MemoryStore,
    RetryPolicy,
    Worker,
    current_activity,
    current_execution,
    durable_activity,
    workflow,
)
from durable_batches.lifecycle.facts import ActivityCompleted, ActivityFailed
from durable_batches.lifecycle.records import CheckpointRecord
from durable_batches.runtime.attempt_result import AttemptFailed, AttemptStopped
from durable_batches.runtime.middleware import CallNext, Middleware, MiddlewareCall
from durable_batches.testing import ManualClock


class Noted:
    """Notes when it is entered and left."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    async def __call__(self, call: MiddlewareCall, call_next: CallNext, /) -> Any:
        self.log.append(f"{self.name} enters {call.attempt}")
        try:
            return await call_next()
        finally:
            self.log.append(f"{self.name} leaves")


def forms(log: list[str]) -> dict[str, Callable[[str], Awaitable[str]]]:
    """An activity in each form: the one that has a path of its own where no middleware is set, and others."""

    @durable_activity
    async def plain(text: str) -> str:
        log.append("runs")
        return text

    @durable_activity
    def in_a_thread(text: str) -> str:
        log.append("runs")
        return text

    @durable_activity(timeout=timedelta(seconds=60))
    async def timed(text: str) -> str:
        log.append("runs")
        return text

    class Owner:
        @durable_activity
        async def method(self, text: str) -> str:
            log.append("runs")
            return text

    return {"plain": plain, "thread": in_a_thread, "timed": timed, "method": Owner().method}


@pytest.mark.parametrize("form", forms([]))
async def test_the_first_is_the_outermost(form: str) -> None:
    log: list[str] = []
    activity = forms(log)[form]
    trial = Trial(middleware=[Noted("one", log), Noted("two", log)])

    async def body() -> str:
        return await activity("a")

    assert await trial.value(body) == "a"
    assert log == ["one enters 1", "two enters 1", "runs", "two leaves", "one leaves"]


async def test_each_attempt_is_wrapped_and_the_delay_between_them_is_not() -> None:
    log: list[str] = []
    clock = ManualClock()

    @durable_activity(retry=RetryPolicy(max_attempts=3, initial=timedelta(seconds=5)))
    async def fails_twice(text: str) -> str:
        log.append(f"runs at {clock.boot() - began:.0f}")
        if current_activity().attempt < 3:
            raise ValueError(text)
        return text

    trial = Trial(middleware=[Noted("it", log)], clock=clock)

    async def body() -> str:
        return await fails_twice("a")

    began = clock.boot()
    async with moving(clock, 1.0):
        assert await trial.value(body) == "a"
    assert [line.partition(" at")[0] for line in log] == [
        *("it enters 1", "runs", "it leaves"),
        *("it enters 2", "runs", "it leaves"),
        *("it enters 3", "runs", "it leaves"),
    ]
    [fact] = trial.recorder.facts
    assert isinstance(fact, ActivityCompleted)


async def test_one_may_answer_without_the_function() -> None:
    log: list[str] = []

    async def answers(call: MiddlewareCall, call_next: CallNext, /) -> Any:
        return "another"

    trial = Trial(middleware=[answers])
    activity = forms(log)["plain"]

    async def body() -> str:
        return await activity("a")

    assert await trial.value(body) == "another"
    assert log == []
    [fact] = trial.recorder.facts
    assert isinstance(fact, ActivityCompleted)
    assert fact.payload == b'"another"'


class Page(BaseModel):
    words: list[str]


async def test_what_it_returns_is_encoded_and_read_as_the_result() -> None:
    kept: list[Page] = []

    @durable_activity
    async def page() -> Page:
        return Page(words=["a"])

    async def adds(call: MiddlewareCall, call_next: CallNext, /) -> Any:
        found: Page = await call_next()
        kept.append(found)
        found.words.append("b")
        return found

    trial = Trial(middleware=[adds])
    value = await trial.value(page)
    assert value == Page(words=["a", "b"])
    # Read from its bytes, as a replay does.
    assert value is not kept[0]


async def test_what_cannot_be_encoded_is_the_activity_s_failure() -> None:
    async def answers(call: MiddlewareCall, call_next: CallNext, /) -> Any:
        return object()

    activity = forms([])["plain"]

    async def body() -> str:
        return await activity("a")

    outcome = await Trial(middleware=[answers]).end(body)
    assert isinstance(outcome, AttemptFailed)
    assert outcome.record.error_type == "PayloadError"


async def test_its_exception_is_retried_as_the_function_s_own() -> None:
    attempts: list[int] = []

    @durable_activity(retry=AT_ONCE)
    async def act(text: str) -> str:
        return text

    async def busy_once(call: MiddlewareCall, call_next: CallNext, /) -> Any:
        attempts.append(call.attempt)
        if call.attempt == 1:
            raise ConnectionError("busy")
        return await call_next()

    async def body() -> str:
        return await act("a")

    assert await Trial(middleware=[busy_once]).value(body) == "a"
    assert attempts == [1, 2]


async def test_its_exception_is_recorded_when_the_attempts_are_used_up() -> None:
    @durable_activity(retry=ONCE)
    async def act(text: str) -> str:
        return text

    async def refuses(call: MiddlewareCall, call_next: CallNext, /) -> Any:
        raise PermissionError("no permit")

    async def body() -> str:
        with pytest.raises(ActivityFailedError, match="no permit") as caught:
            await act("a")
        assert caught.value.caused_by(PermissionError)
        return "went on"

    trial = Trial(middleware=[refuses])
    assert await trial.value(body) == "went on"
    [fact] = trial.recorder.facts
    assert isinstance(fact, ActivityFailed)


async def test_it_sees_which_call_it_is() -> None:
    seen: list[tuple[object, ...]] = []

    @durable_activity(version="7")
    async def act(text: str, *, loud: bool = False) -> str:
        return text

    async def looks(call: MiddlewareCall, call_next: CallNext, /) -> Any:
        bound = call.bound
        seen.append((bound.activity.name, bound.activity.version, bound.args, dict(bound.kwargs)))
        seen.append((call.batch_id, call.document_id, call.attempt, call.key))
        # It runs where the activity's body does.
        assert current_activity() is call
        assert current_execution().document_id == call.document_id
        return await call_next()

    async def body() -> str:
        return await act("a", loud=True)

    trial = Trial(middleware=[looks])
    await trial.value(body)
    [fact] = trial.recorder.facts
    assert isinstance(fact, ActivityCompleted)
    assert seen == [("act", "7", ("a",), {"loud": True}), ("batch", "document", 1, fact.key)]


async def test_activities_that_it_calls_are_plain_calls() -> None:
    log: list[str] = []
    other = forms(log)["plain"]

    @durable_activity
    async def act(text: str) -> str:
        return text

    async def calls(call: MiddlewareCall, call_next: CallNext, /) -> Any:
        return await call_next() + await other("b")

    async def body() -> str:
        return await act("a")

    trial = Trial(middleware=[calls])
    assert await trial.value(body) == "ab"
    assert len(trial.recorder.facts) == 1


async def test_cancellation_reaches_the_function_through_it() -> None:
    log: list[str] = []
    inside = asyncio.Event()

    @durable_activity
    async def waits() -> None:
        try:
            inside.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            log.append("function cancelled")
            raise

    trial = Trial(middleware=[Noted("it", log)])
    running = asyncio.create_task(trial.end(waits))
    await inside.wait()
    trial.attempt.stop("fenced")
    assert await running == AttemptStopped("fenced")
    assert log == ["it enters 1", "function cancelled", "it leaves"]
    assert trial.recorder.facts == []


async def test_what_it_waits_for_does_not_count_against_the_timeout() -> None:
    clock = ManualClock()

    @durable_activity(timeout=timedelta(seconds=2), retry=ONCE)
    async def act(seconds: int) -> int:
        await clock.sleep(seconds)
        return seconds

    async def waits(call: MiddlewareCall, call_next: CallNext, /) -> Any:
        await clock.sleep(60)
        return await call_next()

    async def body() -> str:
        assert await act(1) == 1
        with pytest.raises(ActivityFailedError, match="2 s"):
            await act(5)
        return "late"

    async with moving(clock, 0.5):
        assert await Trial(middleware=[waits], clock=clock).value(body) == "late"


async def test_a_replay_runs_none() -> None:
    log: list[str] = []
    activity = forms(log)["plain"]
    first = Trial()

    async def body() -> str:
        return await activity("a")

    await first.value(body)
    [fact] = first.recorder.facts
    assert isinstance(fact, ActivityCompleted)
    second = Trial(middleware=[Noted("it", log)], checkpoints=[CheckpointRecord(fact.key, "succeeded", fact.payload)])
    assert await second.value(body) == "a"
    assert log == ["runs"]


async def test_none_costs_nothing() -> None:
    async def calls(*middleware: Middleware) -> list[str]:
        activity = forms([])["plain"]

        async def body() -> str:
            tracer.begin()
            found = await activity("a")
            tracer.end()
            return found

        trial = Trial(middleware=middleware)
        tracer.install()
        try:
            await trial.value(body)
        finally:
            tracer.uninstall()
        return [f"{call.file} {call.function}" for call in tracer.end()]

    without = await calls()
    assert not [call for call in without if "middleware" in call or call.endswith((".once", "._try"))]
    assert len(await calls(Noted("it", []))) > len(without)


async def test_a_worker_s_resources_carry_it() -> None:
    log: list[str] = []
    activity = forms(log)["plain"]

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await activity(document)

    worker = Worker(MemoryStore())
    async with BatchOrchestrator(run, worker=worker) as batches:
        session = worker._session
        assert session is not None
        session.resources.middleware = [Noted("it", log)]
        (await batches.run(["a"])).raise_for_failures()
    assert log == ["it enters 1", "runs", "it leaves"]
