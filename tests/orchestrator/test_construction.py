"""What is found wrong before any work starts; and that nothing needs an event loop to be constructed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import tests.orchestrator.activities_elsewhere
from pydantic import ValidationError
from tests.conftest import StoreMaker
from tests.orchestrator import activities_elsewhere as elsewhere
from tests.orchestrator.activities_elsewhere import Elsewhere, foreign, native, split
from tests.support import STAGES, Reading, eventually, everything, within

from durable_batches import (
    EXTRACTION,
    AbortAll,
    BatchConfig,
    BatchOrchestrator,
    Chunking,
    ContinueOnFailure,
    DocumentFailure,
    DurableActivity,
    ForeignStageError,
    MemoryStore,
    RetryFailed,
    RetryPolicy,
    SQLiteStore,
    Store,
    Worker,
    Workflow,
    durable_activity,
    enter_stage,
    map_activity,
    workflow,
)
from durable_batches.errors import ConfigurationError, DurableBatchesError, WorkerNotRunningError
from durable_batches.testing import ManualClock

# ---- stages that the machine does not have -----------------------------------------------------------------


def by_global_name() -> Workflow[Any, Any, Any, Any]:
    @workflow(STAGES, name="run")
    async def run(document: str) -> str:
        return await foreign(document)

    return run


def by_attribute_of_a_module() -> Workflow[Any, Any, Any, Any]:
    @workflow(STAGES, name="run")
    async def run(document: str) -> str:
        return await elsewhere.foreign(document)

    return run


def by_attribute_of_a_module_of_packages() -> Workflow[Any, Any, Any, Any]:
    @workflow(STAGES, name="run")
    async def run(document: str) -> str:
        return await tests.orchestrator.activities_elsewhere.foreign(document)

    return run


def by_attribute_of_a_class() -> Workflow[Any, Any, Any, Any]:
    @workflow(STAGES, name="run")
    async def run(document: str) -> str:
        return await elsewhere.DerivedToolbox.foreign(document)

    return run


def by_closure() -> Workflow[Any, Any, Any, Any]:
    @durable_activity(name="foreign", stage=Elsewhere)
    async def local(text: str) -> str:
        return text

    @workflow(STAGES, name="run")
    async def run(document: str) -> str:
        return await local(document)

    return run


def within_a_nested_function() -> Workflow[Any, Any, Any, Any]:
    @workflow(STAGES, name="run")
    async def run(document: str) -> str:
        async def inner() -> str:
            async def innermost() -> str:
                return await foreign(document)

            return await innermost()

        return await inner()

    return run


def within_a_nested_function_by_closure() -> Workflow[Any, Any, Any, Any]:
    local = foreign

    @workflow(STAGES, name="run")
    async def run(document: str) -> str:
        async def inner() -> str:
            return await local(document)

        return await inner()

    return run


def within_a_comprehension() -> Workflow[Any, Any, Any, Any]:
    @workflow(STAGES, name="run")
    async def run(document: str) -> list[str]:
        return [await foreign(letter) for letter in document]

    return run


def within_a_lambda_that_is_passed_on() -> Workflow[Any, Any, Any, Any]:
    @workflow(STAGES, name="run")
    async def run(document: str) -> list[str]:
        return await map_activity(lambda letter: foreign(letter), document)

    return run


def as_an_argument() -> Workflow[Any, Any, Any, Any]:
    @workflow(STAGES, name="run")
    async def run(document: str) -> list[str]:
        return await map_activity(elsewhere.foreign, document)

    return run


@pytest.mark.parametrize(
    "make",
    [
        by_global_name,
        by_attribute_of_a_module,
        by_attribute_of_a_module_of_packages,
        by_attribute_of_a_class,
        by_closure,
        within_a_nested_function,
        within_a_nested_function_by_closure,
        within_a_comprehension,
        within_a_lambda_that_is_passed_on,
        as_an_argument,
    ],
)
def test_a_foreign_stage_is_found_at_construction(make: Callable[[], Workflow[Any, Any, Any, Any]]) -> None:
    with pytest.raises(ForeignStageError) as caught:
        BatchOrchestrator(make(), store=MemoryStore())
    assert str(caught.value) == (
        "activity 'foreign' belongs to stage 'elsewhere', which the machine of workflow 'run' does not have; its "
        "stages are reading, thinking, writing"
    )
    assert (caught.value.stage, caught.value.workflow, caught.value.activity) == ("elsewhere", "run", "foreign")


def test_names_that_only_look_like_a_foreign_activity_are_none() -> None:
    """`split` is a foreign activity of this module, and a method of every text."""
    assert isinstance(split, DurableActivity)

    @workflow(STAGES)
    async def run(document: str) -> list[str]:
        foreign = document.split()
        return [await native(word) for word in foreign] + [await elsewhere.native(document)]

    BatchOrchestrator(run, store=MemoryStore())


async def test_a_foreign_stage_that_could_not_be_found_before_fails_the_document(store: Store) -> None:
    hidden = {"activity": foreign}

    @workflow(STAGES)
    async def by_lookup(document: str) -> str:
        return await hidden["activity"](document)

    @workflow(STAGES)
    async def by_marking(document: str) -> str:
        enter_stage(Chunking)
        return document

    worker = Worker(store)
    for run in (by_lookup, by_marking):
        async with BatchOrchestrator(run, worker=worker) as batches:
            result = await within(batches.run(["x"], config=BatchConfig(failure_policy=RetryFailed())))
            assert [(failure.error_type, failure.attempts) for failure in result.failures] == [("ForeignStageError", 1)]


# ---- what orchestrators and workers are given --------------------------------------------------------------


@workflow(STAGES)
async def echo(document: str) -> str:
    return document


@pytest.mark.parametrize(
    "store", ["batches.db", None, object(), MemoryStore, {}], ids=["path", "None", "object", "class", "dict"]
)
def test_a_store_that_is_none_is_refused(store: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"is no store|either store= or worker="):
        BatchOrchestrator(echo, store=store)
    if store is not None:
        with pytest.raises(ConfigurationError, match="is no store"):
            Worker(store)


def test_an_orchestrator_has_a_store_or_a_worker() -> None:
    unchecked: Any = BatchOrchestrator
    with pytest.raises(ConfigurationError, match="either store= or worker="):
        unchecked(echo)
    with pytest.raises(ConfigurationError, match="either store= or worker="):
        unchecked(echo, store=MemoryStore(), worker=Worker(MemoryStore()))
    with pytest.raises(ConfigurationError, match="is no workflow"):
        unchecked(echo.fn, store=MemoryStore())


@pytest.mark.parametrize(
    "options",
    [
        {"max_in_flight": -1},
        {"lease": timedelta(0)},
        {"lease": timedelta(seconds=-1)},
        {"drain": timedelta(seconds=-1)},
        {"max_stall": timedelta(0)},
        {"blocked_warning": timedelta(0)},
        {"long_call_warning": timedelta(seconds=-1)},
        {"client_retry_warning": timedelta(0)},
    ],
    ids=str,
)
def test_a_worker_s_numbers_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Worker(MemoryStore(), **options)


def test_two_workflows_of_one_name_and_version_are_refused() -> None:
    @workflow(STAGES, name="echo")
    async def other(document: int) -> int:
        return document

    @workflow(STAGES, name="echo", version="2")
    async def newer(document: int) -> int:
        return document

    worker = Worker(MemoryStore())
    BatchOrchestrator(echo, worker=worker)
    BatchOrchestrator(echo, worker=worker)
    BatchOrchestrator(newer, worker=worker)
    with pytest.raises(ConfigurationError, match=r"another workflow 'echo' of version '1'"):
        BatchOrchestrator(other, worker=worker)


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"concurrency": -3},
        {"concurrency": 10**9},
        {"concurrency": "many"},
        {"document_timeout": timedelta(0)},
        {"document_timeout": timedelta(seconds=-1)},
        {"deadline": timedelta(0)},
        {"deadline": timedelta(days=100_000)},
        {"max_crashes": 0},
        {"metadata": {"a": 1}},
        {"failure_policy": {"tag": "nonsense"}},
        {"failure_policy": None},
        {"concurency": 3},
    ],
    ids=str,
)
def test_a_config_out_of_range_is_refused_at_construction(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BatchConfig(**options)


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        (ContinueOnFailure, {"max_failures": -1}),
        (ContinueOnFailure, {"max_failure_ratio": 1.1}),
        (ContinueOnFailure, {"max_failure_ratio": -0.1}),
        (ContinueOnFailure, {"min_failures": 0}),
        (RetryFailed, {"max_attempts": 0}),
        (RetryFailed, {"backoff": timedelta(seconds=-1)}),
        (RetryPolicy, {"max_attempts": 0}),
        (RetryPolicy, {"initial": timedelta(seconds=-1)}),
        (RetryPolicy, {"maximum": timedelta(seconds=-1)}),
        (RetryPolicy, {"factor": 0.5}),
        (RetryPolicy, {"jitter": 2}),
        (RetryPolicy, {"jitter": -0.1}),
    ],
    ids=str,
)
def test_a_policy_out_of_range_is_refused_at_construction(policy: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        policy(**options)


def test_configs_and_policies_are_frozen() -> None:
    with pytest.raises(ValidationError):
        setattr(BatchConfig(), "concurrency", 5)  # noqa: B010
    for policy in (AbortAll(), ContinueOnFailure(), RetryFailed(), RetryPolicy()):
        with pytest.raises(AttributeError):
            policy.tag = "x"  # type: ignore[misc, union-attr]  # pyright: ignore


# ---- without an event loop ---------------------------------------------------------------------------------

# All of this is what a module of a service has at its top.
SERVICE_STORE = MemoryStore()
SERVICE_WORKER = Worker(SERVICE_STORE)


@durable_activity(stage=Reading)
async def shout(text: str) -> str:
    return text.upper()


@workflow(STAGES)
async def shouting(document: str) -> str:
    return await shout(document)


SHOUTING = BatchOrchestrator(shouting, worker=SERVICE_WORKER)
ECHOING = BatchOrchestrator(echo, worker=SERVICE_WORKER)


def test_what_a_module_holds_serves_one_event_loop_after_the_other() -> None:
    async def serve() -> list[int]:
        # Both at once: entering either is enough, and who comes second waits for the first.
        async with asyncio.TaskGroup() as group:
            group.create_task(SHOUTING.__aenter__())
            group.create_task(ECHOING.__aenter__())
        try:
            results = await within(asyncio.gather(SHOUTING.run(["a"]), ECHOING.run(["b"])))
            return [result.counts.succeeded for result in results]
        finally:
            async with asyncio.TaskGroup() as group:
                group.create_task(SHOUTING.__aexit__(None, None, None))
                group.create_task(ECHOING.__aexit__(None, None, None))

    for _ in range(3):
        assert asyncio.run(serve()) == [1, 1]


def test_a_sqlite_store_serves_one_event_loop_after_the_other(open_store: StoreMaker) -> None:
    store = open_store(None)
    one, other = BatchOrchestrator(echo, store=store), BatchOrchestrator(shouting, store=store)

    async def serve() -> int:
        async def use(batches: BatchOrchestrator[str, str, Any, Any]) -> int:
            async with batches:
                return (await within(batches.run(["a"]))).counts.succeeded

        return sum(await asyncio.gather(use(one), use(other)))

    for _ in range(3):
        assert asyncio.run(serve()) == 2


async def test_entering_nests(store: Store) -> None:
    worker = Worker(store)
    one, other = BatchOrchestrator(echo, worker=worker), BatchOrchestrator(shouting, worker=worker)
    async with worker, one:
        async with other, one:
            await within(other.run(["a"]))
        await within(one.run(["a"]))
    with pytest.raises(WorkerNotRunningError):
        await one.submit(["a"])


async def test_outside_of_async_with_everything_says_so(store: Store) -> None:
    batches = BatchOrchestrator(echo, store=store)
    async with batches:
        batch_id = await batches.submit(["a"])
        await within(batches.result(batch_id))
    calls: list[Callable[[], Any]] = [
        lambda: batches.submit(["a"]),
        lambda: batches.run(["a"]),
        lambda: batches.state(batch_id),
        lambda: batches.snapshot(batch_id),
        lambda: batches.result(batch_id),
        lambda: batches.cancel(batch_id),
        lambda: batches.count_checkpoints(batch_id),
        lambda: everything(batches.progress(batch_id)),
        lambda: everything(batches.watch(batch_id)),
        lambda: everything(batches.results(batch_id)),
        lambda: everything(batches.documents(batch_id)),
        lambda: everything(batches.list_batches()),
    ]
    for call in calls:
        with pytest.raises(WorkerNotRunningError, match="async with"):
            await call()
    assert issubclass(WorkerNotRunningError, DurableBatchesError)


async def test_who_waits_for_a_batch_is_told_when_the_worker_closes(store: Store) -> None:
    go_on = asyncio.Event()

    @workflow(STAGES)
    async def run(document: str) -> str:
        await go_on.wait()
        return document

    async with BatchOrchestrator(run, store=store) as batches:
        batch_id = await batches.submit(["a"])
        seen: list[Any] = []
        waiting: list[asyncio.Task[Any]] = [
            asyncio.create_task(batches.result(batch_id)),
            asyncio.create_task(everything(batches.progress(batch_id), seen)),
            asyncio.create_task(everything(batches.watch(batch_id, interval=timedelta(milliseconds=1)))),
        ]
        await eventually(lambda: len(seen) >= 2)
    done = await within(asyncio.gather(*waiting, return_exceptions=True))
    assert [type(answer) for answer in done] == [WorkerNotRunningError] * 3


async def test_a_worker_can_be_entered_again(store: Store) -> None:
    batches = BatchOrchestrator(echo, store=store)
    for _ in range(3):
        async with batches:
            assert (await within(batches.run(["a", "b"]))).counts.succeeded == 2
    assert batches.stats.documents_run == 6


async def test_a_worker_without_capacity_submits_and_reads_only(open_store: StoreMaker) -> None:
    store = open_store(None)
    async with BatchOrchestrator(echo, store=store, max_in_flight=0) as reader:
        batch_id = await reader.submit(["a"])
        async with BatchOrchestrator(echo, worker=Worker(store)) as runner:
            assert (await within(reader.result(batch_id))).counts.succeeded == 1
            assert reader.stats.documents_run == 0
            assert runner.stats.documents_run == 1


async def test_a_failure_to_open_is_raised_and_can_be_repaired(tmp_path: Any) -> None:
    path = tmp_path / "missing" / "batches.db"
    batches = BatchOrchestrator(echo, store=SQLiteStore(path))
    for _ in range(2):
        with pytest.raises(DurableBatchesError, match="cannot be opened"):
            await batches.__aenter__()
    path.parent.mkdir()
    async with batches:
        assert (await within(batches.run(["a"]))).counts.succeeded == 1


async def test_the_clock_can_be_replaced(open_store: StoreMaker) -> None:
    clock = ManualClock()
    async with BatchOrchestrator(echo, worker=Worker(open_store(clock), clock=clock)) as batches:
        result = await within(batches.run(["a"]))
        events = await everything(batches.progress(result.batch_id))
    assert {event.at.year for event in events} == {2030}


def test_the_built_in_machine_serves_as_well() -> None:
    @durable_activity(stage=Chunking)
    async def chunk(text: str) -> list[str]:
        return [text]

    @workflow(EXTRACTION)
    async def run(document: str) -> list[str]:
        return await chunk(document)

    BatchOrchestrator(run, store=MemoryStore())
    assert DocumentFailure.__name__
