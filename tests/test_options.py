"""Options of a wrong type are refused where they are given, by a sentence that names the option and what to give."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError
from tests.support import STAGES, Reading

from durable_batches import (
    AbortAll,
    ActivityDefinitionError,
    BatchConfig,
    BatchOrchestrator,
    ConfigurationError,
    ContinueOnFailure,
    MachineError,
    MemoryStore,
    PostgresStore,
    RetryFailed,
    RetryLater,
    RetryPolicy,
    SQLiteStore,
    Worker,
    durable_activity,
    map_activity,
    run_batch,
    workflow,
)
from durable_batches.options import check_integer
from durable_batches.testing import ManualClock, environment, survives_crashes


@durable_activity
async def act(text: str) -> str:
    return text


@workflow(STAGES)
async def echo(document: str) -> str:
    return document


async def document_by_document(document: str) -> str:
    return document


def activity(**options: Any) -> object:
    return durable_activity(**options)(document_by_document)


def a_workflow(**options: Any) -> object:
    return workflow(STAGES, **options)(document_by_document)


def worker(**options: Any) -> object:
    return Worker(MemoryStore(), **options)


def orchestrator(**options: Any) -> object:
    return BatchOrchestrator(echo, store=MemoryStore(), **options)


def postgres(**options: Any) -> object:
    return PostgresStore("postgresql://localhost/x", **options)


def script(**options: Any) -> object:
    return run_batch(echo, ["x"], store=MemoryStore(), **options)


DURATIONS: list[tuple[Callable[..., Any], str]] = [
    (worker, "lease"),
    (worker, "drain"),
    (worker, "max_stall"),
    (worker, "blocked_warning"),
    (worker, "long_call_warning"),
    (worker, "client_retry_warning"),
    (worker, "store_gauges"),
    (postgres, "statement_timeout"),
    (postgres, "lock_timeout"),
    (script, "drain"),
    (activity, "timeout"),
    (act.with_options, "timeout"),
    (RetryPolicy, "initial"),
    (RetryPolicy, "maximum"),
    (RetryFailed, "backoff"),
    (BatchConfig, "deadline"),
    (BatchConfig, "document_timeout"),
]


@pytest.mark.parametrize(("make", "option"), DURATIONS, ids=lambda each: getattr(each, "__name__", each))
@pytest.mark.parametrize("number", [30, 0.5], ids=str)
def test_a_number_where_a_duration_belongs_is_refused(make: Callable[..., Any], option: str, number: float) -> None:
    advice = re.escape(f"must be a timedelta, not a number; give a timedelta: timedelta(seconds={number})")
    with pytest.raises((ConfigurationError, ValidationError), match=rf"{option}\b[\s\S]* {advice}") as caught:
        make(**{option: number})
    assert isinstance(caught.value, ValidationError) == (make is BatchConfig)


async def test_a_number_where_a_duration_belongs_is_refused_in_calls() -> None:
    unchecked: Any
    async with environment(echo) as env:
        unchecked = env
        with pytest.raises(ConfigurationError, match=r"give a timedelta: timedelta\(seconds=5\)"):
            await unchecked.advance(5)
        unchecked = env.batches
        batch_id = await env.batches.submit([])
        with pytest.raises(ConfigurationError, match=r"interval must be a timedelta, .*timedelta\(seconds=1\)"):
            await anext(unchecked.watch(batch_id, interval=1))
        with pytest.raises(ConfigurationError, match="after must be an int, not a str"):
            await anext(unchecked.progress(batch_id, after="1"))
    unchecked = environment
    with pytest.raises(ConfigurationError, match="patience must be a timedelta"):
        async with unchecked(echo, patience=1):
            pass
    unchecked = survives_crashes
    with pytest.raises(ConfigurationError, match="patience must be a timedelta"):
        await unchecked(echo, [], patience=1)
    with pytest.raises(ConfigurationError, match="limit must be an int"):
        await unchecked(echo, [], limit="6")
    unchecked = RetryLater
    with pytest.raises(ConfigurationError, match=r"RetryLater takes a timedelta, not 'int'"):
        unchecked(30)
    unchecked = ManualClock()
    with pytest.raises(ConfigurationError, match="the seconds to advance by must be a number, not a timedelta"):
        unchecked.advance(timedelta(seconds=1))


WRONG: list[tuple[Callable[..., Any], str, object, str]] = [
    (worker, "max_in_flight", "8", "must be an int, not a str"),
    (worker, "max_in_flight", True, "must be an int, not a bool"),
    (worker, "max_in_flight", None, "must be an int, not None"),
    (worker, "lease", "30", "must be a timedelta, not a str"),
    (worker, "lease", None, "must be a timedelta, not None"),
    (worker, "lease", True, "must be a timedelta, not a bool"),
    (worker, "dependencies", [], "must be a Mapping, not a list"),
    (orchestrator, "max_in_flight", 1.5, "must be an int, not a float"),
    (orchestrator, "config", {}, "must be a BatchConfig, not a dict"),
    (orchestrator, "config", BatchConfig, "the class BatchConfig; add the parentheses"),
    (script, "max_in_flight", "8", "must be an int, not a str"),
    (script, "config", {}, "must be a BatchConfig, not a dict"),
    (script, "document_id", "id", "must be a function, not a str"),
    (script, "progress", "no", "must be True or False, not a str"),
    (SQLiteStore, "path", 3, "must be a str or a PathLike, not an int"),
    (activity, "retry", 3, "must be a RetryPolicy, not an int"),
    (activity, "retry", RetryPolicy, "the class RetryPolicy; add the parentheses"),
    (activity, "stage", "reading", "must be a subclass of Stage, not a str"),
    (activity, "stage", Reading(done=0, total=1), "must be a subclass of Stage, not a Reading"),
    (activity, "timeout", "30", "must be a timedelta, not a str"),
    (activity, "key", "id", "must be a function, not a str"),
    (activity, "ignore", "document", "give a tuple: ('document',)"),
    (activity, "name", 3, "must be a str, not 'int'"),
    (activity, "version", 2, "must be a str, not 'int'"),
    (act.with_options, "retry", 0, "must be a RetryPolicy, not an int"),
    (act.with_options, "stage", "reading", "must be a subclass of Stage"),
    (act.with_options, "key", 7, "must be a str, not an int"),
    (a_workflow, "resolver", "link", "must be a function, not a str"),
    (a_workflow, "resolver_retry", 3, "must be a RetryPolicy, not an int"),
    (a_workflow, "accepts", "12", "give a tuple: ('12',)"),
    (a_workflow, "version", 2, "must be a str, not 'int'"),
    (activity, "classify", 3, "must be a function, not an int"),
    (RetryPolicy, "max_attempts", "3", "must be an int, not a str"),
    (RetryPolicy, "max_attempts", 2.5, "must be an int, not a float"),
    (RetryPolicy, "factor", "2", "must be a number, not a str"),
    (RetryPolicy, "jitter", None, "must be a number, not None"),
    (RetryPolicy, "non_retryable", LookupError, "give a tuple: (LookupError,)"),
    (RetryPolicy, "non_retryable", ("LookupError",), "must be a tuple of subclasses of BaseException"),
    (RetryPolicy, "retryable", True, "must be a function, not a bool"),
    (RetryFailed, "max_attempts", True, "must be an int, not a bool"),
    (RetryFailed, "backoff", None, "must be a timedelta, not None"),
    (RetryFailed, "then", AbortAll, "the class AbortAll; add the parentheses"),
    (ContinueOnFailure, "max_failures", "3", "must be an int, not a str"),
    (ContinueOnFailure, "max_failures", 0.5, "must be an int, not a float"),
    (ContinueOnFailure, "max_failure_ratio", "0.5", "must be a number, not a str"),
    (ContinueOnFailure, "min_failures", None, "must be an int, not None"),
]


@pytest.mark.parametrize(
    ("make", "option", "value", "says"),
    [pytest.param(*each, id=f"{each[0].__name__}-{each[1]}-{each[2]!r:.40}") for each in WRONG],
)
def test_an_option_of_a_wrong_type_is_refused_where_it_is_given(
    make: Callable[..., Any], option: str, value: object, says: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(says)) as caught:
        make(**{option: value})
    assert option in str(caught.value)
    if make in (activity, a_workflow, act.with_options):
        assert type(caught.value) is (MachineError if option == "stage" else ActivityDefinitionError)
    else:
        assert type(caught.value) is ConfigurationError


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": True},
        {"concurrency": "8"},
        {"concurrency": 8.5},
        {"max_crashes": True},
        {"failure_policy": AbortAll},
        {"failure_policy": "abort-all"},
        {"failure_policy": None},
        {"metadata": {"tenant": 7}},
        {"metadata": ["tenant"]},
        {"deadline": True},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_batch_s_configuration_is_refused_by_pydantic(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        BatchConfig(**options)


def test_a_recorded_configuration_has_its_durations_as_seconds() -> None:
    config = BatchConfig(deadline=timedelta(minutes=1), document_timeout=timedelta(seconds=0.5))
    assert BatchConfig.model_validate_json(config.model_dump_json()) == config
    assert BatchConfig.model_validate_json('{"deadline": 60}').deadline == timedelta(minutes=1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"config": {}}, "config must be a BatchConfig, not a dict"),
        ({"document_id": "id"}, "document_id must be a function, not a str"),
        ({"if_exists": "ignore"}, "if_exists must be 'attach' or 'error', not 'ignore'"),
        ({"batch_id": 7}, "batch_id must be a str, not 'int'"),
    ],
    ids=str,
)
async def test_a_submission_s_options_are_checked_before_anything_is_stored(options: dict[str, Any], says: str) -> None:
    async with BatchOrchestrator(echo, store=MemoryStore()) as batches:
        unchecked: Any = batches
        for call in (unchecked.submit, unchecked.run):
            with pytest.raises(ConfigurationError, match=re.escape(says)):
                await call(["x"], **options)
        assert [batch async for batch in batches.list_batches()] == []


@pytest.mark.parametrize("concurrency", [True, "8", 1.5, None])
async def test_calls_at_once_are_a_whole_number(concurrency: Any) -> None:
    with pytest.raises(ConfigurationError, match="concurrency must be an int"):
        await map_activity(act, ["x"], concurrency=concurrency)


def test_what_has_not_the_type_of_a_machine_or_a_worker_is_refused() -> None:
    unchecked: Any = workflow
    with pytest.raises(ActivityDefinitionError, match="machine must be a BatchStateMachine, not the class Reading"):
        unchecked(Reading)(document_by_document)
    unchecked = BatchOrchestrator
    with pytest.raises(ConfigurationError, match="worker must be a Worker, not a MemoryStore"):
        unchecked(echo, worker=MemoryStore())


def test_what_stands_for_an_int_or_for_several_classes_is_taken() -> None:
    class Index:
        """As the integers of NumPy are."""

        def __index__(self) -> int:
            return 3

    check_integer("max_in_flight", Index())
    policy = RetryPolicy(non_retryable=(ValueError, (KeyError, OSError)))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert policy.verdict(OSError()) is False
