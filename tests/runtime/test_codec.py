from __future__ import annotations

import math
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from ipaddress import IPv4Address
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, TypeVar
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    AliasPath,
    AnyUrl,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    JsonValue,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    computed_field,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypedDict

from durable_batches import ActivityDefinitionError, PayloadError, PayloadTooLargeError
from durable_batches.codec.codec import Codec

T = TypeVar("T")

SECRET = "hunter2-is-my-password"


class Color(Enum):
    RED = "red"
    NUMBER = 7


class Size(StrEnum):
    SMALL = "s"


class Level(IntEnum):
    LOW = 1


class Point(BaseModel):
    x: int
    y: int = 0


class Vector(BaseModel):
    """Has the fields of `Point`."""

    x: int
    y: int = 0


class Blob(BaseModel):
    data: bytes
    more: list[bytes] = []


class HexBlob(BaseModel):
    """A configuration of its own, which writes bytes in another way."""

    model_config = ConfigDict(ser_json_bytes="hex", val_json_bytes="hex")
    data: bytes


class TextBlob(BaseModel):
    model_config = ConfigDict(ser_json_bytes="utf8", val_json_bytes="utf8", ser_json_inf_nan="null")
    data: bytes
    inner: HexBlob | None = None
    ratio: float = 0.0


@dataclass
class Node:
    value: int
    children: list[Node] = field(default_factory=list["Node"])
    data: bytes = b""


class Tree(BaseModel):
    value: bytes
    left: Tree | None = None
    right: Tree | None = None


class Pair(NamedTuple):
    first: bytes
    second: set[int] = set()  # noqa: RUF012


class Movie(TypedDict):
    title: str
    poster: NotRequired[bytes]


class Page(BaseModel, Generic[T]):
    items: list[T]
    next: str | None = None


class Aliased(BaseModel):
    user_name: str = Field(alias="userName")
    deep: int = Field(default=1, validation_alias=AliasPath("a", "b"), serialization_alias="out")


class Generated(BaseModel):
    model_config = ConfigDict(alias_generator=str.upper, serialize_by_alias=True, extra="forbid")
    one_name: int


@pydantic_dataclass
class AliasedData:
    one: int = Field(alias="ONE")


class AliasedDict(TypedDict):
    one: Annotated[int, Field(alias="ONE")]


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    x: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def doubled(self) -> int:
        return 2 * self.x


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    x: int = 0


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    when: datetime
    tags: frozenset[str]
    pair: tuple[int, str]
    data: bytes


class Validated(BaseModel):
    """Python code between the JSON and the fields, in every place that pydantic has for it."""

    before: bytes
    wrapped: set[bytes]
    whole: tuple[int, ...]

    @field_validator("before", mode="before")
    @classmethod
    def _before(cls, value: Any) -> Any:
        return value

    @field_validator("wrapped", mode="wrap")
    @classmethod
    def _wrap(cls, value: Any, handler: Any) -> Any:
        return handler(value)

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, data: Any) -> Any:
        return data


class Cat(BaseModel):
    kind: Literal["cat"] = Field("cat", alias="type")
    age: int


class Dog(BaseModel):
    kind: Literal["dog"] = Field("dog", alias="type")
    age: int


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


class Number(BaseModel):
    value: int


class Sum(BaseModel):
    left: Number | Sum | Product
    right: Number | Sum | Product


class Product(BaseModel):
    left: Number | Sum | Product
    right: Number | Sum | Product


class Text(RootModel[str]):
    pass


NOT_UTF8 = b"\xff\xfe\x00\x80"


class Case(NamedTuple):
    annotation: Any
    value: Any


def numbered(cases: Sequence[tuple[Any, ...]]) -> list[str]:
    """Names of test cases that are all different, and the same in every process."""
    return [f"{number}-{str(case[0]).replace(__name__ + '.', '')[:40]}" for number, case in enumerate(cases)]


class Parts(BaseModel):
    type: str
    ref: str | None = None
    cls: Any = None
    metadata: dict[str, Any] = {}
    default: str = ""


class Typed(TypedDict):
    type: Literal["a", "b"]
    fields: list[bytes]


