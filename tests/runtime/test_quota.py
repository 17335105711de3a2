"""A provider that refuses calls for its account: the batch is paused, looks again, and goes on where it was."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from tests.conftest import StoreMaker
from tests.support import STAGES, at_rest, eventually, everything

from durable_batches import (
    BatchConfig,
    BatchFailedError,
    BatchOrchestrator,
    BatchPaused,
    BatchResumed,
    DocumentReleased,
    DocumentSucceeded,
    DurableActivity,
    ErrorClassifier,
    Pause,
    QuotaExhausted,
    Results,
    RetryLater,
    Verdict,
    Worker,
    Workflow,
    current_activity,
    durable_activity,
    workflow,
)
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.testing import ManualClock, environment

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
SPENT = "Your credit balance is too low"


class Empty(Exception):
    """As a client has it: the status and the code as attributes."""

    def __init__(self) -> None:
        super().__init__(SPENT)
        self.status_code = 402


class Overload(Exception):
    status_code = 503


class LoggedOut(Exception):
    status_code = 401


class Provider:
    """Refuses all calls until a moment, and notes when it was called."""

    def __init__(self, until: timedelta = HOUR, error: Callable[[], Exception] = Empty) -> None:
        self.clock = ManualClock()
        self._begin = self.clock.boot()
        self._until = until.total_seconds()
        self._error = error
        self.refused: list[float] = []
        self.served: Counter[str] = Counter()

    @property
    def seconds(self) -> float:
        return round(self.clock.boot() - self._begin, 3)

    def ask(self, text: str) -> str:
        if self.seconds < self._until:
            self.refused.append(self.seconds)
            raise self._error()
        self.served[text] += 1
        return text.upper()

    def activity(self, classify: ErrorClassifier | None = None) -> DurableActivity[[str], str]:
        """An activity that asks it."""

        @durable_activity(classify=classify)
        async def ask(text: str) -> str:
            return self.ask(text)

        return ask

    def workflow(self, classify: ErrorClassifier | None = None) -> Workflow[str, str, Any, None]:
        """A workflow that asks it once."""
        ask = self.activity(classify)

        @workflow(STAGES)
        async def run(document: str) -> str:
            return await ask(document)

        return run


def overloaded_for_ten_minutes(error: BaseException) -> Verdict:
    return Verdict(kind="overloaded", retry_after=timedelta(minutes=10))


def looks(*, until: float) -> list[float]:
    """When a provider is asked: at first, and each time twice as far, up to ten minutes."""
    found, pause = [0.0], 30.0
    while found[-1] + pause < until:
        found.append(found[-1] + pause)
        pause = min(2 * pause, 600.0)
    return found


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ---- the pause -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Empty, QuotaExhausted], ids=["a client's", "the library's"])
async def test_an_empty_account_costs_one_refused_call_a_look(
    error: Callable[[], Exception], open_store: StoreMaker, caplog: pytest.LogCaptureFixture
) -> None:
    provider = Provider(HOUR, error)

    run = provider.workflow()
    documents = [f"d{number}" for number in range(20)]
    config = BatchConfig(concurrency=5)
    async with environment(run, store=open_store, clock=provider.clock, config=config) as env:
        batch_id = await env.batches.submit(documents)
        result = await env.finished(batch_id)
        outcomes = await everything(env.batches.results(batch_id))
        events = await everything(env.batches.progress(batch_id))
    assert result.counts.succeeded == 20
    assert [outcome.value for outcome in outcomes if isinstance(outcome, DocumentSucceeded)] == [
        document.upper() for document in documents
    ]
    # Five were in flight when the account became empty.
    assert provider.refused == [0.0] * 4 + looks(until=3_600)
    assert set(provider.served.values()) == {1}
    paused = [event for event in events if isinstance(event, BatchPaused)]
    assert len(paused) == len(looks(until=3_600)), "each look is set by one event"
    assert sum(isinstance(event, BatchResumed) for event in events) == 1
    # One line a look, with the provider's message, and one at the end.
    lines = warnings(caplog)
    assert len(lines) == len(paused) + 1
    message = SPENT if error is Empty else "QuotaExhausted"
    assert all(message in line and "paused (quota)" in line for line in lines[:-1])
    assert lines[0].endswith("the provider is asked again in 30 s")
    assert lines[-1] == f"batch {batch_id!r} resumed (quota): a call succeeded"


async def test_the_pause_is_seen_from_outside(open_store: StoreMaker) -> None:
    provider = Provider()

    run = provider.workflow()
    async with environment(run, store=open_store, clock=provider.clock) as env:
        batch_id = await env.batches.submit(["x", "y"])
        await env.settled()
        now = from_micros(provider.clock.now())
        snapshot = await env.batches.snapshot(batch_id)
        assert snapshot.paused
        (pause,) = snapshot.pauses
        note = f"quota spent: Empty: {SPENT}"
        assert pause == Pause(reason="quota", since=now, until=now + 30 * SECOND, note=note)
        assert snapshot.counts.running == 0
        explanation = str(await env.batches.explain(batch_id))
        assert f"because a provider refuses its calls: {note}." in explanation
        await env.finished(batch_id)
        snapshot = await env.batches.snapshot(batch_id)
        assert (snapshot.paused, snapshot.pauses) == (False, ())


async def test_what_an_error_says_of_the_account_is_told_apart(open_store: StoreMaker) -> None:
    provider = Provider(10 * SECOND, LoggedOut)

    run = provider.workflow()
    async with environment(run, store=open_store, clock=provider.clock) as env:
        batch_id = await env.batches.submit(["x"])
        await env.settled()
        (pause,) = (await env.batches.snapshot(batch_id)).pauses
        assert pause.note.startswith("credentials refused: LoggedOut")
        assert (await env.finished(batch_id)).counts.succeeded == 1


async def test_a_batch_fails_when_no_call_has_succeeded_for_its_patience(open_store: StoreMaker) -> None:
    provider = Provider(10 * DAY)

    run = provider.workflow()
    config = BatchConfig(concurrency=1, quota_patience=timedelta(minutes=5))
    async with environment(run, store=open_store, clock=provider.clock, config=config) as env:
        batch_id = await env.batches.submit(["x", "y"])
        result = await env.finished(batch_id)
        with pytest.raises(BatchFailedError, match=f"no call succeeded for 0:05:00: quota spent: Empty: {SPENT}"):
            _ = result.value
    # It looks for a last time when its patience is over.
    assert provider.refused == [0, 30, 90, 210, 300]
    assert provider.seconds == 300


async def test_a_batch_without_patience_waits_for_ever(open_store: StoreMaker) -> None:
    provider = Provider(DAY + HOUR)

    run = provider.workflow()
    config = BatchConfig(quota_patience=None)
    async with environment(run, store=open_store, clock=provider.clock, config=config) as env:
        result = await env.finished(await env.batches.submit(["x"]))
    assert result.counts.succeeded == 1
    assert provider.refused == looks(until=25 * 3_600)


async def test_a_pause_outlives_its_process(open_store: StoreMaker) -> None:
    provider = Provider()

    run = provider.workflow()
    async with environment(run, store=open_store, clock=provider.clock) as env:
        batch_id = await env.batches.submit(["x"])
        await env.advance(100 * SECOND)
        await env.crash()
        assert (await env.batches.snapshot(batch_id)).paused
        assert (await env.finished(batch_id)).counts.succeeded == 1
    assert provider.refused == looks(until=3_600)


# ---- the attempt is unwound ----------------------------------------------------------------------------------------


async def in_its_own_task(ask: Callable[[], Awaitable[str]]) -> str:
    return await ask()


async def in_a_group(ask: Callable[[], Awaitable[str]]) -> str:
    async def wait() -> str:
        return await ask()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(wait())
    return task.result()


async def in_a_gather(ask: Callable[[], Awaitable[str]]) -> str:
    answers = await asyncio.gather(ask(), return_exceptions=True)
    return str(answers[0])


async def in_a_task_that_nothing_awaits(ask: Callable[[], Awaitable[str]]) -> str:
    async def wait() -> str:
        return await ask()

    task = asyncio.create_task(wait())
    done, _ = await asyncio.wait([task])
    return done.pop().result()


@pytest.mark.parametrize("how", [in_its_own_task, in_a_group, in_a_gather, in_a_task_that_nothing_awaits])
@pytest.mark.parametrize("caught", [Exception, BaseException])
async def test_no_code_of_the_workflow_can_take_the_refusal_for_a_result(
    how: Callable[[Callable[[], Awaitable[str]]], Awaitable[str]],
    caught: type[BaseException],
    open_store: StoreMaker,
) -> None:
    provider = Provider()
    seen: list[BaseException] = []

    ask = provider.activity()

    @workflow(STAGES)
    async def run(document: str) -> str:
        try:
            return await how(lambda: ask(document))
        except caught as error:
            seen.append(error)
            return "a default"

    async with environment(run, store=open_store, clock=provider.clock) as env:
        batch_id = await env.batches.submit(["x"])
        await env.finished(batch_id)
        (outcome,) = await everything(env.batches.results(batch_id))
    assert outcome == DocumentSucceeded(document_id="0", value="X")
    assert not any(isinstance(error, Empty) for error in seen)
    if caught is Exception:
        assert seen == []
    assert provider.refused == looks(until=3_600)


async def test_what_other_calls_bring_meanwhile_is_recorded(open_store: StoreMaker) -> None:
    provider = Provider()
    read: list[float] = []
    begun: list[float] = []

    ask = provider.activity()

    @durable_activity
    async def scan(text: str) -> str:
        begun.append(provider.seconds)
        await provider.clock.sleep(20)
        read.append(provider.seconds)
        return text

    @durable_activity
    async def wait(text: str) -> str:
        if provider.seconds < 3_600:
            raise RetryLater(after=HOUR)
        return text

    @workflow(STAGES)
    async def run(document: str) -> list[str]:
        return list(await asyncio.gather(scan(document), wait(document), ask(document)))

    async with environment(run, store=open_store, clock=provider.clock) as env:
        batch_id = await env.batches.submit(["x"])
        await env.advance(25 * SECOND)
        assert read == [20]
        assert (await env.batches.snapshot(batch_id)).counts.running == 0
        (pause,) = (await env.batches.snapshot(batch_id)).pauses
        assert pause.until == from_micros(provider.clock.now()) + 25 * SECOND
        await env.finished(batch_id)
        (outcome,) = await everything(env.batches.results(batch_id))
        events = await everything(env.batches.progress(batch_id))
    assert {event.reason for event in events if isinstance(event, DocumentReleased)} == {"paused"}
    assert outcome == DocumentSucceeded(document_id="0", value=["x", "x", "X"])
    assert (begun, read) == ([0], [20])


async def test_a_look_makes_one_call_at_a_time(open_store: StoreMaker) -> None:
    provider = Provider(100 * SECOND)
    asked: list[float] = []

    @durable_activity
    async def ask(text: str) -> str:
        asked.append(provider.seconds)
        await provider.clock.sleep(1)
        return provider.ask(text)

    @workflow(STAGES)
    async def run(document: str) -> list[str]:
        return list(await asyncio.gather(*[ask(f"{document}{number}") for number in range(4)]))

    async with environment(run, store=open_store, clock=provider.clock) as env:
        batch_id = await env.batches.submit(["x"])
        assert (await env.finished(batch_id)).counts.succeeded == 1
    # All of the first attempt; one in each of two looks in vain; one that is served, and then the rest at once.
    assert asked == [0, 0, 0, 0, 31, 92, 213, 214, 214, 214]
    assert provider.refused == [1, 1, 1, 1, 32, 93]


async def test_an_attempt_that_is_refused_counts_nothing(open_store: StoreMaker) -> None:
    provider = Provider()
    attempts: list[int] = []

    @durable_activity
    async def ask(text: str) -> str:
        attempts.append(current_activity().attempt)
        return provider.ask(text)

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await ask(document)

    async with environment(run, store=open_store, clock=provider.clock) as env:
        assert (await env.finished(await env.batches.submit(["x"]))).counts.succeeded == 1
    assert set(attempts) == {1}
    assert len(attempts) == len(provider.refused) + 1


async def test_a_resolver_that_is_refused_pauses_its_batch(open_store: StoreMaker) -> None:
    provider = Provider()

    ask = provider.activity()

    async def resolve(results: Results[str]) -> str:
        return await ask("all")

    @workflow(STAGES, resolver=resolve)
    async def run(document: str) -> str:
        return document

    async with environment(run, store=open_store, clock=provider.clock) as env:
        result = await env.finished(await env.batches.submit(["x"]))
    assert result.resolution == "ALL"
    assert provider.refused == looks(until=3_600)


# ---- what is not the account's ------------------------------------------------------------------------------------


async def test_a_document_that_is_refused_for_itself_fails_alone(open_store: StoreMaker) -> None:
    clock = ManualClock()

    @durable_activity
    async def fetch(page: str) -> str:
        if page == "d0":
            raise LoggedOut("this page wants a login")
        return page

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await fetch(document)

    config = BatchConfig(concurrency=1)
    async with environment(run, store=open_store, clock=clock, config=config) as env:
        batch_id = await env.batches.submit([f"d{number}" for number in range(20)])
        result = await env.finished(batch_id)
    assert (result.counts.succeeded, result.counts.failed) == (19, 1)
    (failure,) = result.failures
    assert failure.document_id == "0"
    assert "this page wants a login" in failure.error


async def test_an_overload_that_does_not_end_pauses_the_batch_after_an_hour(
    open_store: StoreMaker, caplog: pytest.LogCaptureFixture
) -> None:
    provider = Provider(3 * HOUR, Overload)
    run = provider.workflow(classify=overloaded_for_ten_minutes)
    async with environment(run, store=open_store, clock=provider.clock) as env:
        batch_id = await env.batches.submit(["x"])
        await env.advance(HOUR - SECOND)
        assert not (await env.batches.snapshot(batch_id)).paused
        await env.advance(SECOND)
        (pause,) = (await env.batches.snapshot(batch_id)).pauses
        assert pause.note == "no call served for 1:00:00: Overload"
        assert (await env.finished(batch_id)).counts.succeeded == 1
    # It waits on, in the batch in place of the call.
    assert provider.refused == [600 * number for number in range(18)]
    assert len(warnings(caplog)) == 12 + 1


async def test_after_a_pause_the_hour_of_an_overload_begins_anew(open_store: StoreMaker) -> None:
    provider = Provider(3 * HOUR, Overload)
    again: list[float] = []

    @durable_activity(classify=overloaded_for_ten_minutes)
    async def ask(text: str) -> str:
        if provider.served and not again:
            again.append(provider.seconds)
            raise Overload
        return provider.ask(text)

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await ask(document)

    config = BatchConfig(concurrency=1)
    async with environment(run, store=open_store, clock=provider.clock, config=config) as env:
        batch_id = await env.batches.submit(["x", "y"])
        await env.finished(batch_id)
        events = await everything(env.batches.progress(batch_id))
    assert again, "a call is refused once more, after the pause"
    assert sum(isinstance(event, BatchResumed) for event in events) == 1


async def test_what_other_workers_run_is_released_too(open_store: StoreMaker) -> None:
    """They learn of the pause from the store; what waits for a retry there goes on after it."""
    provider = Provider(60 * SECOND)
    begun: dict[str, str] = {}
    both, refuse = asyncio.Event(), asyncio.Event()

    @durable_activity
    async def ask(text: str) -> str:
        if len(begun) == 2:
            return provider.ask(text)
        begun[text] = "waits" if begun else "refused"
        if begun[text] == "waits":
            both.set()
            raise RetryLater(after=HOUR)
        await refuse.wait()
        return provider.ask(text)

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await ask(document)

    clock = provider.clock
    async with environment(run, store=open_store, clock=clock, max_in_flight=1) as env:
        batch_id = await env.batches.submit(["x", "y"])
        other = Worker(open_store(clock), clock=clock, max_in_flight=1)
        async with BatchOrchestrator(run, worker=other):
            # Its first claim takes the other document; no time passes for that, however long it takes.
            await eventually(both.is_set)
            assert (await env.batches.snapshot(batch_id)).counts.running == 2
            refuse.set()

            async def is_released() -> bool:
                # The environment waits for its own worker's commits, and not for the other's.
                await at_rest(other)
                await env.advance(SECOND)
                snapshot = await env.batches.snapshot(batch_id)
                return snapshot.paused and snapshot.counts.running == 0

            await eventually(is_released)
        assert (await env.finished(batch_id)).counts.succeeded == 2
    assert provider.seconds < 600, "nothing waits for the hour"
