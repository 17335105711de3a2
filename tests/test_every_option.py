"""Every option of every public name: what is of a wrong type, or makes no sense, is refused where it is given.

The table names each parameter of each public function, class and method. One that it does not name fails a test: a new
option comes with the values that it refuses, or with the reason why it takes all of them.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from dataclasses import is_dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from multiprocessing import get_context
from types import ModuleType
from typing import Any, Final, NamedTuple, TypeAlias, get_args, get_type_hints, is_typeddict

import pytest
from pydantic import BaseModel, ValidationError
from tests.support import STAGES, Reading, within

import durable_batches
from durable_batches import (
    AbortAll,
    BatchClient,
    BatchConfig,
    BatchEvent,
    BatchFilter,
    BatchOrchestrator,
    BatchStateMachine,
    Budget,
    ConfigurationError,
    ContinueOnFailure,
    DurableActivity,
    DurableBatchesError,
    ExtractionStage,
    MemoryStore,
    NonRetryableError,
    QuotaExhausted,
    Reason,
    RetryPolicy,
    Verdict,
    Worker,
    Workflow,
    blobs,
    current_activity,
    dependency,
    durable_activity,
    enter_stage,
    executors,
    extraction,
    flow,
    map_activity,
    run_batch,
    telemetry,
    testing,
    web,
    workflow,
)
from durable_batches.executors import process_pool
from durable_batches.extraction import MergedGraph, Resolution, SourceDocument, Summary
from durable_batches.flow import CircuitBreaker
from durable_batches.telemetry import OpenTelemetry
from durable_batches.testing import (
    Environment,
    ManualClock,
    activity_context,
    environment,
    results_of,
    survives_crashes,
)

Values: TypeAlias = tuple[object, ...]


class Anything(NamedTuple):
    """An option that takes whatever it is given."""

    why: str


async def document_by_document(document: str) -> str:
    return document


async def link(results: Any) -> int:
    return 1


def sync_link(results: Any) -> int:
    return 1


def greet(name: str) -> str:
    return name


async def link_nothing() -> int:
    return 1


class Judge:
    """Judges an error, as an object; the class itself would take the error for an argument of its own."""

    def __init__(self, error: object = None) -> None:
        self.error = error

    def __call__(self, error: BaseException) -> Verdict:
        return Verdict(kind="retry")


act = durable_activity(document_by_document)
forking = ProcessPoolExecutor(1, mp_context=get_context("fork"))
echo = workflow(STAGES, name="echo")(document_by_document)
READING: Final = Reading(done=0, total=1)
NAIVE: Final = datetime(2031, 1, 1)
NOTHING: Final = timedelta(0)
LESS: Final = timedelta(-1)

# ---- what is wrong, by what is wanted ------------------------------------------------------------------------------

TEXT: Final[Values] = (3, b"x", ["x"])
NAME: Final[Values] = (*TEXT, "", "a\0", "\ud800", "x" * 1_000)
NAMES: Final[Values] = ("x", 3, [1], {"x": 1})
DURATION: Final[Values] = (30, 0.5, "30", True)
POSITIVE: Final[Values] = (*DURATION, NOTHING, LESS)
FROM_NOTHING: Final[Values] = (*DURATION, LESS)
INTEGER: Final[Values] = ("8", 1.5, True, [8])
FROM_0: Final[Values] = (*INTEGER, -1)
FROM_1: Final[Values] = (*FROM_0, 0)
AMOUNT: Final[Values] = ("2", True, None, -1, float("nan"), float("inf"))
COST: Final[Values] = ("0.5", 0.5, True, [1], -1, Decimal("NaN"), Decimal("Infinity"), 10**15)
NUMBER: Final[Values] = ("2", True, [2])
FLAG: Final[Values] = ("no", 1, None)
FUNCTION: Final[Values] = ("f", 3, ["f"])
JUDGE: Final[Values] = (*FUNCTION, Judge)
INSTANCE: Final[Values] = ("x", 3, {})
LABELS: Final[Values] = ("x", 3, ["a"], {"a": 1}, {1: "a"})
MOMENT: Final[Values] = (3, "2031-01-01", NAIVE)
CLOCK: Final[Values] = (3, "now", ManualClock)
STORE: Final[Values] = (3, MemoryStore, None)
CONFIG: Final[Values] = ("x", {}, BatchConfig, AbortAll())
DEPENDENCIES: Final[Values] = ([], "x", {"http": object()})
PATH: Final[Values] = (3, None, ["x"])
STAGE: Final[Values] = ("reading", int, READING, 3)
NO_DOCUMENTS: Final[Values] = ("abc", b"abc", 3, None)
RETRY: Final[Values] = (3, RetryPolicy, {})
BATCH: Final[Values] = (7, None, b"b")
LIMITERS: Final[Values] = (3, "", flow.CentralRateLimiter, CircuitBreaker())

DOCUMENT: Final = Anything("any value is a document; one of another type is refused with its path")
ERROR: Final = Anything("an exception")

WORKER: Final[Mapping[str, Values]] = {
    "max_in_flight": (*FROM_0, None),
    "lease": (*POSITIVE, None),
    "drain": (*FROM_NOTHING, None),
    "max_stall": (*POSITIVE, None),
    "blocked_warning": POSITIVE,
    "long_call_warning": POSITIVE,
    "client_retry_warning": POSITIVE,
    "executors": ("cpu", 3, ["cpu"], {3: process_pool()}, {"cpu": 3}, {"cpu": forking}),
    "limiters": (
        "openai",
        3,
        ["openai"],
        {3: flow.CentralRateLimiter()},
        {"openai": 3},
        {"a": flow.CentralRateLimiter},
    ),
    "classify": (*JUDGE, None),
    "batches": ("some", 3, ["a"], None, BatchFilter),
    "max_kept_bytes": (*FROM_0, None),
    "dependencies": DEPENDENCIES,
    "signals": FLAG,
    "telemetry": (*INSTANCE, OpenTelemetry),
    "store_gauges": POSITIVE,
    "clock": CLOCK,
}
ACTIVITY: Final[Mapping[str, Values]] = {
    "stage": STAGE,
    "name": NAME,
    "version": (*NAME, None, "a:b"),
    "key": FUNCTION,
    "ignore": ("document", 3, [3], ("nothing",), None),
    "retry": (*RETRY, None),
    "classify": JUDGE,
    "timeout": POSITIVE,
    "limiter": LIMITERS,
    "estimate": (*FUNCTION, None, 7),
    "run_on": (*TEXT, ""),
}
WORKFLOW: Final[Mapping[str, Values]] = {
    "machine": (Reading, "x", None, BatchStateMachine),
    "resolver": (*FUNCTION, sync_link, link_nothing),
    "name": NAME,
    "version": (*NAME, None),
    "accepts": (*NAMES, None, ("",)),
    "resolver_retry": (*RETRY, None),
}
SUBMISSION: Final[Mapping[str, Values]] = {
    "documents": NO_DOCUMENTS,
    "config": CONFIG,
    "batch_id": NAME,
    "document_id": FUNCTION,
    "if_exists": ("ignore", 3, None),
}
CHANGES: Final[Mapping[str, Values]] = {
    "concurrency": (*FROM_1, None),
    "failure_policy": (AbortAll, "abort-all", None, 3),
    "document_timeout": (30, 0.5, True, NOTHING, LESS, ["x"]),
    "deadline": (30, 0.5, True, NOTHING, LESS, ["x"]),
    "budget": ("12.50", 3, [], {}, {"cost": 0.5}, {"tokens": 0}, Budget),
}
ACCESS: Final[Mapping[str, Mapping[str, Values | Anything]]] = {
    "cancel": {"batch_id": BATCH, "reason": (*TEXT, None)},
    "count_checkpoints": {"batch_id": BATCH},
    "resolver_results": {
        "batch_id": BATCH,
        "activity": TEXT,
        "returns": Anything("any type whose values can be recorded"),
    },
    "errors": {"batch_id": BATCH, "examples": (*FROM_0, None)},
    "events": {"batch_id": BATCH, "after": (*INTEGER, None)},
    "explain": {"batch_id": BATCH},
    "pause": {"batch_id": BATCH, "note": (*TEXT, None), "running": ("activities", 3, None)},
    "progress": {"batch_id": BATCH, "after": (*INTEGER, None)},
    "resume": {"batch_id": BATCH},
    "config": {"batch_id": BATCH},
    "snapshot": {"batch_id": BATCH},
    "spent": {"batch_id": BATCH},
    "document_spent": {"batch_id": BATCH, "position": (*INTEGER, None)},
    "state": {"batch_id": BATCH},
    "update": {"batch_id": BATCH, **CHANGES},
    "watch": {"batch_id": BATCH, "interval": (*FROM_NOTHING, None)},
}
LISTING: Final[Mapping[str, Values]] = {
    "states": (*NAMES[:3], None),
    "metadata": LABELS,
    "created_before": MOMENT,
}

Table: TypeAlias = Mapping[str, Mapping[str, "Values | Anything"]]

OPTIONS: Final[Table] = {
    "AbortAll": {"tag": Anything("the type's own")},
    "BatchClient": {"store": STORE, "read_only": FLAG, "clock": CLOCK},
    **{f"BatchClient.{name}": options for name, options in ACCESS.items()},
    "BatchClient.documents": {
        "batch_id": BATCH,
        "status": ("done", 3, ["failed"]),
        "fingerprint": TEXT,
        "payloads": FLAG,
        "after": INTEGER,
    },
    "BatchClient.list_batches": {**LISTING, "workflow": TEXT, "after": TEXT},
    "Budget": {
        "tokens": (*FROM_1, 10**15),
        "cost": (*COST[1:], 0, "", "much", "1e3", "-1", Decimal("1e-13")),
        "then": ("stop", 3, None),
    },
    "BatchConfig": {
        **CHANGES,
        "max_crashes": (*FROM_1, None),
        "quota_patience": (30, 0.5, True, NOTHING, LESS, ["x"]),
        "metadata": (*LABELS, None),
    },
    "BatchFilter": {"batch_ids": ("a", 3, [1], None), "metadata": (*LABELS, None)},
    "BatchOrchestrator": {
        "workflow": ("x", document_by_document, None),
        "store": STORE,
        "worker": (3, MemoryStore(), Worker),
        "config": CONFIG,
        "max_in_flight": (*FROM_0, None),
        "dependencies": DEPENDENCIES,
        "signals": FLAG,
    },
    **{f"BatchOrchestrator.{name}": options for name, options in ACCESS.items()},
    "BatchOrchestrator.documents": {"batch_id": BATCH, "status": ("done", 3, ["failed"])},
    "BatchOrchestrator.list_batches": LISTING,
    "BatchOrchestrator.reports": {"batch_id": BATCH},
    "BatchOrchestrator.result": {"batch_id": BATCH, "progress": FLAG},
    "BatchOrchestrator.results": {"batch_id": BATCH},
    "BatchOrchestrator.run": {**SUBMISSION, "progress": FLAG},
    "BatchOrchestrator.submit": {**SUBMISSION, "connection": ("x", 3)},
    "BatchOrchestrator.submit_sync": {**SUBMISSION, "connection": ("x", 3)},
    "BatchStateMachine": {"stages": STAGE},
    "ContinueOnFailure": {
        "max_failures": FROM_0,
        "max_failure_ratio": (*NUMBER, -0.1, 1.1, float("nan")),
        "min_failures": (*FROM_1, None),
        "tag": Anything("the type's own"),
    },
    "DurableActivity": {"fn": (*FUNCTION, act), **ACTIVITY, "namespace": Anything("of the decorator")},
    "DurableActivity.override": {"fake": (*FUNCTION, None)},
    "DurableActivity.with_options": {
        "stage": STAGE,
        "key": (*TEXT, ""),
        "retry": RETRY,
        "timeout": POSITIVE,
        "limiter": LIMITERS,
        "run_on": (*TEXT, ""),
    },
    "Environment.advance": {"by": (*FROM_NOTHING, None)},
    "Environment.finished": {"batch_id": BATCH},
    "MemoryStore": {"clock": CLOCK},
    "Overloaded": {"after": (*DURATION, None)},
    "PostgresStore": {
        "url": (3, None, "", "mysql://localhost/x", "x"),
        "schema": (3, None, "", "a\0", "pg_mine", "x" * 1_000),
        "statement_timeout": (*POSITIVE, None),
        "lock_timeout": (*POSITIVE, None),
        "clock": CLOCK,
    },
    "QuotaExhausted": {"message": Anything("any object has a text"), "retry_after": DURATION},
    "Results.pages": {"size": (*FROM_1, None)},
    "RetryFailed": {
        "max_attempts": (*FROM_1, None),
        "backoff": (*FROM_NOTHING, None, timedelta(days=4000)),
        "then": (AbortAll, "abort-all", None, 3),
        "tag": Anything("the type's own"),
    },
    "RetryLater": {"after": (*DURATION, None)},
    "RetryPolicy": {
        "max_attempts": (*FROM_1, None),
        "initial": (*FROM_NOTHING, None, timedelta(days=4000)),
        "factor": (*NUMBER, None, 0.5, float("inf"), float("nan")),
        "maximum": (*FROM_NOTHING, None, timedelta(days=4000)),
        "jitter": (*NUMBER, None, -0.1, 1.1, float("nan")),
        "non_retryable": (LookupError, "LookupError", ("LookupError",), [LookupError], (LookupError(),), None),
        "retryable": JUDGE,
    },
    "SQLiteStore": {"path": (*PATH, "", ":memory:"), "clock": CLOCK},
    "Verdict": {"kind": ("no", 3, None), "retry_after": DURATION, "note": (*TEXT, None)},
    "Worker": {"store": STORE, **WORKER},
    "Workflow": {"fn": (*FUNCTION, sync_link), **WORKFLOW, "namespace": Anything("of the decorator")},
    "default_classifier": {"error": ERROR},
    "dependency": {"provider": (*FUNCTION, None, greet)},
    "durable_activity": {"fn": (*FUNCTION, act), **ACTIVITY},
    "enter_stage": {"stage": (*STAGE, None)},
    "map_activity": {
        "activity": (*FUNCTION, None),
        "items": (3, "abc", None),
        "concurrency": (*FROM_1, None),
    },
    "run_batch": {
        "workflow": ("x", document_by_document, None),
        "store": STORE,
        "documents": NO_DOCUMENTS,
        "batch_id": NAME,
        "config": CONFIG,
        "document_id": FUNCTION,
        "max_in_flight": (*FROM_1, None),
        "drain": (*FROM_NOTHING, None),
        "dependencies": DEPENDENCIES,
        "progress": FLAG,
    },
    "workflow": WORKFLOW,
    # durable_batches.testing
    "ActivityContext.observe": {"answer": Anything("whatever a client answers with, or raises")},
    "ActivityContext.settle": {"tokens": (*FROM_0, float("nan"), None)},
    "Amount": {"tokens": (*FROM_0, float("nan"), None), "cost": (*COST, None)},
    "ActivityContext.spend": {
        "tokens": (*FROM_0, float("nan")),
        "cost": COST,
        "input_tokens": (*FROM_0, None),
        "output_tokens": (*FROM_0, None),
        "model": (*TEXT, "a\0", "\ud800", "x" * 1_000),
    },
    "ActivityContext.report": {"current": (*INTEGER, None), "total": (*INTEGER, None)},
    "EffectsLog": {"path": PATH, "process": (*TEXT, None)},
    "HistoryChecker": {
        "effects": INSTANCE,
        "run_of": FUNCTION,
        "max_attempts": ("x", 3, []),
        "calls_at_once": INTEGER,
    },
    "ManualClock": {"start": (*MOMENT, None), "jitter": (*NUMBER, None)},
    "ManualClock.advance": {"seconds": (*NUMBER, None, -1, timedelta(1))},
    "ManualClock.jump": {"seconds": (*NUMBER, None, timedelta(1))},
    "activity_context": {
        "batch_id": (*TEXT, None),
        "document_id": (*TEXT, None),
        "attempt": (*INTEGER, None),
        "idempotency_key": (*TEXT, None),
        "dependencies": DEPENDENCIES,
        "clock": CLOCK,
    },
    "environment": {
        "workflow": ("x", document_by_document, None),
        "store": (3, "x", MemoryStore()),
        "clock": (3, "x", ManualClock),
        "config": CONFIG,
        "max_in_flight": (*FROM_0, None),
        "dependencies": DEPENDENCIES,
        "patience": (*POSITIVE, None),
    },
    "execution_context": {
        "batch_id": (*TEXT, None),
        "document_id": (*TEXT, None),
        "ordinal": (*INTEGER, None),
        "attempt": (*INTEGER, None),
        "run": (*INTEGER, None),
        "metadata": LABELS,
        "dependencies": DEPENDENCIES,
    },
    "results_of": {"values": (3, "abc", None, {1}), "failures": (3, None, {1}), "batch_id": (*TEXT, None)},
    "survives_crashes": {
        "workflow": ("x", document_by_document, None),
        "documents": NO_DOCUMENTS,
        "store": (3, "x", MemoryStore()),
        "config": CONFIG,
        "document_id": FUNCTION,
        "max_in_flight": (*FROM_0, None),
        "dependencies": DEPENDENCIES,
        "prepare": FUNCTION,
        "comparing": FUNCTION,
        "comparing_resolution": FUNCTION,
        "limit": (*FROM_1, None),
        "patience": (*POSITIVE, None),
    },
    # durable_batches.extraction
    "GraphBuilder": {"resolution": (*INSTANCE, None)},
    "GraphBuilder.add": {"graph": (*INSTANCE, None)},
    "RuleExtractor": {"vocabulary": ("x", 3, ["x"])},
    "Vocabulary": {"packages": ("x", 3, None), "modules": (*LABELS, None)},
    "canonical_package_name": {"name": (*TEXT, None)},
    "chunk_document": {"document": (*INSTANCE, None), "size": (*FROM_1, None)},
    "extraction_workflow": {"extractor": (*INSTANCE, None)},
    "link_documents": {"results": Anything("the engine's own")},
    "package_document": {"metadata": (*TEXT, None)},
    "text_files": {"path": PATH, "max_bytes": (*INTEGER, None)},
    "write_graph": {"graph": (*INSTANCE, None), "path": PATH},
    # durable_batches.flow
    "CentralRateLimiter": {
        "name": (*NAME, None),
        "requests_per_minute": (*FROM_1, float("nan")),
        "tokens_per_minute": (*FROM_1, float("nan")),
        "max_concurrent": (*FROM_1, float("nan")),
        "breaker": (*INSTANCE, CircuitBreaker),
        "max_wait": FROM_NOTHING,
        "returns_unused": FLAG,
        "shared": NAME,
    },
    "CentralRateLimiter.force": {"breaker": ("half-open", 3, None)},
    "CentralRateLimiter.is_failure": {"error": ERROR},
    "CentralRateLimiter.permit": {
        "tokens": (*FROM_0, float("nan"), 1_001, None),
        "wait": FLAG,
        "max_wait": FROM_NOTHING,
    },
    "CircuitBreaker": {
        "failure_threshold": (*FROM_1, None),
        "recovery_timeout": (*POSITIVE, None),
        "probes": (*FROM_1, None),
        "success_threshold": (*FROM_1, None),
        "counts": FUNCTION,
    },
    "Permit.observe": {"answer": Anything("whatever a client answers with, or raises")},
    "Permit.refused": {"retry_after": DURATION},
    "Permit.settle": {"tokens": (*FROM_0, float("nan"), None)},
    # durable_batches.blobs
    "BlobStorage": {"url": (*TEXT, "", None, "nosuch://bucket"), "options": ("x", 3, ["x"])},
    "BlobStorage.write": {"data": ("x", 3, None, bytearray(b"x"))},
    "BlobStorage.read": {"blob": ("x", 3, None, blobs.Blob)},
    "BlobStorage.remove": {"batch_id": BATCH, "keep": ("x", 3, None, [3])},
    # durable_batches.executors
    "process_pool": {
        "processes": FROM_1,
        "calls_per_process": FROM_1,
        "start_method": ("fork", 3, None),
    },
    "DaskExecutor": {
        "address": (*TEXT, "", None),
        "resources": ("GPU", 3, ["GPU"], {"GPU": "1"}, {1: 1}, {"GPU": 0}, {"GPU": float("nan")}),
    },
    "RayExecutor": {"address": (*TEXT, ""), "num_cpus": AMOUNT, "num_gpus": AMOUNT},
    # durable_batches.telemetry
    "OpenTelemetry": {"tracer_provider": INSTANCE, "meter_provider": INSTANCE},
    # durable_batches.web
    "Access": {
        "actions": ("read", 3, ["write"], None),
        "metadata": (*LABELS, None),
        "principal": (*TEXT, None),
    },
    **{
        name: {"usage": Anything("whatever a client says of its tokens"), "model": TEXT, "provider": TEXT}
        for name in ("price_of", "spend_usage")
    },
    "create_app": {
        "batches": (3, MemoryStore(), None),
        "authorize": FUNCTION,
        "allow_anonymous": (*FLAG, False),
        "allowed_origins": ("https://example.org", 3, [1], None),
        "max_clients": (*FROM_1, None),
        "keep_alive": (*POSITIVE, None),
        "page": FLAG,
    },
    "event_json": {"event": Anything("an event of the library's")},
    "event_of": {"text": Anything("what is no event is refused as such: PayloadError")},
}

# ---- what is left out, and why -------------------------------------------------------------------------------------

MADE_BY_THE_LIBRARY: Final = frozenset(
    """ActivityDetails ActivityReport AttemptDetails BatchDetails BatchId BatchResult BatchSnapshot Cancelled
    Blob CommitDetails CommitOutcome Completed Counts CrashReport DocumentCancelled DocumentFailure DocumentInfo
    DocumentSucceeded Effect Environment ErrorDigest ErrorGroup ExecutionContext ExecutorGauges Explanation
    Failed HistoryStats HistoryViolation LimiterGauges LimiterMetrics LongCalls ModelSpending NotBegun Pause Pending
    ProcessPool RawDocument RecordingActivityContext Resolving RunStats Spending Stage StageCount SubmissionDetails
    WebApp WorkerGauges WorkerHealth WorkflowGauges""".split()
)
"""Values that users get, and do not make. Beside them: errors, events, stages and reasons."""

OF_THE_LIBRARY: Final[Mapping[str, str]] = {
    "BatchClient": "documents_in_pages event_blocks",
    "DaskExecutor": "connect disconnect of shutdown stop submit was_away",
    "EffectsLog": "activity write",
    "HistoryChecker": "acknowledged cancel_answered check streamed verify",
    "ManualClock": "call_later is_sleeping sleep",
    "MemoryStore": "*",
    "OpenTelemetry": "*",
    "PostgresStore": "*",
    "SQLiteStore": "*",
    "Store": "*",
    "Telemetry": "*",
    "StoreConformance": "*",
    "Worker": "*",
    "Workflow": "stage_index",
    "RayExecutor": "connect disconnect shutdown stop submit was_away",
    "RetryPolicy": "*",
    "BatchStateMachine": "can_transition index stage",
    "RuleExtractor": "*",
    "Extractor": "*",
    "Limiter": "*",  # the same as `CentralRateLimiter.permit`
    "Vocabulary": "package_of_module spelling",
    "RecordingActivityContext": "observe report settle spend",  # the same as those of `ActivityContext`
}
"""Methods that the library calls: of stores, clocks and workers, or with what it has made itself."""

MODULES: Final[tuple[ModuleType, ...]] = (
    durable_batches,
    blobs,
    executors,
    testing,
    extraction,
    flow,
    telemetry,
    web,
)


def public() -> Iterator[tuple[str, Any]]:
    for module in MODULES:
        for name in module.__all__:
            yield name, getattr(module, name)
    for name in durable_batches.stores.__all__:
        if name.endswith("Store"):
            yield name, getattr(durable_batches.stores, name)


def is_made_by_the_library(name: str, kind: type[Any]) -> bool:
    if name in OPTIONS:
        return False
    return (
        name in MADE_BY_THE_LIBRARY
        or (issubclass(kind, DurableBatchesError) and kind is not QuotaExhausted)
        or kind in (*get_args(BatchEvent), *get_args(Reason), *get_args(ExtractionStage))
        or getattr(kind, "_is_protocol", False)
        or name == "StoreConformance"
        or (issubclass(kind, BaseModel) and kind.__module__.startswith(extraction.__name__))  # validated by pydantic
    )


def parameters(function: Callable[..., Any]) -> list[str]:
    if inspect.isclass(function) and issubclass(function, BaseModel):
        return list(function.model_fields)
    named = inspect.signature(function).parameters.values()
    return [option for each in named if each.name not in ("self", "cls") for option in options_of(function, each)]


def options_of(function: Callable[..., Any], parameter: inspect.Parameter) -> list[str]:
    """A parameter by its name, or the options that `**options: Unpack[...]` stands for."""
    if not str(parameter.annotation).startswith("Unpack["):
        return [parameter.name]
    (options,) = get_args(get_type_hints(function)[parameter.name])
    return list(options.__annotations__)


def methods(name: str, kind: type[Any]) -> Iterator[tuple[str, list[str]]]:
    left_out = OF_THE_LIBRARY.get(name, "").split()
    if left_out == ["*"] or is_dataclass(kind) or issubclass(kind, BaseException | BaseModel | tuple):
        return
    for method, function in inspect.getmembers(kind, inspect.isroutine):
        if method.startswith("_") or method in left_out or hasattr(function, "__deprecated__"):
            continue
        if function.__module__.startswith(durable_batches.__name__) and parameters(function):
            yield f"{name}.{method}", parameters(function)


def signatures() -> dict[str, list[str]]:
    """All public functions, classes that users make, and methods that they call, with their parameters."""
    found: dict[str, list[str]] = {}
    for name, thing in public():
        if is_typeddict(thing):
            continue  # options that are listed where they are given
        if inspect.isclass(thing):
            if not is_made_by_the_library(name, thing) and thing is not NonRetryableError:  # as every exception is
                found[name] = parameters(thing)
            found.update(methods(name, thing))
        elif inspect.isfunction(thing) and parameters(thing):
            found[name] = parameters(thing)
    return found


def test_the_table_has_every_option_of_every_public_name() -> None:
    missing = {
        name: options
        for name, parameters in signatures().items()
        if (options := [each for each in parameters if each not in OPTIONS.get(name, {})])
    }
    assert missing == {}, "what do these refuse?"


def test_the_table_has_nothing_that_is_gone() -> None:
    there = signatures()
    gone = [
        f"{name}({option})"
        for name, options in OPTIONS.items()
        for option in options
        if option not in there.get(name, [])
    ]
    assert gone == []
    assert set(MADE_BY_THE_LIBRARY) <= {name for name, _ in public()}


# ---- calling it ----------------------------------------------------------------------------------------------------


class Scene(NamedTuple):
    """What methods are called on; there is one batch, which has ended."""

    batches: BatchOrchestrator[str, str, Any, None]
    client: BatchClient
    env: Environment[str, str, Any, None]


@asynccontextmanager
async def a_scene() -> AsyncGenerator[Scene]:
    async with environment(echo) as env, BatchClient(env.store) as client:
        await env.batches.submit(["x"], batch_id="b", document_id=lambda _: "x")
        await env.finished("b")
        yield Scene(env.batches, client, env)


def unchecked(call: Any, options: Mapping[str, Any], **required: Any) -> Any:
    """Call what its types would not let be called so."""
    return call(**{**required, **options})


def activity(**options: Any) -> object:
    make: Any = durable_activity
    return make(options["fn"]) if "fn" in options else make(**options)(document_by_document)


def a_workflow(**options: Any) -> None:
    unchecked(workflow, options, machine=STAGES)(document_by_document).check()


def workflow_by_its_class(**options: Any) -> None:
    unchecked(Workflow, options, fn=document_by_document, machine=STAGES).check()


def orchestrator(**options: Any) -> object:
    store = {} if "worker" in options else {"store": MemoryStore()}
    return unchecked(BatchOrchestrator, options, workflow=echo, **store)


def an_app(**options: Any) -> object:
    allowed = {} if "authorize" in options else {"allow_anonymous": True}
    return unchecked(web.create_app, options, batches=BatchClient(MemoryStore()), **allowed)


def a_machine(stages: Any) -> object:
    return BatchStateMachine(stages)


def a_dependency(provider: Any) -> object:
    return dependency(provider)


def a_submission(call: Callable[..., object]) -> Callable[..., object]:
    return partial(call, documents=["x"])


def in_a_thread(call: Callable[..., object]) -> Callable[..., object]:
    """What refuses an event loop, or needs none."""
    return partial(asyncio.to_thread, call)


def reporting(**options: Any) -> None:
    with activity_context():
        unchecked(current_activity().report, options, current=1, total=1)


def settling(**options: Any) -> None:
    with activity_context():
        unchecked(current_activity().settle, options)


def spending(**options: Any) -> None:
    with activity_context():
        unchecked(current_activity().spend, options)


def spending_by_usage(**options: Any) -> None:
    with activity_context():
        unchecked(flow.spend_usage, options, usage={}, model="a")


async def reporting_in_a_batch(**options: Any) -> None:
    @durable_activity(retry=RetryPolicy(max_attempts=1))
    async def report() -> None:
        try:
            unchecked(current_activity().report, options, current=1, total=1)
        except ConfigurationError as error:
            refused.append(error)

    @workflow(STAGES)
    async def run(document: str) -> None:
        await report()

    refused: list[ConfigurationError] = []
    async with environment(run) as env:
        await env.finished(await env.batches.submit(["x"]))
    (error,) = refused
    raise error


GRAPH: Final = MergedGraph(documents=[], nodes=[], edges=[])
RESOLUTION: Final = Resolution.model_construct(people=[], links=[], summary=Summary.model_construct())
SOURCE: Final = SourceDocument(id="a", title="a", text="a")

LIMITER: Final = flow.CentralRateLimiter(tokens_per_minute=1_000)


def with_a_permit(method: str) -> Callable[..., object]:
    async def call(**options: Any) -> None:
        async with LIMITER.permit() as permit:
            unchecked(getattr(permit, method), options)

    return call


CALLS: Final[Mapping[str, Callable[[Scene], Callable[..., object]]]] = {
    "Access": lambda _: partial(web.Access, actions=["read"]),
    "ActivityContext.report": lambda _: reporting,
    "ActivityContext.settle": lambda _: settling,
    "ActivityContext.spend": lambda _: spending,
    "BatchClient": lambda _: partial(BatchClient, store=MemoryStore()),
    "BatchFilter": lambda _: partial(BatchFilter, batch_ids=["a"], metadata={"a": "b"}),
    "BatchOrchestrator": lambda _: orchestrator,
    "BatchOrchestrator.run": lambda scene: a_submission(scene.batches.run),
    "BatchOrchestrator.submit": lambda scene: a_submission(scene.batches.submit),
    "BatchOrchestrator.submit_sync": lambda _: in_a_thread(
        a_submission(BatchOrchestrator(echo, store=MemoryStore()).submit_sync)
    ),
    "BatchStateMachine": lambda _: a_machine,
    "DaskExecutor": lambda _: partial(executors.DaskExecutor, address="tcp://127.0.0.1:8786"),
    "DurableActivity": lambda _: partial(DurableActivity[Any, Any], fn=document_by_document),
    "DurableActivity.override": lambda _: act.override,
    "DurableActivity.with_options": lambda _: act.with_options,
    "Environment.advance": lambda scene: scene.env.advance,
    "Environment.finished": lambda scene: scene.env.finished,
    "EffectsLog": lambda _: partial(testing.EffectsLog, path="effects.log"),
    "GraphBuilder.add": lambda _: extraction.GraphBuilder(RESOLUTION).add,
    "ManualClock.advance": lambda _: ManualClock().advance,
    "ManualClock.jump": lambda _: ManualClock().jump,
    "PostgresStore": lambda _: partial(durable_batches.PostgresStore, url="postgresql://localhost/x"),
    "BlobStorage": lambda _: partial(blobs.BlobStorage, url="memory://x"),
    "BlobStorage.write": lambda _: blobs.BlobStorage("memory://x").write,
    "BlobStorage.read": lambda _: blobs.BlobStorage("memory://x").read,
    "BlobStorage.remove": lambda _: partial(blobs.BlobStorage("memory://x").remove, batch_id="b"),
    "CentralRateLimiter.force": lambda _: LIMITER.force,
    "CentralRateLimiter.permit": lambda _: LIMITER.permit,
    "Permit.refused": lambda _: with_a_permit("refused"),
    "Permit.settle": lambda _: with_a_permit("settle"),
    "Results.pages": lambda _: results_of([1]).pages,
    "SQLiteStore": lambda _: partial(durable_batches.SQLiteStore, path="batches.db"),
    "Verdict": lambda _: partial(Verdict, kind="retry"),
    "Worker": lambda _: partial(Worker, store=MemoryStore()),
    "Workflow": lambda _: workflow_by_its_class,
    "chunk_document": lambda _: partial(extraction.chunk_document, document=SOURCE),
    "create_app": lambda _: an_app,
    "price_of": lambda _: partial(flow.price_of, usage={}, model="a"),
    "spend_usage": lambda _: spending_by_usage,
    "dependency": lambda _: a_dependency,
    "durable_activity": lambda _: activity,
    "enter_stage": lambda _: enter_stage,
    "environment": lambda _: partial(environment, workflow=echo),
    "map_activity": lambda _: partial(map_activity, activity=act, items=["x"]),
    "results_of": lambda _: partial(results_of, values=[1]),
    "run_batch": lambda _: in_a_thread(
        partial(run_batch, workflow=echo, documents=["x"], store=MemoryStore(), progress=False)
    ),
    "survives_crashes": lambda _: partial(survives_crashes, workflow=echo, documents=["x"]),
    "text_files": lambda _: partial(extraction.text_files, path="."),
    "workflow": lambda _: a_workflow,
    "write_graph": lambda _: partial(extraction.write_graph, graph=GRAPH, path="graph.json"),
}


ALSO: Final[Mapping[str, Mapping[str, object]]] = {
    "update": {"concurrency": 2},
    "document_spent": {"position": 0},
    "resolver_results": {"activity": "page", "returns": str},
}
"""What methods need beside the option that is wrong."""


def call_of(name: str, scene: Scene) -> Callable[..., object]:
    if name in CALLS:
        return CALLS[name](scene)
    owner, _, method = name.partition(".")
    on = {"BatchOrchestrator": scene.batches, "BatchClient": scene.client}
    if method:
        call: Callable[..., object] = getattr(on[owner], method)
        given = {"batch_id": "b"} if "batch_id" in OPTIONS[name] else {}
        return partial(call, **given, **ALSO.get(method, {}))
    made: Callable[..., object] = dict(public())[name]
    return made


async def ended(given: object) -> object:
    """Await, enter or begin to iterate what was called: from then on it is in use."""
    if inspect.isawaitable(given):
        return await given
    if isinstance(given, AbstractAsyncContextManager):
        async with given:
            return None
    if isinstance(given, AbstractContextManager):
        with given:
            return None
    if inspect.isasyncgen(given):
        return await anext(given, None)
    if inspect.isgenerator(given):
        return next(given, None)
    return given


SAID: Final[Mapping[tuple[str, str], str]] = {
    ("BatchFilter", "metadata"): "each id, name and value of a BatchFilter|metadata",
    ("BatchFilter", "batch_ids"): "each id, name and value of a BatchFilter|batch_ids",
    ("Access", "actions"): "action",
    ("BatchClient.list_batches", "states"): "state",
    ("BatchOrchestrator.list_batches", "states"): "state",
    ("Overloaded", "after"): "RetryLater takes",
    ("RetryLater", "after"): "RetryLater takes",
    ("Results.pages", "size"): "page",
    ("Workflow", "accepts"): "accepts|version",
    ("dependency", "provider"): "dependency() takes|provider",
    ("workflow", "accepts"): "accepts|version",
    ("BatchStateMachine", "stages"): "Stage",
    ("DurableActivity", "fn"): "activity",
    ("Environment.advance", "by"): "time",
    ("ManualClock.advance", "seconds"): "advance",
    ("PostgresStore", "url"): "DSN|postgresql",
    ("SQLiteStore", "path"): "file|path",
    ("durable_activity", "fn"): "activity",
    ("extraction_workflow", "extractor"): "extractor",
    ("Workflow", "fn"): "workflow",
    ("chunk_document", "size"): "size|chunk",
}
"""Other words by which messages name an option."""

CASES: Final = [
    pytest.param(name, option, values, id=f"{name}-{option}")
    for name, options in OPTIONS.items()
    for option, values in options.items()
    if not isinstance(values, Anything)
]


@pytest.fixture(scope="module")
def scene() -> Iterator[tuple[asyncio.Runner, Scene]]:
    """One scene for all: what is refused changes nothing."""
    with asyncio.Runner() as runner:
        opened = a_scene()
        yield runner, runner.run(opened.__aenter__())
        runner.run(opened.__aexit__(None, None, None))


@pytest.mark.parametrize(("name", "option", "values"), CASES)
def test_what_makes_no_sense_is_refused_where_it_is_given(
    name: str, option: str, values: Sequence[object], scene: tuple[asyncio.Runner, Scene]
) -> None:
    for value in values:
        check_refusal(name, option, value, scene)


def check_refusal(name: str, option: str, value: object, scene: tuple[asyncio.Runner, Scene]) -> None:
    runner, made = scene

    async def attempt() -> None:
        await within(ended_by(call_of(name, made)))

    async def ended_by(call: Callable[..., object]) -> object:
        return await ended(call(**{option: value}))

    with pytest.raises((ConfigurationError, ValidationError)) as caught:
        runner.run(attempt())
    is_config = name in ("BatchConfig", "Budget") or (name.endswith(".update") and option != "batch_id")
    assert isinstance(caught.value, ValidationError) == is_config, repr(caught.value)
    words = SAID.get((name, option), option).split("|")
    assert any(word.lower() in str(caught.value).lower() for word in words), str(caught.value)


@pytest.mark.parametrize("option", ["current", "total"])
async def test_a_report_in_a_batch_is_refused_as_in_a_unit_test(option: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{option} must be an int, not a str"):
        await reporting_in_a_batch(**{option: "1"})


def test_an_option_that_is_out_of_range_is_a_value_error_as_it_was() -> None:
    with pytest.raises(ValueError, match="max_attempts must be 1 or more") as caught:
        RetryPolicy(max_attempts=0)
    assert isinstance(caught.value, ConfigurationError)
    with pytest.raises(ValueError, match="max_failures must be 0 or more"):
        ContinueOnFailure(max_failures=-1)
    assert datetime(2031, 1, 1, tzinfo=UTC) > NAIVE.replace(tzinfo=UTC) - timedelta(1)