ROUND_TRIPS = [
    Case(Point, Point(x=1, y=2)),
    Case(list[Point], [Point(x=1)]),
    Case(Point | None, None),
    Case(Point | None, Point(x=1)),
    Case(dict[str, Point | None], {"a": None, "b": Point(x=1)}),
    Case(Node, Node(1, [Node(2, data=NOT_UTF8), Node(3, [Node(4)])])),
    Case(Tree, Tree(value=NOT_UTF8, left=Tree(value=b""), right=Tree(value=b"x", left=Tree(value=NOT_UTF8)))),
    Case(Pair, Pair(NOT_UTF8, {3, 1, 2})),
    Case(list[Pair], [Pair(b"")]),
    Case(Movie, {"title": "Metropolis", "poster": NOT_UTF8}),
    Case(Movie, {"title": "M"}),
    Case(Page[Point], Page[Point](items=[Point(x=1)], next="2")),
    Case(Page[Page[bytes]], Page[Page[bytes]](items=[Page[bytes](items=[NOT_UTF8])])),
    # bytes, wherever they are
    Case(bytes, NOT_UTF8),
    Case(bytes | None, NOT_UTF8),
    Case(Blob, Blob(data=NOT_UTF8, more=[b"", NOT_UTF8])),
    Case(HexBlob, HexBlob(data=NOT_UTF8)),
    Case(list[TextBlob], [TextBlob(data=NOT_UTF8, inner=HexBlob(data=NOT_UTF8))]),
    Case(tuple[bytes, ...], (NOT_UTF8, b"a")),
    Case(set[bytes], {NOT_UTF8, b"a"}),
    Case(dict[bytes, bytes], {NOT_UTF8: NOT_UTF8}),
    Case(Validated, Validated(before=NOT_UTF8, wrapped={NOT_UTF8}, whole=(1, 2))),
    # times
    Case(datetime, datetime(2026, 11, 22, 1, 2, 3, 456789)),
    Case(datetime, datetime(2026, 11, 22, tzinfo=UTC)),
    Case(datetime, datetime(2026, 11, 22, tzinfo=timezone(timedelta(hours=5, minutes=30)))),
    Case(date, date(1, 1, 1)),
    Case(time, time(23, 59, 59, 999999)),
    Case(timedelta, timedelta(days=-3, microseconds=1)),
    Case(timedelta, timedelta(days=400, hours=1, microseconds=999999)),
    # numbers
    Case(Decimal, Decimal("1.10")),
    Case(Decimal, Decimal("-1E+30")),
    Case(int, 2**200),
    Case(float, 0.1 + 0.2),
    Case(float, sys.float_info.max),
    Case(float, 5e-324),
    Case(complex, 1 + 2j),
    Case(bool, True),
    Case(type(None), None),
    # other single values
    Case(UUID, UUID(int=2**127)),
    Case(Path, Path("a/ü b")),
    Case(PurePosixPath, PurePosixPath("/x")),
    Case(IPv4Address, IPv4Address("1.2.3.4")),
    Case(AnyUrl, AnyUrl("https://example.org/a?b=c")),
    Case(str, "\x00\x1f  \U0001f600 NaN Infinity �"),
    Case(Color, Color.RED),
    Case(Color, Color.NUMBER),
    Case(Size, Size.SMALL),
    Case(Level, Level.LOW),
    Case(Literal["a", 1, True], 1),
    # containers
    Case(set[int], {1, 2}),
    Case(frozenset[tuple[int, str]], frozenset({(1, "a")})),
    Case(tuple[int, str, bytes], (1, "a", NOT_UTF8)),
    Case(tuple[()], ()),
    Case(deque[int], deque([1, 2])),
    Case(OrderedDict[str, int], OrderedDict(b=1, a=2)),
    Case(defaultdict[str, list[int]], defaultdict(list, a=[1])),
    Case(Counter[str], Counter("abca")),
    Case(Sequence[int], [1, 2]),
    Case(dict[int, str], {1: "a", -5: "b"}),
    Case(dict[UUID, int], {UUID(int=5): 1}),
    Case(dict[date, int], {date(2026, 1, 1): 1}),
    Case(dict[Size, int], {Size.SMALL: 1}),
    Case(dict[str, Any], {"a": [1, 2.5, None, True, {"b": "c"}]}),
    # models with a will of their own
    Case(Aliased, Aliased.model_validate({"userName": "ada", "a": {"b": 5}})),
    Case(list[Aliased], [Aliased.model_validate({"userName": "ada"})]),
    Case(Generated, Generated.model_validate({"ONE_NAME": 1})),
    Case(AliasedData, AliasedData(ONE=1)),
    Case(AliasedDict, {"one": 1}),
    Case(Computed, Computed(x=2)),
    Case(Open, Open.model_validate({"x": 1, "y": [1, "z"]})),
    Case(Strict, Strict(when=datetime(2026, 1, 1), tags=frozenset({"a"}), pair=(1, "b"), data=NOT_UTF8)),
    Case(Text, Text("a")),
    Case(Json[list[int]], [1, 2]),
    # unions whose members JSON tells apart
    Case(int | str, "1"),
    Case(int | str, 1),
    Case(int | float, 1.0),
    Case(int | float, 1),
    Case(bool | int, 1),
    Case(int | bool, True),
    Case(Decimal | float, Decimal("1.5")),
    Case(Decimal | float, 1.5),
    Case(Point | list[Point] | str, [Point(x=1)]),
    Case(Pet, Dog(type="dog", age=1)),
    Case(list[Pet], [Dog(type="dog", age=1), Cat(type="cat", age=2)]),
    # unions whose members look alike there
    Case(Point | Vector, Point(x=1)),
    Case(Point | Vector, Vector(x=1)),
    Case(Vector | Point | None, None),
    Case(list[Point | Vector | str], [Vector(x=1), "a", Point(x=1)]),
    Case(Page[Point | Vector], Page[Point | Vector](items=[Vector(x=1)])),
    Case(Page[Point] | Page[Vector], Page[Vector](items=[Vector(x=1)])),
    Case(Point | dict[str, int], {"x": 1}),
    Case(Point | dict[str, int], Point(x=1)),
    Case(Node | Point, Node(1)),
    Case(Sum, Sum(left=Product(left=Number(value=1), right=Number(value=2)), right=Number(value=3))),
    Case(Number | Sum | Product, Product(left=Number(value=1), right=Number(value=2))),
    Case(datetime | str, "2026-11-22T00:00:00"),
    Case(datetime | str, datetime(2026, 11, 22)),
    Case(date | datetime, datetime(2026, 11, 22)),
    Case(date | datetime, date(2026, 11, 22)),
    Case(UUID | str, str(UUID(int=1))),
    Case(Decimal | str, "1.5"),
    Case(Decimal | str, Decimal("1.5")),
    Case(Path | str, "a"),
    Case(Path | str, Path("a")),
    Case(bytes | str, "YWJj"),
    Case(bytes | str, NOT_UTF8),
    Case(AnyUrl | str, AnyUrl("https://example.org/")),
    Case(AnyUrl | str, "https://example.org/"),
    Case(Size | str, Size.SMALL),
    Case(Size | str, "s"),
    Case(Level | int, Level.LOW),
    Case(Level | int, 1),
    Case(Text | str, Text("a")),
    Case(set[int] | list[int], {1}),
    Case(set[int] | list[int], [1]),
    Case(tuple[int, ...] | list[int], (1,)),
    Case(Pair | list[bytes], Pair(NOT_UTF8)),
    Case(dict[str, bytes | str], {"a": NOT_UTF8, "b": "b"}),
    Case(Annotated[str, AfterValidator(str.upper)] | datetime, "A"),
    Case(Literal["2026-11-22"] | date, "2026-11-22"),
    Case(Literal["2026-11-22"] | date, date(2026, 11, 22)),
    Case(Literal["2026-11-22", 5] | date, "2026-11-22"),
    Case(Literal["2026-11-22", 5] | date, date(2026, 11, 22)),
    # a member that may be anything
    Case(Point | Any, Point(x=1)),
    Case(Point | Any, {"x": 1}),
    Case(JsonValue | Point, Point(x=1)),
    Case(JsonValue | Point, ["Point", {"x": 1}]),
    Case(JsonValue | Point, ["?", {"x": 1}]),
    Case(JsonValue | Point | Vector, {"x": 1}),
    Case(dict[str, Point | Any], {"a": Point(x=1), "b": {"x": 1}, "c": None}),
    # fields whose names are keys of core schemas
    Case(Parts, Parts(type="a", ref="b", cls=[1], metadata={"type": "a"}, default="c")),
    Case(Typed, {"type": "a", "fields": [NOT_UTF8]}),
]


