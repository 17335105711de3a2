"""A default that a deployment changes: never the answer of the old one, and nothing that was recorded is missed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import field, make_dataclass
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, Field, create_model
from tests.conftest import StoreMaker
from tests.runtime.keys import bound, key
from tests.support import NO_DRAIN, STAGES, eventually, everything, within

from durable_batches import (
    BatchOrchestrator,
    DocumentSucceeded,
    Outcome,
    Worker,
    Workflow,
    durable_activity,
    workflow,
)
from durable_batches.runtime.activity import DurableActivity

R = TypeVar("R")


def as_of(before: DurableActivity[..., Any], now: DurableActivity[..., Any], *args: Any, **kwargs: Any) -> str:
    """The key of a call in a batch that was submitted with an earlier version of the activity."""
    recorded = {before.definition.label: before.definition.keys.defaults}
    return bound(now, *args, **kwargs).base_key_as_of(recorded)


def asking(model: str) -> Any:
    @durable_activity
    async def ask(question: str, model: str = model) -> str:
        return f"{model} answers {question}"

    return ask


SMALL, LARGE = asking("small"), asking("large")


def test_a_default_that_has_not_changed_changes_no_key() -> None:
    for args in (("why?",), ("why?", "small"), ("why?", "large")):
        assert as_of(SMALL, asking("small"), *args) == key(SMALL, *args)


def test_a_call_with_the_new_default_is_another_one_than_with_the_old() -> None:
    recorded = key(SMALL, "why?")
    assert key(LARGE, "why?", "large") == recorded, "what this is about"
    for call in (as_of(SMALL, LARGE, "why?"), as_of(SMALL, LARGE, "why?", "large")):
        assert call == key(SMALL, "why?", "large") != recorded


def test_a_call_that_now_passes_the_old_default_finds_what_was_recorded() -> None:
    assert as_of(SMALL, LARGE, "why?", model="small") == key(SMALL, "why?")
    assert as_of(SMALL, LARGE, "why?", "medium") == key(SMALL, "why?", "medium")


def test_parameters_may_be_added_and_lose_their_default_and_go() -> None:
    @durable_activity(name="ask")
    async def plain(question: str) -> None: ...

    @durable_activity(name="ask")
    async def required(question: str, model: str) -> None: ...

    @durable_activity(name="ask")
    async def longer(question: str, model: str = "small", *more: int, limit: int = 10, **named: str) -> None: ...

    assert as_of(plain, SMALL, "why?") == key(plain, "why?")
    assert as_of(SMALL, longer, "why?") == as_of(SMALL, longer, "why?", "small", limit=10) == key(SMALL, "why?")
    assert as_of(SMALL, longer, "why?", "small", 1) != key(SMALL, "why?")
    assert as_of(SMALL, required, "why?", "small") == key(SMALL, "why?")
    assert as_of(SMALL, required, "why?", "large") == key(SMALL, "why?", "large")
    assert as_of(SMALL, plain, "why?") == key(SMALL, "why?")


def test_a_default_that_cannot_be_encoded_is_left_out_as_ever() -> None:
    def made() -> Any:
        @durable_activity
        async def act(text: str, more: Any = object) -> None: ...

        return act

    assert as_of(made(), made(), "a") == key(made(), "a")


# ---- fields ----------------------------------------------------------------------------------------------------


def with_options(default: int, names: list[str]) -> tuple[Any, Any]:
    inner: Any = create_model("Inner", size=(int, default))
    tags = field(default_factory=lambda: list(names))
    part = field(default_factory=inner)
    options: Any = make_dataclass(
        "Options", [("text", str, ""), ("tags", list[str], tags), ("inner", inner | None, part)]
    )

    async def act(options: Any, other: Any = None, *, more: Any = inner()) -> None: ...  # noqa: B008

    act.__annotations__.update(options=options, other=options | None, more=inner)
    return durable_activity(act), options


def test_a_field_whose_default_has_changed_is_another_input() -> None:
    (before, then), (now, options) = with_options(1, ["a"]), with_options(2, ["b"])
    recorded = key(before, then())
    assert key(now, options()) == recorded, "what this is about"
    assert as_of(before, now, options()) != recorded
    assert as_of(before, now, options(text="x", tags=["c"])) != key(before, then(text="x", tags=["c"])), "of `inner`"
    assert as_of(before, now, options(text="x")) != key(before, then(text="x"))
    same, equal = with_options(1, ["a"])
    assert as_of(before, same, equal(text="x")) == key(before, then(text="x"))


def test_a_field_within_a_default_of_a_parameter_is_seen_too() -> None:
    # Of `more`, which is left out.
    (before, then), (now, options) = with_options(1, ["a"]), with_options(2, ["a"])
    recorded = key(before, then(text="x", inner=None))
    assert key(now, options(text="x", inner=None)) == recorded, "what this is about"
    assert as_of(before, now, options(text="x", inner=None)) != recorded


def test_a_field_that_is_added_is_no_change() -> None:
    class Old(BaseModel):
        text: str

    class New(BaseModel):
        text: str
        size: int = 3
        token: UUID = Field(default_factory=uuid4)

    Old.__qualname__ = New.__qualname__ = "Options"

    def taking(cls: Any) -> Any:
        async def act(options: Any) -> None: ...

        act.__annotations__["options"] = cls
        return durable_activity(act)

    before, now = taking(Old), taking(New)
    token = New(text="a").token
    assert as_of(before, now, New(text="a", token=token)) == key(now, New(text="a", token=token))
    assert now.definition.keys.defaults.keys() == {"options:Options.size"}


# ---- with a batch ------------------------------------------------------------------------------------------------


def deployed(default: str, calls: list[str], way: str, gate: asyncio.Event) -> Any:
    ask = asking(default)
    by_name = {"ask": ask}

    @durable_activity
    async def hold() -> None:
        calls.append("hold")
        await gate.wait()

    async def indirect(question: str, **options: str) -> str:
        calls.append(default)
        found: str = await ask(question, **options)
        return found

    @workflow(STAGES, name="asking")
    async def run(question: str) -> str:
        options = {} if default == "small" or way == "default" else {"model": default}
        if way == "a dict":
            answer: str = await by_name["ask"](question, **options)
        elif way == "a function":
            answer = await indirect(question, **options)
        else:
            answer = await ask(question, **options)
        await hold()
        return answer

    return run


async def redeployed(
    open_store: StoreMaker,
    old: Workflow[str, R],
    new: Workflow[str, R],
    document: str,
    calls: Sequence[str],
    gate: asyncio.Event,
) -> list[Outcome[R]]:
    """Have the old workflow run until it calls `hold`, which waits for the gate, and the new one go on."""
    async with BatchOrchestrator(old, worker=Worker(open_store(None), drain=NO_DRAIN)) as batches:
        batch_id = await batches.submit([document])
        await eventually(lambda: "hold" in calls)
    gate.set()
    async with BatchOrchestrator(new, store=open_store(None)) as batches:
        await within(batches.result(batch_id))
        return await everything(batches.results(batch_id))


@pytest.mark.parametrize("way", ["explicit", "default", "a dict", "a function"])
async def test_a_batch_goes_on_with_another_default(open_store: StoreMaker, way: str) -> None:
    calls: list[str] = []
    gate = asyncio.Event()
    old, new = (deployed(default, calls, way, gate) for default in ("small", "large"))
    assert await redeployed(open_store, old, new, "why?", calls, gate) == [
        DocumentSucceeded(document_id="0", value="large answers why?")
    ]


async def test_a_batch_goes_on_with_another_optional_parameter(open_store: StoreMaker) -> None:
    calls: list[str] = []
    gate = asyncio.Event()
    numbers = count()

    @durable_activity(name="draw")
    async def draw(kind: str = "dice") -> int:
        return next(numbers)

    @durable_activity(name="draw")
    async def newer(kind: str = "dice", *, sides: int = 6, wait: timedelta | None = None) -> int:
        return next(numbers)

    @durable_activity
    async def hold() -> None:
        calls.append("hold")
        await gate.wait()

    @workflow(STAGES, name="drawing")
    async def old(document: str) -> list[int]:
        drawn = [await draw(), await draw("dice"), await draw("cards")]
        await hold()
        return drawn

    @workflow(STAGES, name="drawing")
    async def new(document: str) -> list[int]:
        drawn = [await newer(), await newer("dice", sides=6), await newer("cards"), await newer("cards", sides=7)]
        await hold()
        return drawn

    assert await redeployed(open_store, old, new, "x", calls, gate) == [
        DocumentSucceeded(document_id="0", value=[0, 1, 2, 3])
    ]
