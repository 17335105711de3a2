"""What does not come back as it was is refused with the path to it; what comes back equal is not."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, model_serializer
from typing_extensions import TypedDict

from durable_batches import ActivityDefinitionError, PayloadError
from durable_batches.codec.codec import Codec

T = TypeVar("T")

BERLIN = ZoneInfo("Europe/Berlin")


@dataclass
class Shape:
    name: str


@dataclass
class Square(Shape):
    side: int = 0


class Base(BaseModel):
    name: str = ""


class Derived(Base):
    size: int = 0


class Same(Base):
    """Has the fields of its base."""


class Page(BaseModel):
    text: str = ""
    image: bytes = Field(default=b"", exclude=True)
    bases: list[Base] = []
    shape: Shape | None = None
    whatever: Any = None


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Stripped(BaseModel):
    model_config = ConfigDict(str_strip_whitespace=True)
    text: str


class Partial(BaseModel):
    x: int = 0
    y: int = 0

    @model_serializer
    def _whole(self) -> dict[str, int]:
        return {"x": self.x}


class Recursive(BaseModel):
    inner: Recursive | None = None
    base: Base = Base()


class Box(BaseModel, Generic[T]):
    value: T


class Movie(TypedDict):
    title: str


class Pair(NamedTuple):
    first: Any
    second: int = 0


class Color(Enum):
    RED = "red"


class Size(StrEnum):
    SMALL = "s"


@dataclass
class Counted:
    x: int
    seen: int = field(default=0, init=False)


def counted(x: int, seen: int) -> Counted:
    value = Counted(x)
    value.seen = seen
    return value


def movie(**entries: Any) -> Any:
    return entries


class Dated(BaseModel):
    default: datetime


CHANGED: list[tuple[Any, Any, str, str]] = [
    # fields of subclasses
    (Shape, Square("a", 1), "$", "of type 'Square' comes back as one of type 'Shape'"),
    (Base, Derived(size=1), "$", "of type 'Derived' comes back as one of type 'Base'"),
    (Base, Same(), "$", "'Same'"),
    (list[Base], [Base(), Derived()], "$[1]", "'Derived'"),
    (dict[str, Shape], {"a": Shape("a"), "b": Square("b")}, "$['b']", "'Square'"),
    (tuple[int, Base], (1, Derived()), "$[1]", "'Derived'"),
    (Base | None, Derived(), "$", "'Derived'"),
    (Base | str, Derived(), "$", "'Derived'"),
    (Base | Shape, Square("a"), "$", "'Square'"),
    (Page, Page(bases=[Base(), Derived()]), "$.bases[1]", "'Derived'"),
    (Page, Page(shape=Square("a")), "$.shape", "'Square'"),
    (Recursive, Recursive(inner=Recursive(inner=Recursive(base=Derived()))), "$.inner.inner.base", "'Derived'"),
    (Box[Base], Box[Base](value=Derived()), "$.value", "'Derived'"),
    # what is not written
    (Page, Page(image=b"a"), "$.image", "not come back equal"),
    (list[Page], [Page(), Page(image=b"a")], "$[1].image", "not come back equal"),
    (Movie, movie(title="a", year=1), "$", "'year'"),
    (Counted, counted(1, 2), "$.seen", "not come back equal"),
    (Partial, Partial(x=1, y=2), "$.y", "not come back equal"),
    # what JSON does not have
    (Any, (1, 2), "$", "'tuple' comes back as one of type 'list'"),
    (list[Any], [1, (2,)], "$[1]", "'tuple'"),
    (list, [1, [(2,)]], "$[1][0]", "'tuple'"),
    (Sequence[int], (1, 2), "$", "'tuple'"),
    (dict[str, Any], {"a": {"b": datetime(2031, 1, 1)}}, "$['a']['b']", "'datetime' comes back as one of type 'str'"),
    (Any, date(2031, 1, 1), "$", "'date'"),
    (Any, [Decimal("1.5")], "$[0]", "'Decimal'"),
    (Any, {"a": UUID(int=1)}, "$['a']", "'UUID'"),
    (Any, [Path("a")], "$[0]", "'PosixPath'"),
    (Any, b"abc", "$", "'bytes'"),
    (Any, {1, 2}, "$", "'set'"),
    (Any, Base(), "$", "'Base' comes back as one of type 'dict'"),
    (Any, [Shape("a")], "$[0]", "'Shape'"),
    (Any, Color.RED, "$", "'Color'"),
    (Any, Pair(1), "$", "'Pair'"),
    (Pair, Pair((1,)), "$[0]", "'tuple'"),
    (Page, Page(whatever={"a": (1,)}), "$.whatever['a']", "'tuple'"),
    (Open, Open.model_validate({"a": (1,)}), "$.a", "'tuple'"),
    (Box[Any], Box[Any](value=Base()), "$.value", "'Base'"),
    # keys
    (Any, {1: "a"}, "$", "a key of type 'int' comes back as a text"),
    (Any, {"a": [{None: 1}]}, "$['a'][0]", "a key of type 'NoneType'"),
    (dict[Any, int], {1: 1}, "$", "a key of type 'int'"),
    (dict[Any, int], {1: 1, "1": 2}, "$", "a key of type 'int'"),
    (Any, {"x": {1: "a", "1": "b"}}, "$['x']", "a key of type 'int'"),
    (Mapping[Any, Any], {1.5: "a"}, "$", "a key of type 'float'"),
    # zones
    (datetime, datetime(2031, 7, 1, tzinfo=BERLIN), "$", "without its zone"),
    (list[datetime | None], [None, datetime(2031, 7, 1, tzinfo=BERLIN)], "$[1]", "without its zone"),
    (Dated, Dated(default=datetime(2031, 7, 1, tzinfo=BERLIN)), "$.default", "without its zone"),
    # what the type's own validation changes
    (Stripped, Stripped.model_construct(text=" a "), "$.text", "not come back equal"),
    (Annotated[str, AfterValidator(str.upper)], "a", "$", "not come back equal"),
    (Annotated[list[str], AfterValidator(sorted)], ["b", "a"], "$[0]", "not come back equal"),
]


@pytest.mark.parametrize(("annotation", "value", "path", "reason"), CHANGED, ids=range(len(CHANGED)))
def test_what_does_not_come_back_as_it_was_is_refused(annotation: Any, value: Any, path: str, reason: str) -> None:
    with pytest.raises(PayloadError) as caught:
        Codec[Any](annotation, "the result of activity 'split'").recoded(value)
    assert (caught.value.path, reason in caught.value.reason) == (path, True), str(caught.value)


class Cached(BaseModel):
    text: str
    _cache: dict[str, str] = PrivateAttr(default_factory=dict[str, str])


def cached(text: str) -> Cached:
    value = Cached(text=text)
    value._cache["a"] = "b"  # pyright: ignore[reportPrivateUsage]
    return value


@dataclass(eq=False)
class Incomparable:
    x: int
    when: datetime = datetime(2031, 1, 1)
    whatever: Any = None


class Raising:
    """Raises when it is compared."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value is ambiguous")

    __hash__ = object.__hash__