@pytest.mark.parametrize("case", ROUND_TRIPS, ids=numbered(ROUND_TRIPS))
def test_a_value_comes_back_as_what_it_was(case: Case) -> None:
    codec = Codec[Any](case.annotation, "value")
    payload, value = codec.recoded(case.value)
    assert value == case.value
    assert same_classes(value, case.value)
    assert codec.encode(value) == payload or isinstance(case.value, set)


def same_classes(one: Any, other: Any) -> bool:
    """Whether they are of one class down to their smallest parts; equality does not tell 1 from True."""
    if type(one) is not type(other):
        return False
    if isinstance(one, BaseModel):
        return all(same_classes(value, getattr(other, name)) for name, value in one)
    if isinstance(one, dict):
        return all(same_classes(value, other[key]) for key, value in one.items())  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(one, list | tuple):
        return all(map(same_classes, one, other))  # pyright: ignore[reportUnknownArgumentType]
    return True


# ---- Hypothesis --------------------------------------------------------------------------------------------


class Everything(BaseModel):
    number: int
    ratio: float
    name: str
    data: bytes
    when: datetime
    day: date
    long: timedelta
    exact: Decimal
    key: UUID
    color: Color
    parts: list[Point | Vector]
    lookup: dict[str, bytes | str | None]
    tags: frozenset[str]
    shape: tuple[int, bytes]


finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(codec="utf-8"))
# With `fold=1`, times are refused.
moments = st.datetimes(timezones=st.none() | st.just(UTC)).map(lambda at: at.replace(fold=0))
points = st.builds(Point, x=st.integers(), y=st.integers())
vectors = st.builds(Vector, x=st.integers(), y=st.integers())


@given(
    st.builds(
        Everything,
        number=st.integers(),
        ratio=finite,
        name=text,
        data=st.binary(),
        when=moments,
        long=st.timedeltas(),
        exact=st.decimals(allow_nan=False, allow_infinity=False),
        parts=st.lists(points | vectors),
        lookup=st.dictionaries(text, st.none() | st.binary() | text),
        tags=st.frozensets(text),
        shape=st.tuples(st.integers(), st.binary()),
    )
)
def test_any_model_comes_back_as_it_was(value: Everything) -> None:
    _, read = EVERYTHING.recoded(value)
    assert read == value
    assert same_classes(read, value)


EVERYTHING = Codec[Everything](Everything, "value")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | text,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner),
)


@given(json_values)
def test_any_json_comes_back_from_any(value: Any) -> None:
    assert ANYTHING.recoded(value)[1] == value


ANYTHING = Codec[Any](Any, "value")


@given(st.recursive(st.floats() | st.text(st.characters(categories=["Cs", "Ll"])), st.lists))
def test_what_is_not_refused_comes_back(value: Any) -> None:
    try:
        _, read = ANYTHING.recoded(value)
    except PayloadError:
        return
    assert read == value


# ---- refusals ----------------------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def within_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def within_itself_by_way_of_a_dict() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["again"] = [value]
    return value


class Foreign:
    pass


class Refused(NamedTuple):
    annotation: Any
    value: Any
    path: str


