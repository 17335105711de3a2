"""A key sees all of the input: what the annotation does not have is part of it, or refused; other keys stay."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar

import pytest
from pydantic import BaseModel, Field, RootModel, SerializeAsAny
from pydantic.dataclasses import dataclass as pydantic_dataclass
from tests.runtime.attempts import Trial
from tests.runtime.hash_seeds import ARGUMENTS, key_of
from tests.runtime.test_codec import ROUND_TRIPS
from typing_extensions import TypedDict

from durable_batches import PayloadError, durable_activity
from durable_batches.runtime.attempt_result import AttemptFailed

T = TypeVar("T")

# ---- keys stay what they were ----------------------------------------------------------------------------------

RECORDED: Final[dict[str, str]] = json.loads(Path(__file__).with_name("keys_of_0_2_0.json").read_text("utf-8"))
"""The keys that 0.2.0 has given to the calls below; those of `ROUND_TRIPS` by their place in it."""


def calls() -> dict[str, tuple[Any, Any]]:
    found = {f"argument: {name}": argument for name, argument in ARGUMENTS.items()}
    return found | {f"value {number}": (case.annotation, case.value) for number, case in enumerate(ROUND_TRIPS)}


def test_calls_of_an_earlier_version_have_the_keys_that_they_were_recorded_with() -> None:
    now = calls()
    assert {name: key_of(*now[name]) for name in RECORDED} == RECORDED


# ---- what the annotation does not have ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    name: str


@dataclass(frozen=True)
class Square(Shape):
    side: int = 0


@dataclass(frozen=True)
class Circle(Shape):
    pass


@dataclass(frozen=True)
class Disc(Shape):
    pass


class Base(BaseModel):
    name: str = ""


class Derived(Base):
    size: int = 0
    hidden: str = Field(default="", exclude=True)


class Page(BaseModel):
    text: str
    image: bytes = Field(default=b"", exclude=True)
    parts: list[Base] = []
    flag: bool | int = 0


@pydantic_dataclass
class Job:
    text: str
    raw: bytes = b""
    image: bytes = Field(default=b"", exclude=True)


class Movie(TypedDict):
    title: str


class Shapes(RootModel[list[Shape]]):
    pass


class Box(BaseModel, Generic[T]):
    value: T


class Pair(NamedTuple):
    first: Shape
    second: Base = Base()


def movie(**entries: Any) -> Any:
    return entries


class Labelled(BaseModel):
    metadata: Any


HIDING: list[tuple[Any, list[Any]]] = [
    (Labelled, [Labelled(metadata={1: "a"}), Labelled(metadata={"1": "a"})]),
    (Shape, [Shape("a"), Square("a", 1), Square("a", 2), Circle("a"), Disc("a")]),
    (Shape | None, [None, Shape("a"), Square("a", 1), Square("a", 2)]),
    (Shape | str, ["a", Shape("a"), Square("a", 1), Square("a", 2)]),
    (Shape | Base, [Shape("a"), Square("a", 1), Square("a", 2), Base(name="a"), Derived(name="a", size=1)]),
    (list[Shape], [[Shape("a")], [Square("a", 1)], [Square("a", 2)], [Shape("a"), Square("a", 2)]]),
    (tuple[Shape, ...], [(Shape("a"),), (Square("a", 1),), (Square("a", 2),)]),
    (tuple[int, Shape], [(1, Shape("a")), (1, Square("a", 1)), (1, Square("a", 2))]),
    (Sequence[Shape], [[Shape("a")], [Square("a", 1)], [Square("a", 2)]]),
    (dict[str, Shape], [{"x": Shape("a")}, {"x": Square("a", 1)}, {"x": Square("a", 2)}, {"y": Square("a", 2)}]),
    (
        frozenset[Shape],
        [
            frozenset({Square("a", 1), Square("b", 2)}),
            frozenset({Square("a", 2), Square("b", 1)}),
            frozenset({Shape("a"), Shape("b")}),
        ],
    ),
    (Shapes, [Shapes([Shape("a")]), Shapes([Square("a", 1)]), Shapes([Square("a", 2)])]),
    (Pair, [Pair(Shape("a")), Pair(Square("a", 1)), Pair(Square("a", 2)), Pair(Shape("a"), Derived(size=1))]),
    (Box[Shape], [Box[Shape](value=Shape("a")), Box[Shape](value=Square("a", 1)), Box[Shape](value=Square("a", 2))]),
    (Base, [Base(), Derived(), Derived(size=1), Derived(hidden="x"), Derived(hidden="y")]),
    (Page, [Page(text="a"), Page(text="a", image=b"1"), Page(text="a", image=b"2")]),
    (
        Page,
        [Page(text="a", parts=[Base()]), Page(text="a", parts=[Derived(size=1)]), Page(text="a", parts=[Derived()])],
    ),
    (Page, [Page(text="a", flag=0), Page(text="a", flag=False), Page(text="a", flag=1)]),
    (Job, [Job("a"), Job("a", image=b"1"), Job("a", image=b"2"), Job("a", raw=b"1")]),
    (Any, [Page(text="a"), Page(text="a", image=b"1"), [Page(text="a", image=b"1")]]),
    (dict[str, Any], [{"x": Page(text="a")}, {"x": Page(text="a", image=b"1")}]),
    (SerializeAsAny[Base], [Base(), Derived(size=1), Derived(hidden="x")]),
    (Movie, [movie(title="M"), movie(title="M", year=1931), movie(title="M", year=1951)]),
    (list[Movie], [[movie(title="M")], [movie(title="M", year=1931)], [movie(title="M", year=1951)]]),
    (Any, [{1: "a"}, {"1": "a"}, {True: "a"}, {None: "a"}, {"None": "a"}, {1.0: "b"}]),
    (dict[Any, str], [{1: "a"}, {"1": "a"}, {None: "a"}, {"None": "a"}]),
    (dict[str, str], [{1: "a"}, {"1": "a"}]),
    (dict[int, str], [{1: "a"}, {"1": "a"}]),
    (dict[str, Any], [{"x": {1: "a"}}, {"x": {"1": "a"}}, {"x": [{1: "a"}]}]),
]


@pytest.mark.parametrize(("annotation", "values"), HIDING, ids=range(len(HIDING)))
def test_what_the_annotation_does_not_have_is_part_of_the_key(annotation: Any, values: list[Any]) -> None:
    assert len({key_of(annotation, value) for value in values}) == len(values)


SAME: list[tuple[Any, Any, Any]] = [
    (Page, Page(text="a"), Page(text="a", image=b"", parts=[])),
    (Base, Derived(size=1), Derived(name="", size=1, hidden="")),
    (Any, {1: "a", 2: "b"}, {2: "b", 1: "a"}),
    (Any, (1, [2]), [1, (2,)]),
    (frozenset[Shape], frozenset({Square("a", 1), Square("b", 2)}), frozenset({Square("b", 2), Square("a", 1)})),
    (Movie, movie(title="M", year=1, more=2), movie(more=2, year=1, title="M")),
    (Box[Any], Box[Any](value=1), Box[int](value=1)),
    (Box, Box[Any](value=1), Box[int](value=1)),
]


@pytest.mark.parametrize(("annotation", "one", "other"), SAME, ids=range(len(SAME)))
def test_what_is_the_same_has_one_key(annotation: Any, one: Any, other: Any) -> None:
    assert key_of(annotation, one) == key_of(annotation, other)


class Handle:
    """No data."""


class Holder(BaseModel, arbitrary_types_allowed=True):
    handle: Handle | None = Field(default=None, exclude=True)


@dataclass(frozen=True)
class Opened(Shape):
    handle: Handle = field(default_factory=Handle)


REFUSED: list[tuple[Any, Any, str]] = [
    (Holder, Holder(handle=Handle()), "$.handle"),
    (list[Holder], [Holder(), Holder(handle=Handle())], "$[1].handle"),
    (Shape, Opened("a"), "$.handle"),
    (dict[str, Shape], {"x": Opened("a")}, "$['x'].handle"),
    (Movie, movie(title="M", handle=Handle()), "$['handle']"),
    (Any, {"x": {1: "a", "1": "b"}}, "$['x']"),
    (dict[Any, str], {None: "a", "None": "b"}, "$"),
]


@pytest.mark.parametrize(("annotation", "value", "path"), REFUSED, ids=range(len(REFUSED)))
def test_what_can_be_no_part_of_the_key_is_refused_with_its_path(annotation: Any, value: Any, path: str) -> None:
    with pytest.raises(PayloadError, match=rf"argument 'value'.* at {re.escape(path)}: "):
        key_of(annotation, value)


# ---- what is written the same way --------------------------------------------------------------------------------


class Celsius(BaseModel):
    degrees: float


class Kelvin(BaseModel):
    degrees: float


ALIKE: list[tuple[Any, Any]] = [
    (Celsius(degrees=1), Kelvin(degrees=1)),
    (Celsius(degrees=1), {"degrees": 1.0}),
    (date(2031, 1, 1), "2031-01-01"),
    ([b"a"], ["YQ=="]),
    ({"x": {"y": Path("a")}}, {"x": {"y": "a"}}),
    ({1, 2}, [1, 2]),
]


@durable_activity
async def describe(value: Any, more: int = 0) -> str:
    return type(value).__name__


@pytest.mark.parametrize(("one", "other"), ALIKE, ids=range(len(ALIKE)))
async def test_inputs_of_two_types_that_are_written_the_same_way_are_refused(one: Any, other: Any) -> None:
    assert key_of(Any, one) == key_of(Any, other)

    async def body() -> None:
        await describe(one)
        await describe(value=other)

    ended = await Trial().end(body)
    assert isinstance(ended, AttemptFailed)
    assert isinstance(ended.error, PayloadError)
    assert "the input of activity 'describe' cannot be stored: at $: another call for the document" in str(ended.error)
    assert "document 'document' of batch 'batch'" in str(ended.error)


async def test_inputs_of_the_same_types_may_be_repeated() -> None:
    async def twice(act: Callable[..., Awaitable[str]], one: Any, other: Any) -> list[str]:
        return [await act(one), await act(other)]

    async def body() -> list[str]:
        return [
            *await twice(describe, Celsius(degrees=1), Celsius(degrees=1)),
            *await twice(describe, (1, (date(2031, 1, 1),)), [1, [date(2031, 1, 1)]]),
            *await twice(describe, Kelvin(degrees=2), Celsius(degrees=3)),
        ]

    assert await Trial().value(body) == ["Celsius", "Celsius", "tuple", "list", "Kelvin", "Celsius"]
