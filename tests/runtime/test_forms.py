"""The forms that an activity's call can have: of a method, with other options, replaced in a test."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, Self
from uuid import UUID

import pytest
from tests.conftest import StoreMaker
from tests.runtime.keys import key
from tests.support import ONCE, STAGES, Reading, Thinking, everything

from durable_batches import (
    ActivityDefinitionError,
    BatchConfig,
    BatchOrchestrator,
    ConfigurationError,
    DocumentFailure,
    DocumentSucceeded,
    DuplicateDocumentError,
    ExecutionContext,
    MachineError,
    MemoryStore,
    NotInWorkflowError,
    Results,
    RetryFailed,
    RetryPolicy,
    Store,
    Worker,
    Workflow,
    current_activity,
    current_execution,
    durable_activity,
    map_activity,
    workflow,
)
from durable_batches.testing import execution_context


async def values_of(run: Workflow[str, list[str]], store: Store, documents: list[str] | None = None) -> list[list[str]]:
    async with BatchOrchestrator(run, store=store) as batches:
        result = await batches.run(documents or ["x"])
        outcomes = await everything(batches.results(result.batch_id))
    assert all(isinstance(outcome, DocumentSucceeded) for outcome in outcomes), outcomes
    return [outcome.value for outcome in outcomes if isinstance(outcome, DocumentSucceeded)]


# ---- methods -----------------------------------------------------------------------------------------------------


def first_letter(self: Client, question: str) -> str:
    _ = self
    return question[:1]


@dataclass
class Client:
    name: str
    asked: list[str] = field(default_factory=list[str])

    @durable_activity
    async def ask(self, question: str, loud: bool = False) -> str:
        """Ask."""
        self.asked.append(question)
        return f"{self.name}: {question}{'!' if loud else ''}"

    @durable_activity(stage=Thinking, name="thinks")
    def think(self: Self, question: str) -> str:
        return f"{self.name} thinks {question}"

    @durable_activity(key=first_letter)
    async def by_first_letter(self, question: str) -> str:
        self.asked.append(question)
        return question


async def test_a_method_is_an_activity_whose_instance_is_no_input(open_store: StoreMaker) -> None:
    client = Client("one")

    @workflow(STAGES)
    async def run(_: str) -> list[str]:
        return [await client.ask("a"), await client.ask("b", loud=True), await client.think("c")]

    store = open_store(None)
    assert await values_of(run, store) == [["one: a", "one: b!", "one thinks c"]]
    assert client.asked == ["a", "b"]
    assert key(client.ask, "a") == key(Client("two").ask, "a")
    assert key(client.ask, "a") != key(client.ask, "b")


async def test_what_a_method_recorded_is_not_run_again(open_store: StoreMaker) -> None:
    client, broken = Client("one"), [True]

    @workflow(STAGES)
    async def run(_: str) -> list[str]:
        answers = [await client.ask("a"), await Client.ask(client, "b")]
        if broken:
            broken.clear()
            raise ValueError
        return answers

    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        config = BatchConfig(failure_policy=RetryFailed(backoff=timedelta(0)))
        assert (await batches.run(["x"], config=config)).counts.succeeded == 1
    assert client.asked == ["a", "b"]


def test_a_method_is_named_with_its_class_and_shows_its_signature_without_the_instance() -> None:
    client = Client("one")
    assert (client.ask.name, client.think.name) == ("Client.ask", "thinks")
    assert client.ask.__doc__ == "Ask."
    assert list(inspect.signature(client.ask).parameters) == ["question", "loud"]
    assert list(inspect.signature(Client.ask).parameters) == ["self", "question", "loud"]
    assert Client.ask is Client.__dict__["ask"]


async def test_a_method_outside_of_a_batch_is_the_plain_method() -> None:
    client = Client("one")
    assert await client.ask("a") == await Client.ask(client, "a") == "one: a"
    assert await client.think("a") == "one thinks a"


async def test_a_key_function_of_a_method_gets_the_instance_too(open_store: StoreMaker) -> None:
    client = Client("one")

    @workflow(STAGES)
    async def run(document: str) -> list[str]:
        return [await client.by_first_letter(document)]

    assert await values_of(run, open_store(None), ["ab", "ac"]) == [["ab"], ["ac"]]
    assert key(client.by_first_letter, "ab") == key(client.by_first_letter, "ac")


async def test_map_activity_takes_a_method(open_store: StoreMaker) -> None:
    client = Client("one")

    @workflow(STAGES)
    async def run(_: str) -> list[str]:
        return await map_activity(client.ask, ["a", "b"])

    assert await values_of(run, open_store(None)) == [["one: a", "one: b"]]


def test_a_stage_of_a_method_is_checked_like_any_other() -> None:
    client = Client("one")

    @workflow(type(STAGES)(Reading))
    async def run(_: str) -> list[str]:
        return [await client.think("c")]

    with pytest.raises(ConfigurationError, match=r"'thinks'.*'thinking'"):
        BatchOrchestrator(run, store=MemoryStore())


async def test_a_static_method_would_not_be_told_apart_and_is_refused() -> None:
    class Tools:
        @staticmethod
        @durable_activity(retry=ONCE)
        async def act(value) -> str:  # type: ignore[no-untyped-def]  # pyright: ignore
            return str(value)  # pyright: ignore

    @workflow(STAGES)
    async def run(_: str) -> list[str]:
        return [await Tools.act("a")]  # pyright: ignore[reportUnknownMemberType]

    async with BatchOrchestrator(run, store=MemoryStore()) as batches:
        result = await batches.run(["x"])
        (outcome,) = await everything(batches.results(result.batch_id))
    assert isinstance(outcome, DocumentFailure)
    assert outcome.error_type == "ActivityDefinitionError"
    assert "parameter 'value'" in outcome.error
    assert "it is no method" in outcome.error


async def test_an_activity_that_a_class_only_holds_stays_a_function(open_store: StoreMaker) -> None:
    @durable_activity
    async def act(value: str) -> str:
        return value

    class Steps:
        first = act

    @workflow(STAGES)
    async def run(document: str) -> list[str]:
        return [await Steps.first(document), await act(document)]

    assert await values_of(run, open_store(None)) == [["x", "x"]]


def test_two_activities_of_one_name_in_a_workflow_are_refused() -> None:
    @durable_activity
    async def act(value: str) -> str:
        return value

    @durable_activity(name="act")
    async def other(value: str) -> str:
        return value

    @workflow(STAGES)
    async def run(document: str) -> list[str]:
        return [await act(document), await other(document)]

    with pytest.raises(ActivityDefinitionError, match="two activities of the name 'act'"):
        BatchOrchestrator(run, store=MemoryStore())

    async def link(results: Results[str]) -> list[str]:
        return [await act(results.batch_id), await other(results.batch_id)]

    @workflow(STAGES, resolver=link)
    async def fine(document: str) -> str:
        return await act(document)

    with pytest.raises(ActivityDefinitionError, match="the resolver of workflow 'fine' calls two"):
        BatchOrchestrator(fine, store=MemoryStore())


class Handle:
    """No data: a model in memory, say, that only the process itself can use."""


async def test_an_explicit_key_serves_where_the_input_cannot_be_recorded(open_store: StoreMaker) -> None:
    calls: list[str] = []
    broken = [True]

    def by_name(name: str, handle: Handle, more: Any) -> str:
        return name

    @durable_activity(key=by_name)
    async def act(name: str, handle: Handle, more: Any) -> str:
        assert isinstance(handle, Handle)
        calls.append(name)
        return name.upper()

    @workflow(STAGES)
    async def run(document: str) -> list[str]:
        # Neither the type of the one nor the value of the other can be encoded.
        answers = [await act(name, Handle(), object()) for name in ("a", "b", "a")]
        if broken:
            broken.clear()
            raise ValueError
        return answers

    config = BatchConfig(failure_policy=RetryFailed(backoff=timedelta(0)))
    async with BatchOrchestrator(run, store=open_store(None), config=config) as batches:
        result = await batches.run(["x"])
        (outcome,) = await everything(batches.results(result.batch_id))
    assert outcome == DocumentSucceeded(document_id="0", value=["A", "B", "A"])
    assert calls == ["a", "b", "a"]


# ---- with_options ------------------------------------------------------------------------------------------------


async def test_options_are_those_of_the_call_alone(open_store: StoreMaker) -> None:
    tries: list[str] = []

    @durable_activity(stage=Reading, retry=ONCE)
    async def act(value: str) -> str:
        tries.append(value)
        if tries.count(value) < 3:
            raise ValueError(value)
        return value

    patient = act.with_options(stage=Thinking, retry=RetryPolicy(initial=timedelta(0)))
    assert (patient.name, patient.version, patient.stage, patient.timeout) == (act.name, act.version, Thinking, None)
    assert (act.stage, act.retry) == (Reading, ONCE)
    assert key(patient, "a") == key(act, "a")
    assert patient.with_options(timeout=timedelta(seconds=1)).retry == patient.retry
    assert patient.__doc__ == act.__doc__

    @workflow(STAGES)
    async def run(_: str) -> list[str]:
        return [await patient("a")]

    assert await values_of(run, open_store(None)) == [["a"]]
    assert tries == ["a", "a", "a"]


async def test_an_explicit_key_of_a_call_decides_on_replay(open_store: StoreMaker) -> None:
    calls: list[int] = []
    broken = [True]

    @durable_activity
    async def act(value: int) -> int:
        calls.append(value)
        return value

    @workflow(STAGES)
    async def run(_: str) -> list[int]:
        answers = [await act.with_options(key=f"call {index}")(len(calls)) for index in range(2)]
        if broken:
            broken.clear()
            raise ValueError
        return answers

    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        config = BatchConfig(failure_policy=RetryFailed(backoff=timedelta(0)))
        result = await batches.run(["x"], config=config)
        (outcome,) = await everything(batches.results(result.batch_id))
    assert isinstance(outcome, DocumentSucceeded)
    assert outcome.value == calls == [0, 1]


async def test_two_calls_with_one_key_and_other_inputs_are_told(open_store: StoreMaker) -> None:
    @durable_activity
    async def act(value: int) -> int:
        return value

    @workflow(STAGES)
    async def run(_: str) -> list[int]:
        return [await act.with_options(key="k")(1), await act.with_options(key="k")(2)]

    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        result = await batches.run(["x"])
        (outcome,) = await everything(batches.results(result.batch_id))
    assert isinstance(outcome, DocumentFailure)
    assert outcome.error_type == "CheckpointMismatchError"


def test_options_that_cannot_work_are_refused() -> None:
    @durable_activity
    async def act(value: int) -> int:
        return value

    with pytest.raises(ActivityDefinitionError, match="a key must not be empty"):
        act.with_options(key="")
    with pytest.raises(ActivityDefinitionError, match="timeout must be positive"):
        act.with_options(timeout=timedelta(0))
    with pytest.raises(MachineError):
        act.with_options(stage=int)  # type: ignore[arg-type]  # pyright: ignore


# ---- replaced ----------------------------------------------------------------------------------------------------


async def test_within_the_block_calls_go_to_the_fake_in_all_forms(open_store: StoreMaker) -> None:
    @durable_activity
    async def act(value: str) -> str:
        return f"real {value}"

    @workflow(STAGES)
    async def run(document: str) -> list[str]:
        return [await act(document), await act.with_options(key="k")(document)]

    async def fake(value: str) -> str:
        return f"fake {value}"

    def sync_fake(value: str) -> str:
        return f"sync {value}"

    store = open_store(None)
    with act.override(fake):
        assert await act("a") == "fake a"
        with act.override(sync_fake):
            assert await act("a") == "sync a"
            assert await values_of(run, store) == [["sync x", "sync x"]]
        assert await values_of(run, store) == [["fake x", "fake x"]]
    assert await act("a") == "real a"
    assert await values_of(run, store) == [["real x", "real x"]]


async def test_a_method_may_be_overridden_for_all_or_by_a_bound_fake() -> None:
    one, two = Client("one"), Client("two")

    async def for_all(self: Client, question: str, loud: bool = False) -> str:
        return f"fake {self.name} {question} {loud}"

    async def without_instance(question: str, loud: bool = False) -> str:
        return f"fake {question} {loud}"

    with Client.ask.override(for_all):
        assert await one.ask("a") == "fake one a False"
        assert await Client.ask(two, "a", loud=True) == "fake two a True"
    with one.ask.override(without_instance):
        assert await one.ask("a") == "fake a False"
        assert await Client.ask(one, "a") == "fake a False"
    assert await two.ask("a") == "two: a"


async def test_a_fake_is_put_back_when_the_test_fails() -> None:
    @durable_activity
    async def act(value: str) -> str:
        return value

    with pytest.raises(ZeroDivisionError), act.override(lambda _: "fake"):  # pyright: ignore
        raise ZeroDivisionError
    assert await act("a") == "a"


async def test_the_old_name_of_override_warns_and_works() -> None:
    @durable_activity
    async def act(value: str) -> str:
        return value

    with pytest.warns(DeprecationWarning, match=r"replaced\(\) is called override\(\) now"):
        replacing = act.replaced(lambda value: f"fake {value}")  # type: ignore[deprecated]  # pyright: ignore[reportDeprecated]
    with replacing:
        assert await act("a") == "fake a"
    assert await act("a") == "a"


# ---- current_execution -------------------------------------------------------------------------------------------


async def test_a_workflow_its_activities_and_its_resolver_know_their_execution(open_store: StoreMaker) -> None:
    seen: dict[str, ExecutionContext] = {}

    @durable_activity
    async def act(document: str) -> str:
        assert current_activity().batch_id == current_execution().batch_id
        seen["activity"] = current_execution()
        return document

    @durable_activity
    def in_thread(document: str) -> str:
        seen["thread"] = current_execution()
        return document

    async def link(results: Results[str]) -> None:
        assert results.batch_id == current_execution().batch_id
        seen["resolver"] = current_execution()

    @workflow(STAGES, resolver=link)
    async def run(document: str) -> str:
        seen["workflow"] = current_execution()
        if current_execution().attempt == 1:
            raise ValueError
        await act(document)
        return await in_thread(document)

    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        config = BatchConfig(
            metadata={"tenant": "acme"}, failure_policy=RetryFailed(backoff=timedelta(0)), concurrency=1
        )
        result = await batches.run(["x"], config=config, batch_id="b", document_id=str.upper)
        result.raise_for_failures()
    expected = ExecutionContext(
        batch_id=result.batch_id, document_id="X", ordinal=0, attempt=2, run=1, metadata={"tenant": "acme"}
    )
    assert seen["workflow"] == seen["activity"] == seen["thread"] == expected
    assert (seen["resolver"].document_id, seen["resolver"].ordinal, seen["resolver"].attempt) == ("", -1, 1)
    assert seen["resolver"].metadata == {"tenant": "acme"}


async def test_outside_of_an_orchestrator_there_is_no_execution_but_a_unit_test_s() -> None:
    @workflow(STAGES)
    async def run(document: str) -> str:
        return f"{document} for {current_execution().metadata['customer']}"

    with execution_context(metadata={"customer": "acme"}):
        assert await run("x") == "x for acme"
    with pytest.raises(NotInWorkflowError):
        current_execution()
    with pytest.raises(NotInWorkflowError):
        await run("x")


# ---- what documents are called -----------------------------------------------------------------------------------


@dataclass
class WithId:
    id: int | None


@dataclass
class WithBoth:
    document_id: str
    id: int


@dataclass
class WithUuid:
    id: UUID


@dataclass
class Unusable:
    id: list[int]


async def ids_of(documents: list[WithId | WithBoth | WithUuid | Unusable]) -> list[str]:
    @workflow(STAGES)
    async def run(_: WithBoth | WithId | WithUuid | Unusable) -> None: ...

    async with BatchOrchestrator(run, store=MemoryStore()) as batches:
        batch_id = await batches.submit(documents)
        return [info.document_id async for info in batches.documents(batch_id)]


async def test_a_document_that_says_what_it_is_called_is_called_so() -> None:
    name = UUID("12345678-1234-5678-1234-567812345678")
    assert await ids_of([WithId(7), WithId(None), WithBoth("b", 1), WithUuid(name), Unusable([1])]) == [
        "7",
        "1",
        "b",
        str(name),
        "4",
    ]


async def test_two_documents_of_one_name_are_refused_by_name() -> None:
    with pytest.raises(DuplicateDocumentError, match="'7'"):
        await ids_of([WithId(7), WithId(7)])
    with pytest.raises(ConfigurationError, match="the documents' document_id must have 1 to 512 characters"):
        await ids_of([WithBoth("", 1)])


async def test_labels_are_what_batches_are_listed_by(open_store: StoreMaker) -> None:
    @workflow(STAGES)
    async def run(document: str) -> str:
        return document

    worker = Worker(open_store(None))
    async with (
        BatchOrchestrator(run, worker=worker, config=BatchConfig(metadata={"tenant": "a"})) as of_a,
        BatchOrchestrator(run, worker=worker, config=BatchConfig(metadata={"tenant": "b"})) as of_b,
    ):
        first, second = await of_a.submit(["x"]), await of_b.submit(["y"])
        own = await of_a.submit(["x"], config=BatchConfig(metadata={"tenant": "c", "kind": "d"}))
        listed = {
            tenant: [snapshot.batch_id async for snapshot in of_a.list_batches(metadata={"tenant": tenant})]
            for tenant in ("a", "b", "c", "d")
        }
    assert listed == {"a": [first], "b": [second], "c": [own], "d": []}


async def test_a_namespace_of_activities_is_looked_through(open_store: StoreMaker) -> None:
    """Found before anything runs: an instance's methods, and activities that a helper function calls."""
    client = Client("one")
    steps = SimpleNamespace(client=client)

    async def helper(document: str) -> str:
        thought: str = await steps.client.think(document)
        return thought

    @workflow(type(STAGES)(Reading))
    async def run(document: str) -> list[str]:
        await asyncio.sleep(0)
        return [str(await helper(document))]

    with pytest.raises(ConfigurationError, match=r"'thinks'.*'thinking'"):
        BatchOrchestrator(run, store=open_store(None))


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "version", "problem"),
    [
        ("", "1", "1 to 512 characters"),
        ("act\0", "1", "NUL or lone surrogates"),
        ("act", "\ud800", "NUL or lone surrogates"),
        ("act", "", "1 to 512 characters"),
        ("x" * 500, "y" * 13, "1 to 512 characters, not 513"),
        ("act", 2, "must be a str, not 'int'"),
        ("act", "1:2", "must not contain ':'"),
    ],
)
def test_names_that_no_store_could_keep_are_refused(name: str, version: Any, problem: str) -> None:
    async def act(value: int) -> int:
        return value

    with pytest.raises(ActivityDefinitionError, match=problem):
        durable_activity(name=name, version=version)(act)


