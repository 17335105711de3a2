"""Spans and metrics of OpenTelemetry (the extra `otel`): its API only; the application brings the SDK."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from typing import Final

from durable_batches.clock import SystemClock
from durable_batches.errors import MissingExtraError
from durable_batches.options import check_callable
from durable_batches.tasks import NotBegun
from durable_batches.telemetry.hooks import (
    ActivityDetails,
    AttemptDetails,
    AttemptOutcome,
    BatchDetails,
    CommitDetails,
    CommitOutcome,
    EndOfAttempt,
    EndOfCommit,
    ExecutorGauges,
    LimiterGauges,
    SubmissionDetails,
    WorkerGauges,
    WorkflowGauges,
)
from durable_batches.version import VERSION

if find_spec("opentelemetry") is None:
    raise MissingExtraError("otel", "opentelemetry-api")

from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, Observation, get_meter_provider
from opentelemetry.trace import (
    Link,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    TracerProvider,
    get_current_span,
    get_tracer_provider,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

__all__ = ["OpenTelemetry"]

_NAME: Final = "durable_batches"

# Attributes. Those of metrics are few in their values: no ids are among them.
_BATCH: Final = "durable_batches.batch.id"
_DOCUMENT: Final = "durable_batches.document.id"
_WORKER: Final = "durable_batches.worker.id"
_WORKFLOW: Final = "durable_batches.workflow.name"
_VERSION: Final = "durable_batches.workflow.version"
_RUN: Final = "durable_batches.run"
_ATTEMPT: Final = "durable_batches.attempt"
_ACTIVITY: Final = "durable_batches.activity.name"
_OUTCOME: Final = "durable_batches.outcome"
_STATE: Final = "durable_batches.batch.state"
_STATUS: Final = "durable_batches.document.status"
_LIMITER: Final = "durable_batches.limiter.name"
_CIRCUIT: Final = "durable_batches.limiter.circuit.state"
_EXECUTOR: Final = "durable_batches.executor.name"
_FACTS: Final = "durable_batches.commit.facts"
_EVENTS: Final = "durable_batches.commit.events"
_CLAIMED: Final = "durable_batches.commit.claimed"
_ERROR_TYPE: Final = "error.type"

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
"""Buckets for what takes from milliseconds (a commit) to half an hour (a call of a slow provider)."""
_HOURS: Final = (1, 10, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 7 * 24 * 3600)
_CIRCUITS: Final = ("closed", "open", "half-open")
_FACTS_EACH: Final = (0, 1, 2, 5, 10, 25, 50, 100, 250, 500, 1000)


class OpenTelemetry:
    """Spans and metrics of workers, for `Worker(telemetry=)`.

    A submission is a span of the trace that it is made in, and is recorded with the batch. When the batch has ended, it
    is a second one. Each attempt of a document is a trace of its own with a link to the submission, since a batch may
    run for days; activities are its children, and current while they run. Commits and claims are traces of their own.
    Where the sampler leaves out an attempt, no spans of its activities are made.

    Args:
        tracer_provider: Of the SDK; None: the one that is set globally.
        meter_provider: Of the SDK; None: the one that is set globally.

    Raises:
        ConfigurationError: One of them is none.
    """

    def __init__(
        self, *, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        for name, provider, method in (
            ("tracer_provider", tracer_provider, "get_tracer"),
            ("meter_provider", meter_provider, "get_meter"),
        ):
            if provider is not None:
                check_callable(f"{method} of {name}", getattr(provider, method, None))
        tracers = get_tracer_provider() if tracer_provider is None else tracer_provider
        meters = get_meter_provider() if meter_provider is None else meter_provider
        self._tracer: Tracer = tracers.get_tracer(_NAME, VERSION)
        self._clock = SystemClock()
        self._propagator = TraceContextTextMapPropagator()
        self._watched: list[Callable[[], WorkerGauges | None]] = []
        self._make_instruments(meters.get_meter(_NAME, VERSION))

    def _make_instruments(self, meter: Meter) -> None:
        def histogram(name: str, unit: str, description: str, boundaries: Sequence[float]) -> Histogram:
            return meter.create_histogram(
                f"durable_batches.{name}", unit, description, explicit_bucket_boundaries_advisory=boundaries
            )

        self._batches = histogram("batch.duration", "s", "From the submission of a batch to the end of its run", _HOURS)
        self._attempts = histogram(
            "attempt.duration", "s", "Of an attempt of a document, until its outcome is recorded", _SECONDS
        )
        self._activities = histogram("activity.duration", "s", "Of an attempt of a call of an activity", _SECONDS)
        self._commits = histogram(
            "commit.duration", "s", "Of a commit of a worker's facts, outages of the store included", _SECONDS
        )
        self._facts = histogram("commit.facts", "{fact}", "In one commit", _FACTS_EACH)
        self._claimed = meter.create_counter(
            "durable_batches.document.claimed", "{document}", "Documents, and resolvers, that workers have claimed"
        )
        sums: Iterable[tuple[str, str, str, Callable[[WorkerGauges], int]]] = (
            ("in_flight", "{document}", "Documents in flight", lambda gauges: gauges.in_flight),
            ("max_in_flight", "{document}", "Documents in flight at most", lambda gauges: gauges.max_in_flight),
            ("calls", "{call}", "Calls of activities that run", lambda gauges: gauges.calls),
        )
        for name, unit, description, read in sums:
            meter.create_observable_up_down_counter(
                f"durable_batches.worker.{name}", [self._summed(read)], unit, description
            )
        meter.create_observable_gauge(
            "durable_batches.worker.lease.remaining",
            [self._shortest_lease],
            "s",
            "How long the lease of a worker lasts yet: of several in the process, the shortest",
        )
        meter.create_observable_gauge(
            "durable_batches.worker.lease.age",
            [self._oldest_lease],
            "s",
            "The time since the lease of a worker was renewed: of several in the process, the longest",
        )
        meter.create_observable_up_down_counter(
            "durable_batches.batch.active", [self._unfinished], "{batch}", "Unfinished batches in the store, by state"
        )
        meter.create_observable_up_down_counter(
            "durable_batches.document.count",
            [self._documents],
            "{document}",
            "Documents of the unfinished batches in the store, by status",
        )
        meter.create_observable_gauge(
            "durable_batches.claim.lag",
            [self._claim_lag],
            "s",
            "For how long a batch in the store has had a document to claim, and none was claimed: the longest",
        )
        self._make_limits(meter)

    def _make_limits(self, meter: Meter) -> None:
        limiters: Iterable[tuple[str, str, Callable[[LimiterGauges], float]]] = (
            ("in_flight", "Calls that have a permit of a limiter", lambda gauges: gauges.in_flight),
            ("waiting", "Calls that wait for a permit of a limiter", lambda gauges: gauges.waiting),
        )
        for name, description, read in limiters:
            meter.create_observable_up_down_counter(
                f"durable_batches.limiter.{name}", [self._of_limiters(read)], "{call}", description
            )
        meter.create_observable_counter(
            "durable_batches.limiter.refused",
            [self._of_limiters(lambda gauges: gauges.refused)],
            "{call}",
            "Calls that the provider behind a limiter has refused",
        )
        meter.create_observable_gauge(
            "durable_batches.limiter.rate",
            [self._of_limiters(lambda gauges: gauges.rate, min)],
            # Of the unit 1, some exporters to Prometheus make a part of the name, and others do not.
            "{share}",
            "The share of its limits that a limiter uses: less where the provider refuses calls",
        )
        meter.create_observable_up_down_counter(
            "durable_batches.limiter.circuit",
            [self._circuits],
            "{limiter}",
            "Limiters by the state of their circuit breaker",
        )
        executors: Iterable[tuple[str, str, Callable[[ExecutorGauges], int]]] = (
            ("running", "Calls that run on an executor", lambda gauges: gauges.running),
            ("waiting", "Calls that wait for a place in an executor, or before", lambda gauges: gauges.waiting),
        )
        for name, description, count in executors:
            meter.create_observable_up_down_counter(
                f"durable_batches.executor.{name}", [self._of_executors(count)], "{call}", description
            )

    # ---- hooks -----------------------------------------------------------------------------------------------

    @contextmanager
    def submitting(self, submission: SubmissionDetails, /) -> Generator[Mapping[str, str]]:
        """See `Telemetry`."""
        attributes = {_BATCH: submission.batch_id, _WORKFLOW: submission.workflow, _VERSION: submission.version}
        with self._span(f"submit {submission.workflow}", SpanKind.PRODUCER, attributes):
            carrier: dict[str, str] = {}
            # Of the trace only: baggage may hold anything, and the batch keeps what it is given.
            self._propagator.inject(carrier)
            yield carrier

    @contextmanager
    def attempting(self, attempt: AttemptDetails, /) -> Generator[EndOfAttempt]:
        """See `Telemetry`."""
        began = self._clock.boot()
        measured: dict[str, str] = {_WORKFLOW: attempt.workflow, _OUTCOME: "released"}
        attributes: dict[str, str | int] = {
            _BATCH: attempt.batch_id,
            _DOCUMENT: attempt.document_id,
            _WORKFLOW: attempt.workflow,
            _VERSION: attempt.version,
            _RUN: attempt.run,
            _ATTEMPT: attempt.attempt,
            _WORKER: attempt.worker_id,
        }
        links = [Link(origin.get_span_context()) for origin in self._origin(attempt.origin)]
        name = f"{'attempt' if attempt.document_id else 'resolve'} {attempt.workflow}"
        with self._span(name, SpanKind.CONSUMER, attributes, context=Context(), links=links) as span:

            def ended(outcome: AttemptOutcome, error_type: str | None, /) -> None:
                measured[_OUTCOME] = outcome
                span.set_attribute(_OUTCOME, outcome)
                if error_type is not None:
                    measured[_ERROR_TYPE] = error_type
                    _fail(span, error_type)

            try:
                yield ended
            finally:
                self._attempts.record(self._clock.boot() - began, measured)

    @contextmanager
    def calling(self, call: ActivityDetails, /) -> Generator[None]:
        """See `Telemetry`."""
        began = self._clock.boot()
        measured = {_ACTIVITY: call.activity}
        around: AbstractContextManager[Span | None]
        if get_current_span().is_recording():
            attributes: dict[str, str | int] = {
                _ACTIVITY: call.activity,
                _ATTEMPT: call.attempt,
                _BATCH: call.batch_id,
                _DOCUMENT: call.document_id,
            }
            around = self._span(f"activity {call.activity}", SpanKind.INTERNAL, attributes)
        else:
            around = nullcontext()
        with around as span:
            has_begun = True
            try:
                yield
            except NotBegun:
                has_begun = False
                if span is not None:
                    span.set_attribute(_OUTCOME, "not_begun")
                raise
            except BaseException as error:
                # A cancellation is no failure of the activity.
                if not isinstance(error, asyncio.CancelledError):
                    measured[_ERROR_TYPE] = type(error).__name__
                    if span is not None:
                        _fail(span, type(error).__name__)
                raise
            finally:
                if has_begun:
                    self._activities.record(self._clock.boot() - began, measured)

    @contextmanager
    def committing(self, commit: CommitDetails, /) -> Generator[EndOfCommit]:
        """See `Telemetry`."""
        began = self._clock.boot()
        attributes: dict[str, str | int] = {_WORKER: commit.worker_id, _FACTS: commit.facts}
        measured: dict[str, str] = {}
        name = "commit" if commit.facts else "claim"
        with self._span(name, SpanKind.INTERNAL, attributes, context=Context()) as span:

            def ended(outcome: CommitOutcome, /) -> None:
                if outcome.claimed:
                    self._claimed.add(outcome.claimed)
                span.set_attribute(_EVENTS, outcome.events)
                span.set_attribute(_CLAIMED, outcome.claimed)

            try:
                yield ended
            except BaseException as error:
                if not isinstance(error, asyncio.CancelledError):
                    measured[_ERROR_TYPE] = type(error).__name__
                    _fail(span, type(error).__name__)
                raise
            finally:
                self._commits.record(self._clock.boot() - began, measured)
                self._facts.record(commit.facts)

    def batch_ended(self, batch: BatchDetails, /) -> None:
        """See `Telemetry`."""
        self._batches.record(
            (batch.ended_at - batch.began_at).total_seconds(), {_WORKFLOW: batch.workflow, _STATE: batch.state}
        )
        attributes: dict[str, str | int] = {
            _BATCH: batch.batch_id,
            _WORKFLOW: batch.workflow,
            _VERSION: batch.version,
            _RUN: batch.run,
            _STATE: batch.state,
        }
        span = self._tracer.start_span(
            f"batch {batch.workflow}",
            context=self._propagator.extract(batch.origin, Context()),
            attributes=attributes,
            start_time=_nanoseconds(batch.began_at),
        )
        if batch.state == "failed":
            span.set_status(StatusCode.ERROR)
        span.end(_nanoseconds(batch.ended_at))

    def watch(self, gauges: Callable[[], WorkerGauges | None], /) -> Callable[[], object]:
        """See `Telemetry`."""
        self._watched.append(gauges)
        return partial(self._watched.remove, gauges)

    # ---- inside ----------------------------------------------------------------------------------------------

    def _span(
        self,
        name: str,
        kind: SpanKind,
        attributes: Mapping[str, str | int],
        *,
        context: Context | None = None,
        links: list[Link] | None = None,
    ) -> AbstractContextManager[Span]:
        """A span that is current within; what it says of errors is left to the caller, because their texts are not."""
        return self._tracer.start_as_current_span(
            name,
            context=context,
            kind=kind,
            attributes=attributes,
            links=links,
            record_exception=False,
            set_status_on_exception=False,
        )

    def _origin(self, origin: Mapping[str, str]) -> Iterable[Span]:
        """The span of a submission, where there was one."""
        if origin:
            span = get_current_span(self._propagator.extract(origin, Context()))
            if span.get_span_context().is_valid:
                yield span

    def _read(self) -> Sequence[WorkerGauges]:
        """The workers of this process, on the thread of a reader."""
        return [found for gauges in list(self._watched) if (found := gauges()) is not None]

    def _summed(self, read: Callable[[WorkerGauges], int]) -> Callable[[CallbackOptions], Iterable[Observation]]:
        return lambda options: [Observation(sum(map(read, found)))] if (found := self._read()) else []

    def _shortest_lease(self, options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(min(each.lease_seconds for each in found))] if (found := self._read()) else []

    def _oldest_lease(self, options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(max(each.lease_age_seconds for each in found))] if (found := self._read()) else []

    def _workflows(self) -> Iterable[WorkflowGauges]:
        return (each for gauges in self._read() for each in gauges.workflows)

    def _unfinished(self, options: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(count, {_WORKFLOW: each.workflow, _STATE: state})
            for each in self._workflows()
            for state, count in each.batches.items()
        ]

    def _documents(self, options: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(count, {_WORKFLOW: each.workflow, _STATUS: status})
            for each in self._workflows()
            for status, count in each.documents.items()
        ]

    def _claim_lag(self, options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(each.claim_lag_seconds, {_WORKFLOW: each.workflow}) for each in self._workflows()]

    def _limiters(self) -> Sequence[LimiterGauges]:
        # Workers share them, and each of them tells of the same calls.
        found = {each.identity: each for gauges in self._read() for each in gauges.limiters}
        return list(found.values())

    def _of_limiters(
        self,
        read: Callable[[LimiterGauges], float],
        of_several: Callable[[Iterable[float]], float] = sum,
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(options: CallbackOptions) -> Iterable[Observation]:
            named: dict[str, list[float]] = {}
            for each in self._limiters():
                named.setdefault(each.limiter, []).append(read(each))
            return [Observation(of_several(values), {_LIMITER: name}) for name, values in named.items()]

        return observe

    def _circuits(self, options: CallbackOptions) -> Iterable[Observation]:
        limiters = self._limiters()
        states = {(each.limiter, state): 0 for each in limiters for state in _CIRCUITS}
        for each in limiters:
            states[each.limiter, each.circuit] += 1
        return [Observation(count, {_LIMITER: name, _CIRCUIT: state}) for (name, state), count in states.items()]

    def _of_executors(
        self, read: Callable[[ExecutorGauges], int]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(options: CallbackOptions) -> Iterable[Observation]:
            counts: Counter[str] = Counter()
            for gauges in self._read():
                for each in gauges.executors:
                    counts[each.executor] += read(each)
            return [Observation(count, {_EXECUTOR: name}) for name, count in counts.items()]

        return observe


def _fail(span: Span, error_type: str) -> None:
    # Without its text, which may have parts of a document in it.
    span.set_attribute(_ERROR_TYPE, error_type)
    span.set_status(StatusCode.ERROR)


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000) * 1_000
