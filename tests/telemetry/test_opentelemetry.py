"""Spans and metrics of OpenTelemetry, as its SDK receives them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from opentelemetry.trace import StatusCode, get_current_span
from tests.support import NO_DELAY, NO_DRAIN, ONCE, STAGES, Thinking, eventually

from durable_batches import (
    AbortAll,
    BatchConfig,
    BatchOrchestrator,
    MemoryStore,
    Results,
    RetryFailed,
    Worker,
    durable_activity,
    workflow,
)
from durable_batches.telemetry import ActivityDetails, NotBegun, OpenTelemetry

SECRET = "the-payload"


class Received(NamedTuple):
    """What the SDK has received."""

    exporter: InMemorySpanExporter
    reader: InMemoryMetricReader
    tracer: TracerProvider
    telemetry: OpenTelemetry

    def spans(self, name: str = "") -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name.startswith(name)]

    def span(self, name: str) -> ReadableSpan:
        (found,) = self.spans(name)
        return found

    def metrics(self) -> dict[str, list[NumberDataPoint | HistogramDataPoint]]:
        data = self.reader.get_metrics_data()
        assert data is not None
        return {
            metric.name: [
                point for point in metric.data.data_points if isinstance(point, NumberDataPoint | HistogramDataPoint)
            ]
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


def receiving(sampler: Sampler = ALWAYS_ON) -> Received:
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracer, meter = TracerProvider(sampler=sampler), MeterProvider([reader])
    tracer.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry = OpenTelemetry(tracer_provider=tracer, meter_provider=meter)
    return Received(exporter, reader, tracer, telemetry)


@pytest.fixture
def received() -> Iterator[Received]:
    found = receiving()
    yield found
    found.tracer.shutdown()


@durable_activity(stage=Thinking, retry=ONCE)
async def think(text: str) -> str:
    if text.startswith("bad"):
        raise ValueError(f"cannot think of {text}")
    return text.upper()


@durable_activity(retry=ONCE)
def current(text: str) -> str:
    return getattr(get_current_span(), "name", "none")


async def count(results: Results[str]) -> int:
    return len([result async for result in results])


@workflow(STAGES, name="thoughts", version="2", resolver=count)
async def thoughts(text: str) -> str:
    return await think(text) + await current(text)


Batches = BatchOrchestrator[str, str, Any, int]


def batches_of(received: Received, store: MemoryStore, *, max_in_flight: int = 10) -> Batches:
    worker = Worker(store, max_in_flight=max_in_flight, drain=NO_DRAIN, telemetry=received.telemetry)
    return BatchOrchestrator(thoughts, worker=worker)


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}


def trace_of(span: ReadableSpan) -> int:
    assert span.context is not None
    trace_id: int = span.context.trace_id
    return trace_id


def span_of(span: ReadableSpan) -> int:
    assert span.context is not None
    span_id: int = span.context.span_id
    return span_id


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    assert parent.context is not None
    wanted = (parent.context.trace_id, parent.context.span_id)
    return span.parent is not None and (span.parent.trace_id, span.parent.span_id) == wanted


# ---- spans -----------------------------------------------------------------------------------------------------------


async def test_a_submission_belongs_to_its_request_and_its_documents_link_to_it(received: Received) -> None:
    store = MemoryStore()
    with received.tracer.get_tracer("app").start_as_current_span("POST /letters"):
        async with batches_of(received, store, max_in_flight=0) as submitting:
            await submitting.submit(["a", "b"], batch_id="monday")
    # Another process, which knows the batch from the store only.
    async with batches_of(received, store) as batches:
        assert (await batches.result("monday")).value == 2
    request, submit = received.span("POST"), received.span("submit thoughts")
    assert is_child(submit, request)
    assert attributes(submit)["durable_batches.batch.id"] == "monday"
    attempts = received.spans("attempt thoughts")
    assert {attributes(span)["durable_batches.document.id"] for span in attempts} == {"0", "1"}
    for attempt in (*attempts, received.span("resolve thoughts")):
        # A batch may run for days: no trace has all of it.
        assert attempt.parent is None
        assert trace_of(attempt) != trace_of(submit)
        (link,) = attempt.links
        assert link.context.span_id == span_of(submit)
        assert attributes(attempt)["durable_batches.outcome"] == "succeeded"
        assert attributes(attempt)["durable_batches.workflow.version"] == "2"
    batch = received.span("batch thoughts")
    assert is_child(batch, submit)
    assert attributes(batch)["durable_batches.batch.state"] == "completed"
    assert batch.start_time is not None
    assert batch.end_time is not None
    assert 0 < batch.end_time - batch.start_time < 60e9


async def test_activities_are_children_of_their_attempt_and_current(received: Received) -> None:
    async with batches_of(received, MemoryStore()) as batches:
        await batches.run(["a"], batch_id="monday")
        values = [result async for result in batches.results("monday")]
    assert [getattr(result, "value", None) for result in values] == ["Aactivity current"]
    attempt = received.span("attempt")
    for name in ("activity think", "activity current"):
        span = received.span(name)
        assert is_child(span, attempt)
        assert attributes(span)["durable_batches.attempt"] == 1
        assert span.status.status_code is StatusCode.UNSET


async def test_what_is_replayed_is_no_span(received: Received) -> None:
    tries = 0

    @workflow(STAGES, name="again")
    async def again(text: str) -> str:
        nonlocal tries
        found = await think(text)
        tries += 1
        if tries == 1:
            raise ConnectionError(SECRET)
        return found

    worker = Worker(MemoryStore(), telemetry=received.telemetry)
    async with BatchOrchestrator(again, worker=worker) as batches:
        policy = RetryFailed(max_attempts=2, backoff=NO_DELAY)
        await batches.run(["a"], config=BatchConfig(failure_policy=policy))
    assert len(received.spans("activity")) == 1
    first, second = received.spans("attempt")
    assert [attributes(span)["durable_batches.outcome"] for span in (first, second)] == ["retried", "succeeded"]
    assert attributes(first)["error.type"] == "ConnectionError"
    assert [attributes(span)["durable_batches.attempt"] for span in (first, second)] == [1, 2]


async def test_failures_have_their_type_and_nothing_has_a_payload(received: Received) -> None:
    async with batches_of(received, MemoryStore()) as batches:
        config = BatchConfig(failure_policy=AbortAll(), metadata={"tenant": SECRET})
        await batches.run([f"bad {SECRET}"], batch_id="monday", config=config)
    attempt, activity, batch = received.span("attempt"), received.span("activity"), received.span("batch")
    for span in (attempt, activity, batch):
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description is None
    assert attributes(activity)["error.type"] == "ValueError"
    assert attributes(attempt)["error.type"] == "ValueError"
    assert attributes(attempt)["durable_batches.outcome"] == "failed"
    assert attributes(batch)["durable_batches.batch.state"] == "failed"
    assert not any(span.events for span in received.spans())
    assert SECRET not in " ".join(span.to_json() for span in received.spans())
    assert SECRET not in str(received.metrics())


async def test_commits_and_claims_are_traces_of_their_own(received: Received) -> None:
    with received.tracer.get_tracer("app").start_as_current_span("main"):
        async with batches_of(received, MemoryStore()) as batches:
            await batches.run(["a", "b"])
    spans = [*received.spans("commit"), *received.spans("claim")]
    assert spans
    assert all(span.parent is None for span in spans)
    assert sum(attributes(span)["durable_batches.commit.claimed"] for span in spans) == 3
    assert sum(attributes(span)["durable_batches.commit.facts"] for span in spans) >= 6


async def test_a_released_attempt_is_no_failure(received: Received) -> None:
    began = asyncio.Event()

    @workflow(STAGES, name="endless")
    async def endless(text: str) -> str:
        began.set()
        await asyncio.Event().wait()
        return text

    async with BatchOrchestrator(
        endless, worker=Worker(MemoryStore(), drain=NO_DRAIN, telemetry=received.telemetry)
    ) as b:
        await b.submit(["a"])
        await began.wait()
    attempt = received.span("attempt")
    assert attempt.status.status_code is StatusCode.UNSET
    (point,) = received.metrics()["durable_batches.attempt.duration"]
    assert (point.attributes or {})["durable_batches.outcome"] == "released"


async def test_an_attempt_that_is_left_out_has_no_spans_of_activities() -> None:
    received = receiving(ALWAYS_OFF)
    async with batches_of(received, MemoryStore()) as batches:
        await batches.run(["a", "b"])
    assert received.spans() == []
    assert received.metrics()["durable_batches.activity.duration"]
    received.tracer.shutdown()


def test_an_attempt_of_a_call_that_could_not_begin_has_no_duration(received: Received) -> None:
    call = ActivityDetails(batch_id="b", document_id="a", activity="ask", attempt=1)
    with received.tracer.get_tracer("").start_as_current_span("attempt"):
        for error in (NotBegun(), asyncio.CancelledError(), None):
            with suppress(asyncio.CancelledError), received.telemetry.calling(call):
                if error is not None:
                    raise error
    (point,) = received.metrics()["durable_batches.activity.duration"]
    assert isinstance(point, HistogramDataPoint)
    assert point.count == 2
    outcomes = [(span.attributes or {}).get("durable_batches.outcome") for span in received.spans("activity ask")]
    assert outcomes == ["not_begun", None, None]


async def test_log_lines_are_written_within_the_span_of_their_attempt(
    received: Received, caplog: pytest.LogCaptureFixture
) -> None:
    spans: list[int] = []

    class Correlating(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.__dict__.get("document_id") == "0":
                spans.append(get_current_span().get_span_context().span_id)

    handler = Correlating()
    logging.getLogger("durable_batches").addHandler(handler)
    try:
        async with batches_of(received, MemoryStore()) as batches:
            await batches.run(["bad"])
    finally:
        logging.getLogger("durable_batches").removeHandler(handler)
    attempt = received.span("attempt")
    assert attempt.context is not None
    assert spans
    assert set(spans) == {attempt.context.span_id}


# ---- metrics ---------------------------------------------------------------------------------------------------------


async def test_metrics_have_few_attributes_and_no_ids(received: Received) -> None:
    async with batches_of(received, MemoryStore()) as batches:
        await batches.run(["a", "b", "bad"], batch_id="monday")
    metrics = received.metrics()
    assert set(metrics) >= {
        f"durable_batches.{name}"
        for name in (
            "batch.duration",
            "attempt.duration",
            "activity.duration",
            "commit.duration",
            "commit.facts",
            "document.claimed",
        )
    }
    found: dict[str, set[tuple[tuple[str, Any], ...]]] = {
        name: {tuple(sorted((point.attributes or {}).items())) for point in points} for name, points in metrics.items()
    }
    workflow_ = ("durable_batches.workflow.name", "thoughts")
    assert found["durable_batches.attempt.duration"] == {
        (("durable_batches.outcome", "succeeded"), workflow_),
        (("durable_batches.outcome", "failed"), workflow_, ("error.type", "ValueError")),
    }
    assert found["durable_batches.activity.duration"] == {
        (("durable_batches.activity.name", "think"),),
        (("durable_batches.activity.name", "think"), ("error.type", "ValueError")),
        (("durable_batches.activity.name", "current"),),
    }
    assert found["durable_batches.batch.duration"] == {(("durable_batches.batch.state", "completed"), workflow_)}
    counts = {
        (point.attributes or {})["durable_batches.outcome"]: point.count
        for point in metrics["durable_batches.attempt.duration"]
        if isinstance(point, HistogramDataPoint)
    }
    # The resolver's, too.
    assert counts == {"succeeded": 3, "failed": 1}
    assert "monday" not in str(metrics)


async def test_gauges_are_of_the_running_workers(received: Received) -> None:
    gate, began = asyncio.Event(), asyncio.Event()

    @durable_activity
    async def wait(text: str) -> str:
        began.set()
        await gate.wait()
        return text

    @workflow(STAGES, name="waiting")
    async def waiting(text: str) -> str:
        return await wait(text)

    def gauges() -> dict[str, float]:
        return {
            name.removeprefix("durable_batches.worker."): point.value
            for name, points in received.metrics().items()
            for point in points
            if name.startswith("durable_batches.worker.") and isinstance(point, NumberDataPoint)
        }

    worker = Worker(MemoryStore(), max_in_flight=7, telemetry=received.telemetry)
    async with BatchOrchestrator(waiting, worker=worker) as batches:
        await batches.submit(["a", "b", "c"], batch_id="monday")
        await eventually(lambda: gauges().get("calls") == 3)
        found = gauges()
        remaining, age = found.pop("lease.remaining"), found.pop("lease.age")
        assert found == {"in_flight": 3, "calls": 3, "max_in_flight": 7}
        assert 0 < remaining <= 30
        assert 0 <= age < 30
        gate.set()
        await batches.result("monday")
    assert gauges() == {}


def test_a_submission_without_a_loop_is_traced_too(received: Received) -> None:
    store = MemoryStore()
    batches_of(received, store).submit_sync(["a"], batch_id="monday")

    async def run() -> None:
        async with batches_of(received, store) as batches:
            await batches.result("monday")

    asyncio.run(run())
    (link,) = received.span("attempt").links
    submit = received.span("submit")
    assert submit.context is not None
    assert link.context.span_id == submit.context.span_id