@pytest.mark.parametrize(
    "options", [{"name": ""}, {"name": "\0"}, {"version": "x" * 513}, {"version": 2}, {"accepts": ("1", "\udfff")}]
)
def test_workflows_have_names_that_every_store_can_keep(options: dict[str, Any]) -> None:
    async def run(document: str) -> str:
        return document

    with pytest.raises(ActivityDefinitionError, match="of a workflow must"):
        workflow(STAGES, **options)(run)


async def test_the_longest_names_are_kept(store: Store) -> None:
    """Of four bytes each, and with what looks special in them."""
    letters = "\U0001f600"

    @durable_activity(name=letters * 506 + ":#'\\%", version="2")
    async def act(value: str) -> str:
        return value

    @workflow(STAGES, name=letters * 512, version=letters * 512)
    async def run(document: str) -> str:
        return await act(document)

    async with BatchOrchestrator(run, store=store) as batches:
        batch_id = await batches.submit(["x"], batch_id=letters * 512, document_id=lambda _: letters * 512)
        await batches.result(batch_id)
        assert [outcome.document_id async for outcome in batches.results(batch_id)] == [letters * 512]
        (recorded,) = await store.checkpoints(batch_id, 0, limit=10)
        assert recorded.key.startswith(f"{act.name}:2:")