UNCHANGED: list[tuple[Any, Any]] = [
    (float, 1),
    (list[float], [1, True]),
    (int, True),
    (str, Size.SMALL),
    (dict[str, Any], {"a": Size.SMALL}),
    (dict[str, int], {Size.SMALL: 1}),
    (Mapping[str, int], OrderedDict(a=1)),
    (Box, Box[int](value=1)),
    (Cached, cached("a")),
    (Incomparable, Incomparable(1)),
    (Page, Page(image=b"", bases=[Base(name="a")], shape=Shape("b"), whatever={"a": [1, None]})),
    (datetime, datetime(2031, 7, 1, tzinfo=UTC)),
    (datetime, datetime(2031, 7, 1, tzinfo=ZoneInfo("UTC"))),
    (datetime, datetime(2031, 7, 1, tzinfo=timezone(timedelta(hours=2)))),
    (time, time(1, 2, 3)),
    (deque[Any], deque([1, "a"])),
    (Any, [10**400, 0.5, ""]),
    (Iterable[int], iter([1, 2])),
]


@pytest.mark.parametrize(("annotation", "value"), UNCHANGED, ids=range(len(UNCHANGED)))
def test_what_comes_back_equal_is_recorded(annotation: Any, value: Any) -> None:
    Codec[Any](annotation, "value").recoded(value)


def test_times_of_a_class_without_a_comparison_keep_their_zone() -> None:
    with pytest.raises(PayloadError, match=r"at \$\.when: a time comes back without its zone"):
        Codec[Any](Incomparable, "value").recoded(Incomparable(1, datetime(2031, 7, 1, tzinfo=BERLIN)))
    with pytest.raises(PayloadError, match=r"at \$\.whatever: a value of type 'tuple'"):
        Codec[Any](Incomparable, "value").recoded(Incomparable(1, whatever=(1,)))


def test_a_number_that_json_does_not_have_is_refused_in_a_literal() -> None:
    with pytest.raises(PayloadError, match="nan is no JSON number"):
        Codec[Any](Literal[math.nan], "value").recoded(math.nan)  # pyright: ignore


def test_a_model_that_could_never_be_read_is_refused_when_it_is_named() -> None:
    class Lost(BaseModel):
        text: str
        image: bytes = Field(exclude=True)

    with pytest.raises(ActivityDefinitionError, match=r"field 'image' of Lost is required, and never written"):
        Codec[Any](list[Lost], "the result of activity 'split'")


values_of_any = st.recursive(
    st.none() | st.integers() | st.text() | st.dates() | st.binary() | st.booleans(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner)
        | st.dictionaries(st.text() | st.integers() | st.none(), inner)
        | st.builds(Box[Any], value=inner)
    ),
    max_leaves=8,
)


@given(values_of_any)
def test_whatever_is_not_refused_comes_back_equal_to_its_smallest_parts(value: Any) -> None:
    codec = Codec[Any](Any, "value")
    try:
        _, read = codec.recoded(value)
    except PayloadError:
        return
    assert repr(read) == repr(value)
