"""Hooks that a worker calls: what they are told, and that nothing they do harms the work."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from tests.support import AT_ONCE, STAGES

from durable_batches import BatchOrchestrator, ConfigurationError, MemoryStore, Worker, durable_activity, workflow
from durable_batches.telemetry import (
    ActivityDetails,
    AttemptDetails,
    AttemptOutcome,
    BatchDetails,
    CommitDetails,
    CommitOutcome,
    SubmissionDetails,
    WorkerGauges,
)
from durable_batches.telemetry.hooks import HOOKS, EndOfAttempt, EndOfCommit


@durable_activity
async def shout(text: str) -> str:
    return text.upper()


@workflow(STAGES, name="shouts")
async def shouts(text: str) -> str:
    return await shout(text)


class Diary:
    """Notes what it is told; fails where it is to."""

    def __init__(self, *, fails_in: str = "", at: str = "") -> None:
        self.told: list[Any] = []
        self._fails_in = fails_in
        self._at = at

    def _fail(self, hook: str, at: str) -> None:
        if (hook, at) == (self._fails_in, self._at):
            raise RuntimeError("the collector is away")

    @contextmanager
    def submitting(self, submission: SubmissionDetails) -> Generator[Mapping[str, str]]:
        self._fail("submitting", "enter")
        yield {"traceparent": "00-1-2-3"}
        self._fail("submitting", "exit")

    @contextmanager
    def attempting(self, attempt: AttemptDetails) -> Generator[EndOfAttempt]:
        self._fail("attempting", "enter")

        def ended(outcome: AttemptOutcome, error_type: str | None) -> None:
            self._fail("attempting", "end")
            self.told.append((attempt.document_id, attempt.origin, outcome, error_type))

        yield ended
        self._fail("attempting", "exit")

    @contextmanager
    def calling(self, call: ActivityDetails) -> Generator[None]:
        self._fail("calling", "enter")
        yield
        self._fail("calling", "exit")
        self.told.append((call.document_id, call.activity, call.attempt))

    @contextmanager
    def committing(self, commit: CommitDetails) -> Generator[EndOfCommit]:
        self._fail("committing", "enter")

        def ended(outcome: CommitOutcome) -> None:
            self._fail("committing", "end")

        yield ended
        self._fail("committing", "exit")

    def batch_ended(self, batch: BatchDetails) -> None:
        self._fail("batch_ended", "enter")
        self.told.append((batch.batch_id, batch.state, batch.origin))

    def watch(self, gauges: Callable[[], WorkerGauges | None]) -> Callable[[], object]:
        self._fail("watch", "enter")

        def end() -> None:
            self._fail("watch", "end")
            self.told.append("worker ended")

        return end


async def run(diary: Diary) -> str | None:
    worker = Worker(MemoryStore(), telemetry=diary)
    async with BatchOrchestrator(shouts, worker=worker) as batches:
        await batches.run(["a"], batch_id="monday", document_id=str)
        values = [getattr(result, "value", None) async for result in batches.results("monday")]
    return values[0]


async def test_they_are_told_of_each_step() -> None:
    diary = Diary()
    assert await run(diary) == "A"
    origin = {"traceparent": "00-1-2-3"}
    assert diary.told == [
        ("a", "shout", 1),
        ("monday", "completed", origin),
        ("a", origin, "succeeded", None),
        "worker ended",
    ]


@pytest.mark.parametrize(
    ("hook", "at"),
    [
        *((hook, "enter") for hook in HOOKS),
        *((hook, "exit") for hook in HOOKS[:4]),
        ("attempting", "end"),
        ("committing", "end"),
        ("watch", "end"),
    ],
)
async def test_one_that_fails_is_logged_once_and_harms_nothing(
    hook: str, at: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "durable_batches"):
        assert await run(Diary(fails_in=hook, at=at)) == "A"
    (record,) = caplog.records
    assert record.getMessage() == f"telemetry failed in {hook}, which is not logged again: RuntimeError"
    assert record.__dict__["hook"] == hook


async def test_none_may_swallow_the_error_of_an_activity() -> None:
    class Swallowing(Diary):
        @contextmanager
        def calling(self, call: ActivityDetails) -> Generator[None]:
            with suppress(ValueError):
                yield

    @durable_activity(retry=AT_ONCE)
    async def fail(text: str) -> str:
        raise ValueError(text)

    @workflow(STAGES, name="fails")
    async def fails(text: str) -> str:
        return await fail(text)

    async with BatchOrchestrator(fails, worker=Worker(MemoryStore(), telemetry=Swallowing())) as batches:
        assert (await batches.run(["a"])).counts.failed == 1


async def test_without_telemetry_nothing_is_around_a_call() -> None:
    async with Worker(MemoryStore()) as worker:
        assert worker.reporting is None
        assert worker.session.resources.middleware == ()


def test_what_lacks_a_hook_is_refused() -> None:
    class Half:
        def submitting(self) -> None: ...

    with pytest.raises(ConfigurationError, match=r"telemetry\.attempting must be a function"):
        Worker(MemoryStore(), telemetry=Half())  # type: ignore[arg-type]  # what it is about