REFUSED = [
    # numbers that JSON does not have
    Refused(float, math.nan, "$"),
    Refused(float | None, math.inf, "$"),
    Refused(list[float | None], [1.0, None, -math.inf], "$[2]"),
    Refused(Any, {"a": [1, {"b": math.nan}]}, "$['a'][1]['b']"),
    Refused(TextBlob, TextBlob(data=b"", ratio=math.nan), "$.ratio"),
    Refused(Open, Open.model_validate({"y": math.nan}), "$.y"),
    Refused(dict[str, tuple[float, ...]], {"x": (0.0, math.inf)}, "$['x'][1]"),
    Refused(Decimal, Decimal("NaN"), "$"),
    Refused(list[Decimal], [Decimal("-Infinity")], "$[0]"),
    # text that UTF-8 cannot encode
    Refused(str, "a\ud800b", "$"),
    Refused(list[str], ["a", "\udfff"], "$[1]"),
    Refused(Movie, {"title": "\ud800"}, "$['title']"),
    Refused(Any, {"a": {"b": "\ud800"}}, "$['a']['b']"),
    Refused(dict[str, int], {"\ud800": 1}, "$"),
    Refused(Any, [{"\ud800": 1}], "$[0]"),
    Refused(Node, Node(1, [Node(2, data="\ud800")]), "$.children[0].data"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    # what is no data
    Refused(Any, object(), "$"),
    Refused(Any, {"a": [Foreign()]}, "$['a'][0]"),
    Refused(dict[str, Any], {"a": lambda: None}, "$['a']"),
    Refused(Any, [1, within_itself()], "$[1][0]"),
    # too deep, or endless
    Refused(Any, nested(300), "$[0][0]"),
    Refused(Any, nested(100_000), "$[0][0]"),
    Refused(Any, within_itself(), "$[0][0]"),
    Refused(Any, within_itself_by_way_of_a_dict(), "$['again'][0]['again']"),
    # what is not of its type
    Refused(Point, {"x": 1}, "$"),
    Refused(Point, Color.RED, "$"),
    Refused(int, SECRET, "$"),
    Refused(str, 5, "$"),
    Refused(list[int], (1, 2), "$"),
    Refused(list[int], [1, SECRET], "$"),
    Refused(Point, None, "$"),
    Refused(None, 0, "$"),
    Refused(Point | Vector, Blob(data=b""), "$"),
    Refused(Pet, Point(x=1), "$"),
    Refused(Movie, {"title": 5}, "$"),
    Refused(Literal["a"], "b", "$"),
    # what could not be read again
    Refused(dict[tuple[int, int], str], {(1, 2): "a"}, "$"),
    Refused(dict[Color, str], {Color.NUMBER: "a"}, "$"),
    Refused(Any, nested(210), "$"),
]


@pytest.mark.parametrize("case", REFUSED, ids=numbered(REFUSED))
def test_what_json_cannot_hold_is_refused_with_the_path_to_it(case: Refused) -> None:
    codec = Codec[Any](case.annotation, "the result of activity 'split'")
    with pytest.raises(PayloadError) as caught:
        codec.recoded(case.value)
    assert caught.value.what == "the result of activity 'split'"
    assert caught.value.path.startswith(case.path)
    assert str(caught.value).startswith("the result of activity 'split' cannot be stored: at $")
    assert SECRET not in str(caught.value)
    assert len(str(caught.value)) < 700


class Vault(BaseModel):
    name: str
    password: str
    pin: int = 0


class Talkative(BaseModel):
    x: int

    @field_serializer("x")
    def _x(self, value: int) -> int:
        raise KeyError(value)


WITH_A_SECRET: list[tuple[Any, Any]] = [
    (Vault, Vault.model_construct(name="a", password=SECRET, pin="no number")),
    (Vault, Vault.model_construct(name=5, password=SECRET)),
    (Vault, {"name": "a", "password": SECRET}),
    (list[Vault], [Vault(name="a", password=SECRET), SECRET]),
    (dict[str, float], {"ok": 1.0, "bad": math.nan, "password": SECRET}),
    (Point | Vector, SECRET),
    (Point | Vector | int, [SECRET]),
    (Pet, Vault(name="a", password=SECRET)),
    (datetime, SECRET),
    (UUID, SECRET),
    (Any, [SECRET, object()]),
    (str, SECRET + "\ud800"),
    (bytes, SECRET),
    (Color, SECRET),
    (Literal["x"], SECRET),
    (tuple[int, int], (SECRET, SECRET)),
]


@pytest.mark.parametrize(("annotation", "value"), WITH_A_SECRET, ids=numbered(WITH_A_SECRET))
def test_a_refusal_never_shows_values(annotation: Any, value: Any) -> None:
    with pytest.raises(PayloadError) as caught:
        Codec[Any](annotation, "value").recoded(value)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value)
    assert caught.value.__suppress_context__ or SECRET not in repr(caught.value.__context__)


