"""Checkpoint keys: which calls are the same call, and which are not."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field
from tests.runtime.hash_seeds import ARGUMENTS, key_of
from tests.runtime.keys import bound, key
from typing_extensions import TypedDict

from durable_batches import ActivityDefinitionError, PayloadError, durable_activity
from durable_batches.lifecycle.records import CheckpointRecord
from durable_batches.runtime.activity import DurableActivity
from durable_batches.runtime.checkpoint import Recorded

# ---- the same in every process -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keys_by_seed() -> list[dict[str, str]]:
    script = Path(__file__).with_name("hash_seeds.py")
    runs = [
        subprocess.Popen(
            [sys.executable, script], env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True
        )
        for seed in ("1", "2", "3")
    ]
    printed = [run.communicate(timeout=60)[0] for run in runs]
    assert all(run.returncode == 0 for run in runs)
    return [json.loads(text) for text in printed]


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.processes
def test_a_key_is_the_same_whatever_the_hash_seed(name: str, keys_by_seed: list[dict[str, str]]) -> None:
    assert {keys[name] for keys in keys_by_seed} == {key_of(*ARGUMENTS[name])}


# ---- what has no order, has none in the key ----------------------------------------------------------------


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


def open_model(**fields: Any) -> Open:
    return Open.model_validate(fields)


UNORDERED: list[tuple[Any, Any, Any]] = [
    (dict[str, int], {"a": 1, "b": 2}, {"b": 2, "a": 1}),
    (dict[str, dict[str, int]], {"x": {"a": 1, "b": 2}}, {"x": {"b": 2, "a": 1}}),
    (dict[str, Any], {"x": [{"a": 1, "b": 2}]}, {"x": [{"b": 2, "a": 1}]}),
    (Any, {"a": {"c": 1, "d": 2}, "b": 3}, {"b": 3, "a": {"d": 2, "c": 1}}),
    (Movie, {"title": "M", "year": 1931}, {"year": 1931, "title": "M"}),
    (Open, open_model(a=1, b=2), open_model(b=2, a=1)),
    (Any, open_model(a=1, b=2), open_model(b=2, a=1)),
    (set[int], {1, 2, 3}, {3, 2, 1}),
]


@pytest.mark.parametrize(("annotation", "one", "other"), UNORDERED, ids=range(len(UNORDERED)))
def test_the_order_of_what_has_none_does_not_matter(annotation: Any, one: Any, other: Any) -> None:
    assert key_of(annotation, one) == key_of(annotation, other)


def test_the_order_of_a_list_matters() -> None:
    assert key_of(list[int], [1, 2]) != key_of(list[int], [2, 1])
    assert key_of(Any, [1, 2]) != key_of(Any, [2, 1])


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers() | st.text(st.characters(codec="utf-8"))))
def test_equal_dicts_have_equal_keys(value: dict[str, Any]) -> None:
    turned = dict(reversed(value.items()))
    assert key(UNTYPED, value) == key(UNTYPED, turned)


@given(st.sets(st.integers()), st.sets(st.integers()))
def test_sets_have_equal_keys_if_they_are_equal(one: set[int], other: set[int]) -> None:
    assert (key(SETS, one) == key(SETS, other)) == (one == other)


@durable_activity
async def take_anything(value: Any) -> None: ...


@durable_activity
async def take_set(value: set[int]) -> None: ...


UNTYPED, SETS = take_anything, take_set


# ---- arguments are bound to names --------------------------------------------------------------------------


@durable_activity
async def search(text: str, limit: int = 10, *, exact: bool = False, tags: frozenset[str] = frozenset()) -> None: ...


def test_an_argument_is_the_same_by_place_and_by_name() -> None:
    assert key(search, "a", 5) == key(search, "a", limit=5) == key(search, limit=5, text="a")


def test_an_argument_equal_to_its_default_is_as_if_left_out() -> None:
    assert key(search, "a") == key(search, "a", 10) == key(search, "a", exact=False, tags=frozenset())
    assert key(search, "a") != key(search, "a", 11)
    assert key(search, "a") != key(search, "a", exact=True)


def test_a_default_of_another_type_is_another_argument() -> None:
    @durable_activity
    async def act(flag: int | bool | float = 0) -> None: ...

    assert len({key(act), key(act, False), key(act, 0.0)}) == 3


def test_a_parameter_with_a_default_can_be_added_and_parameters_can_change_places() -> None:
    def old() -> DurableActivity[..., None]:
        @durable_activity
        async def search(text: str, limit: int) -> None: ...

        return search

    @durable_activity
    async def search(language: str = "en", *, limit: int, text: str, more: list[str] | None = None) -> None: ...

    assert key(old(), "a", 5) == key(search, limit=5, text="a")


def test_values_do_not_run_into_each_other() -> None:
    @durable_activity
    async def act(a: str = "", b: str = "") -> None: ...

    assert len({key(act), key(act, "x"), key(act, "", "x"), key(act, "x", "x"), key(act, 'x","b":"x')}) == 5


def test_arguments_without_a_name_of_their_own() -> None:
    @durable_activity
    async def act(first: int, /, *rest: int, **named: str) -> None: ...

    same = {key(act, 1, 2, 3, a="x", b="y"), key(act, 1, 2, 3, b="y", a="x")}
    assert len(same) == 1
    others = {key(act, 1), key(act, 1, 2), key(act, 2, 1), key(act, 1, a="2"), key(act, 1, b="2")}
    assert len(others | same) == 6


def test_arguments_that_do_not_fit_are_a_type_error() -> None:
    with pytest.raises(TypeError):
        key(search)
    with pytest.raises(TypeError):
        key(search, "a", nonsense=1)


def test_an_argument_that_cannot_be_encoded_is_named() -> None:
    @durable_activity
    async def act(text: str, data: Any) -> None: ...

    with pytest.raises(PayloadError, match=r"argument 'data' of activity 'act' cannot be stored: at \$\['x'\]\[0\]"):
        key(act, "a", {"x": [math.nan]})
    with pytest.raises(PayloadError, match="argument 'text'"):
        key(act, "\ud800", None)
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(PayloadError, match=r"argument 'data'.*deeper than"):
        key(act, "a", endless)


@pytest.mark.parametrize(
    ("annotation", "path"),
    [(Any, "$"), (Iterable[str], "$"), (dict[str, Any], "$['x']"), (list[Iterable[str]], "$[0]")],
)
def test_an_iterator_is_refused_before_it_is_used_up(annotation: Any, path: str) -> None:
    words = iter(["a", "b"])
    value = {"$": words, "$['x']": {"x": words}, "$[0]": [words]}[path]
    with pytest.raises(PayloadError, match=f"at {re.escape(path)}: an iterator is used up by reading it"):
        key_of(annotation, value)
    assert list(words) == ["a", "b"]


def test_an_iterable_that_is_none_is_a_list_like_any_other() -> None:
    keys = [key_of(Iterable[str], value) for value in (["a", "b"], ("a", "b"), deque(["a", "b"]))]
    assert len({*keys, key_of(Iterable[str], ["b", "a"])}) == 2


# ---- fields equal to their defaults are left out -----------------------------------------------------------


class Inner(BaseModel):
    x: int = 1


class OldModel(BaseModel):
    text: str


class NewModel(BaseModel):
    text: str
    size: int = 3
    maybe: str | None = None
    items: list[int] = Field(default_factory=list[int])
    names: set[str] = Field(default_factory=set)
    inner: Inner = Inner()
    choice: Literal["a", "b"] = "a"
    either: Inner | OldModel | None = None


@dataclass
class OldData:
    text: str


@dataclass
class NewData:
    text: str
    items: list[int] = field(default_factory=list[int])
    inner: Inner = field(default_factory=Inner)


class OldTuple(NamedTuple):
    text: str


class NewTuple(NamedTuple):
    text: str
    size: int = 3


class OldMovie(TypedDict):
    text: str


class NewMovie(TypedDict):
    text: str
    size: NotRequired[int]


GROWN: list[tuple[Any, Any, Any]] = [
    (OldModel, NewModel, {"text": "a"}),
    (OldData, NewData, {"text": "a"}),
    (OldTuple, NewTuple, {"text": "a"}),
    (OldMovie, NewMovie, {"text": "a"}),
]


@pytest.mark.parametrize(("old", "new", "fields"), GROWN, ids=["model", "dataclass", "named tuple", "typed dict"])
def test_adding_an_optional_field_changes_no_key(old: Any, new: Any, fields: Any) -> None:
    before, after = old(**fields), new(**fields)
    assert key_of(old, before) == key_of(new, after)
    assert key_of(list[old], [before]) == key_of(list[new], [after])
    assert key_of(dict[str, old | None], {"a": before}) == key_of(dict[str, new | None], {"a": after})


def test_an_optional_field_that_is_used_changes_the_key() -> None:
    plain = key_of(NewModel, NewModel(text="a"))
    assert plain == key_of(NewModel, NewModel(text="a", size=3, items=[], inner=Inner(x=1)))
    assert plain != key_of(NewModel, NewModel(text="a", size=4))
    assert plain != key_of(NewModel, NewModel(text="a", inner=Inner(x=2)))
    assert key_of(NewTuple, NewTuple("a")) != key_of(NewTuple, NewTuple("a", 4))


# ---- members of a union ------------------------------------------------------------------------------------


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    age: int = 0


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    age: int = 0


class Celsius(BaseModel):
    degrees: float


class Kelvin(BaseModel):
    degrees: float


APART: list[tuple[Any, list[Any]]] = [
    (Celsius | Kelvin, [Celsius(degrees=1), Kelvin(degrees=1), Kelvin(degrees=2)]),
    (list[Celsius | Kelvin | None], [[Celsius(degrees=1)], [Kelvin(degrees=1)], [None], []]),
    (Cat | Dog, [Cat(), Dog(), Dog(age=1)]),
    (Annotated[Cat | Dog, Field(discriminator="kind")], [Cat(), Dog(), Cat(age=1)]),
    (list[Cat] | list[Dog], [[Cat()], [Dog()]]),
    (Cat | None, [Cat(), None]),
    (datetime | str, [datetime(2026, 1, 1), "2026-01-01T00:00:00"]),
    (int | str, [1, "1"]),
    (Decimal | str | float, [Decimal("1"), "1", 1.0]),
    (set[int] | list[int], [{1}, [1], [], set[int]()]),
    (bytes | str, [b"a", "YQ==", "a"]),
]


@pytest.mark.parametrize(("annotation", "values"), APART, ids=range(len(APART)))
def test_different_members_of_a_union_have_different_keys(annotation: Any, values: list[Any]) -> None:
    assert len({key_of(annotation, value) for value in values}) == len(values)


# ---- names, versions, explicit keys ------------------------------------------------------------------------


def test_the_key_names_the_activity_and_its_version_but_not_its_module() -> None:
    @durable_activity
    async def act(text: str) -> None: ...

    @durable_activity(name="other")
    async def named(text: str) -> None: ...

    @durable_activity(name="act", version="2")
    async def newer(text: str) -> None: ...

    async def moved(text: str) -> None: ...

    moved.__module__ = "somewhere.else"
    assert key(act, "a").startswith("act:1:")
    assert key(act, "a") == key(durable_activity(name="act")(moved), "a")
    assert len({key(act, "a"), key(named, "a"), key(newer, "a")}) == 3


def test_ignored_parameters_are_no_part_of_the_key_and_need_no_annotation() -> None:
    @durable_activity(ignore=("now", "client"))
    async def act(text: str, now: datetime, client: Any) -> None: ...

    assert key(act, "a", datetime(2026, 1, 1), object()) == key(act, "a", datetime(2027, 1, 1), None)
    assert key(act, "a", None, None) != key(act, "b", None, None)


def test_ignoring_what_is_not_there_is_refused() -> None:
    with pytest.raises(ActivityDefinitionError, match="no parameter 'nwo'"):

        @durable_activity(ignore=("nwo",))
        async def act(text: str, now: datetime) -> None: ...


def test_an_explicit_key_stands_for_the_input() -> None:
    def by_url(url: str, body: bytes) -> str:
        return url

    @durable_activity(key=by_url)
    async def post(url: str, body: bytes) -> None: ...

    assert key(post, "u", b"1") == key(post, "u", body=b"2")
    assert key(post, "u", b"1") != key(post, "v", b"1")
    assert bound(post, "u", b"1").input_digest() != bound(post, "u", b"2").input_digest()


def test_an_explicit_key_serves_for_input_that_cannot_be_encoded() -> None:
    def by_name(name: str, model: object) -> str:
        return name

    @durable_activity(key=by_name)
    async def train(name: str, model: object) -> None: ...

    assert key(train, "a", object()) == key(train, "a", object())


# ---- occurrences -------------------------------------------------------------------------------------------


def recorded(*keys: str) -> Recorded:
    """`+key` was a success, `-key` a failure."""
    kinds: dict[str, Literal["succeeded", "failed"]] = {"+": "succeeded", "-": "failed"}
    return Recorded([CheckpointRecord(name[1:], kinds[name[0]], name.encode()) for name in keys])


def taken(found: Recorded, base: str) -> str | None:
    checkpoint = found.take(base)
    return None if checkpoint is None else checkpoint.key


def test_identical_calls_take_successes_and_failures_in_the_order_of_the_calls() -> None:
    found = recorded("-a#0", "+a#2", "+a#1", "-a#3", "+b#0", "+a#10")
    assert [taken(found, "a") for _ in range(6)] == ["a#0", "a#1", "a#2", "a#3", "a#10", None]
    assert found.unused == 1
    assert taken(found, "b") == "b#0"
    assert found.unused == 0


def test_a_new_call_gets_a_key_that_no_call_has_had() -> None:
    found = recorded("+a#0", "-a#4")
    assert [found.new_key("a"), found.new_key("a"), found.new_key("b")] == ["a#5", "a#6", "b#0"]