def test_reading_another_type_is_refused_without_showing_the_value() -> None:
    payload = Codec[Any](dict[str, str], "value").encode({"x": SECRET, "y": SECRET})
    with pytest.raises(PayloadError, match=r"at \$\.x: Input should be a valid integer") as caught:
        Codec[Any](Point, "value").decode(payload)
    assert SECRET not in str(caught.value)


def test_python_code_of_the_type_that_fails_is_a_refusal() -> None:
    with pytest.raises(PayloadError):
        Codec[Any](Talkative, "value").encode(Talkative(x=1))

    class Picky(BaseModel):
        x: int

        @field_validator("x")
        @classmethod
        def _x(cls, value: int) -> int:
            raise KeyError(value)

    with pytest.raises(PayloadError, match="KeyError"):
        Codec[Any](Picky, "value").decode(b'{"x":1}')


def test_nesting_that_is_deep_but_not_endless_is_fine() -> None:
    assert ANYTHING.recoded(nested(150))[1] == nested(150)


def test_a_payload_over_the_limit_is_refused_with_both_sizes() -> None:
    codec = Codec[str](str, "a document of workflow 'read'", limit=1_000)
    assert codec.encode("x" * 998)
    with pytest.raises(PayloadTooLargeError, match=r"1,002 bytes encoded, over the limit of 1,000") as caught:
        codec.encode("x" * 1_000)
    assert (caught.value.size, caught.value.limit, caught.value.path) == (1_002, 1_000, "$")
    assert isinstance(caught.value, PayloadError)


def test_a_long_path_is_shortened() -> None:
    value: Any = math.nan
    for _ in range(60):
        value = {"a long key of a dict": value}
    with pytest.raises(PayloadError) as caught:
        ANYTHING.encode(value)
    assert len(caught.value.path) < 200
    assert "..." in caught.value.path


# ---- types that cannot be recorded -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "annotation", [Foreign, list[Foreign], dict[str, Foreign | None], "Undefined", range, type[int] | range]
)
def test_a_type_that_cannot_be_recorded_is_found_when_it_is_named(annotation: Any) -> None:
    with pytest.raises(ActivityDefinitionError, match=r"^value cannot be recorded"):
        Codec[Any](annotation, "value")


@pytest.mark.parametrize("annotation", [SecretStr, list[SecretBytes], dict[str, SecretStr | None], Secret[int]])
def test_a_secret_is_refused_since_it_would_be_masked(annotation: Any) -> None:
    with pytest.raises(ActivityDefinitionError, match="masked"):
        Codec[Any](annotation, "value")


def test_a_model_that_names_what_is_nowhere_is_found_when_it_is_named() -> None:
    class Unfinished(BaseModel):
        part: NotYetThere  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore[reportUndefinedVariable, reportUnknownVariableType]

    with pytest.raises(ActivityDefinitionError, match="NotYetThere"):
        Codec[Any](list[Unfinished], "value")


def test_a_model_with_a_secret_is_refused() -> None:
    class Login(BaseModel):
        user: str
        password: SecretStr

    with pytest.raises(ActivityDefinitionError, match="masked"):
        Codec[Any](list[Login], "value")


# ---- across versions of the code ---------------------------------------------------------------------------


def test_what_was_written_before_a_class_had_others_beside_it_is_read() -> None:
    payload = Codec[Any](Point, "value").encode(Point(x=1))
    assert Codec[Any](Point | Vector, "value").decode(payload) == Point(x=1)


def test_a_member_of_a_union_that_is_gone_is_refused() -> None:
    payload = Codec[Any](Point | Vector, "value").encode(Vector(x=1))
    with pytest.raises(PayloadError):
        Codec[Any](Point | Blob, "value").decode(payload)


def test_a_union_may_change_its_order() -> None:
    payload = Codec[Any](Point | Vector, "value").encode(Vector(x=1))
    assert Codec[Any](Blob | Vector | Point, "value").decode(payload) == Vector(x=1)
