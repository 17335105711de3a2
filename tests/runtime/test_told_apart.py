"""Inputs that code can tell apart have keys of their own, and values come back as they were, or are refused by name.

The table of the page on durability has the others.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from pathlib import Path, PurePath, PureWindowsPath
from typing import Annotated, Any, Final, Literal, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PrivateAttr, SecretStr
from tests.runtime.attempts import Trial
from tests.runtime.hash_seeds import key_of
from tests.runtime.keys import bound, key

from durable_batches import PayloadError, durable_activity
from durable_batches.codec.codec import Codec
from durable_batches.lifecycle.records import CheckpointRecord
from durable_batches.runtime.attempt_result import AttemptFailed

BERLIN, PARIS = ZoneInfo("Europe/Berlin"), ZoneInfo("Europe/Paris")
PLUS_2 = timezone(timedelta(hours=2))
NOON = datetime(2031, 7, 1, 12)
TWICE = datetime(2031, 10, 26, 2, 30)
"""Local times in Berlin are twice the same then."""


class Unnamed(tzinfo):
    """A zone with two offsets, and no name."""

    def utcoffset(self, dt: datetime | None) -> timedelta | None:
        if dt is None:
            raise TypeError("no time")
        return timedelta(hours=1 + (dt.month > 6))

    def dst(self, dt: datetime | None) -> timedelta | None:
        return None

    def tzname(self, dt: datetime | None) -> str | None:
        return None


class Frozen(datetime):
    """As tests that stop the clock have them."""


class Exact(datetime):
    """Has nanoseconds, as those of data frames do."""

    nanosecond = 0

    def isoformat(self, sep: str = "T", timespec: str = "auto") -> str:
        return f"{super().isoformat(sep, timespec)}{self.nanosecond:03}"


def exact(nanosecond: int) -> Exact:
    value = Exact(2031, 7, 1)
    value.nanosecond = nanosecond
    return value


class Size(StrEnum):
    SMALL = "s"


class Level(IntEnum):
    LOW = 1


class Color(Enum):
    RED = "s"


class Text(str):
    __slots__ = ()


class Pair(NamedTuple):
    first: int = 1
    rate: Decimal = Decimal("1.0")


class Rates(BaseModel):
    rate: Decimal = Decimal("1.0")
    score: float = 0.0
    since: datetime = datetime(2031, 1, 1, tzinfo=UTC)
    last: deque[int] = deque()
    nested: list[Decimal] = [Decimal(1)]


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    _cache: int = PrivateAttr(0)


def with_cache(value: int) -> Open:
    model = Open()
    model._cache = value  # pyright: ignore[reportPrivateUsage]
    return model


@dataclass
class Job:
    text: str = ""
    note: str = field(default="", compare=False)


def count() -> Iterator[int]:
    yield 1


def three() -> int:
    return 3


class Row(NamedTuple):
    annotation: Any
    values: list[Any]
    back: str
    """Of each value: = comes back as it was, ~ as an equal one of the annotated or builtin class, ! is refused."""
    keys: str = ""
    """Which values share a key: those with one letter; empty: none do."""


APART: Final[list[Row]] = [
    # times: the zone, fold, the seconds of an offset, what a class of its own has
    Row(
        datetime, [NOON, NOON.replace(tzinfo=PLUS_2), *(NOON.replace(tzinfo=zone) for zone in (BERLIN, PARIS))], "==!!"
    ),
    Row(datetime, [NOON.replace(tzinfo=Unnamed()), NOON.replace(tzinfo=BERLIN)], "!!"),
    Row(datetime, [TWICE, TWICE.replace(fold=1)], "=!"),
    Row(datetime, [TWICE.replace(tzinfo=BERLIN), TWICE.replace(tzinfo=BERLIN, fold=1)], "!!"),
    Row(datetime, [TWICE.replace(tzinfo=UTC), TWICE.replace(tzinfo=UTC, fold=1)], "=~"),
    Row(datetime, [NOON.replace(tzinfo=timezone(timedelta(seconds=second))) for second in (3600, 3601, 3602)], "=!!"),
    Row(
        datetime,
        [NOON.replace(tzinfo=zone) for zone in (UTC, ZoneInfo("UTC"), timezone(timedelta(0), "X"))],
        "===",
        "aaa",
    ),
    Row(datetime, [datetime(2031, 7, 1), Frozen(2031, 7, 1), exact(1), exact(2)], "=~~~", "aabc"),
    Row(time, [time(1), time(1, fold=1), time(1, tzinfo=UTC), time(1, tzinfo=PLUS_2), time(1, tzinfo=BERLIN)], "=!==!"),
    Row(set[datetime], [{NOON.replace(tzinfo=PLUS_2)}, {NOON.replace(tzinfo=BERLIN)}], "=!"),
    Row(dict[datetime, int], [{NOON.replace(tzinfo=PLUS_2): 1}, {NOON.replace(tzinfo=BERLIN): 1}], "=!"),
    Row(dict[str, list[time]], [{"x": [time(1)]}, {"x": [time(1, fold=1)]}], "=!"),
    Row(Any, [[NOON], [NOON.replace(fold=1)], [NOON.replace(tzinfo=BERLIN)], [NOON.replace(tzinfo=PLUS_2)]], "!!!!"),
    Row(Any, [{NOON.replace(tzinfo=BERLIN): 1}, {NOON.replace(tzinfo=PLUS_2): 1}], "!!"),
    Row(Any, [Rates(since=NOON.replace(tzinfo=PLUS_2)), Rates(since=NOON.replace(tzinfo=BERLIN))], "!!"),
    Row(date | datetime, [date(2031, 7, 1), datetime(2031, 7, 1)], "=="),
    Row(
        Annotated[datetime, PlainSerializer(lambda at: at.astimezone(UTC).isoformat())],
        [NOON.replace(tzinfo=PLUS_2), NOON.replace(tzinfo=BERLIN)],
        "~!",
        "aa",
    ),
    # containers
    Row(deque[int], [deque([1]), deque([1], 1), deque([1], 2)], "=!!"),
    Row(Any, [[1], deque([1]), deque([1], 1)], "=!!", "aab"),
    Row(Iterable[int], [count()], "~", "!"),
    Row(Any, [count()], "!", "!"),
    Row(defaultdict[str, int], [defaultdict(int, a=1), defaultdict(lambda: 0, a=1)], "=~", "aa"),
    Row(defaultdict[str, int], [defaultdict(three, a=1), defaultdict(None, a=1)], "!!", "aa"),
    Row(dict[str, int], [{"a": 1}, OrderedDict(a=1), defaultdict(int, a=1), Counter(a=1)], "=~~~", "aaaa"),
    Row(Any, [{"a": 1}, OrderedDict(a=1), defaultdict(int, a=1), Counter(a=1)], "=~~~", "aaaa"),
    Row(dict[str, int], [{"a": 1, "b": 2}, {"b": 2, "a": 1}], "==", "aa"),
    Row(OrderedDict[str, int], [OrderedDict(a=1, b=2), OrderedDict(b=2, a=1)], "=="),
    Row(Counter[str], [Counter(a=1), Counter(a=1, b=0)], "=="),
    Row(Any, [[1], (1,), {1}, frozenset({1})], "=!!!", "aaaa"),
    Row(Sequence[int], [[1], (1,)], "=!", "aa"),
    Row(tuple[Any, ...], [(1, Decimal("1.0")), Pair()], "!!", "aa"),
    # numbers
    Row(Decimal, [Decimal("1"), Decimal("1.0"), Decimal("1.00"), Decimal("0"), Decimal("-0")], "====="),
    Row(float, [0.0, -0.0, 1.0, 1], "===~", "abcc"),
    Row(Any, [0.0, -0.0, 0, False], "===="),
    Row(int, [1, True, Level.LOW], "=~~", "aaa"),
    Row(Any, [1, True, 1.0, Level.LOW], "===~", "abca"),
    Row(Literal[1, True], [1, True], "=="),
    Row(complex, [1j, complex(-0.0, 1), complex(1, -0.0), 1 + 0j], "=!=="),
    Row(Fraction, [Fraction(1, 2), Fraction(1, 3)], "=="),
    Row(Rates, [Rates(), Rates(rate=Decimal("1.00")), Rates(score=-0.0), Rates(nested=[Decimal("1.0")])], "===="),
    Row(Rates, [Rates(), Rates(since=datetime(2031, 1, 1, 2, tzinfo=PLUS_2)), Rates(last=deque(maxlen=1))], "==!"),
    Row(Pair, [Pair(), Pair(rate=Decimal("1.00"))], "=="),
    Row(timedelta, [timedelta(0), timedelta(microseconds=-1), timedelta(999999999, microseconds=1)], "==="),
    # texts
    Row(str, ["s", Text("s"), Size.SMALL], "=~~", "aaa"),
    Row(Any, ["s", Text("s"), Size.SMALL, Color.RED, Path("s")], "=~~!!", "aaaaa"),
    Row(str, ["\u00e9", "e\u0301"], "=="),
    Row(re.Pattern[str], [re.compile("a"), re.compile("a", re.IGNORECASE), re.compile("(?i)a")], "=!="),
    Row(Any, [re.compile("a"), re.compile("a", re.IGNORECASE)], "!!"),
    Row(PurePath, [PurePath("a"), PureWindowsPath("a")], "=!", "aa"),
    Row(UUID, [UUID(int=1), UUID(int=1, version=4)], "=="),
    Row(Any, [b"a", bytearray(b"a"), "YQ=="], "!!=", "aaa"),
    Row(Any, [memoryview(b"a"), range(3), PureWindowsPath("a"), ValueError("a"), BERLIN], "!!!!!", "!!!!!"),
    # models and data classes
    Row(Open, [Open(), *(Open.model_validate({"a": value}) for value in (1, True, 1.0))], "===="),
    Row(Open, [Open(), with_cache(1)], "=~", "aa"),
    Row(Job, [Job(), Job(note="a"), Job(note="b")], "==="),
    Row(Rates, [Rates(), Rates(score=0.0)], "==", "aa"),
]


@pytest.mark.parametrize("row", APART, ids=range(len(APART)))
def test_inputs_that_code_can_tell_apart_have_keys_of_their_own_or_are_in_the_table(row: Row) -> None:
    letters = row.keys or "".join(map(chr, range(ord("a"), ord("a") + len(row.values))))
    keys: dict[str, set[str]] = {}
    for value, letter in zip(row.values, letters, strict=True):
        if letter == "!":
            with pytest.raises(PayloadError, match=r"argument 'value' .* at \$"):
                key_of(row.annotation, value)
        else:
            keys.setdefault(letter, set()).add(key_of(row.annotation, value))
    assert all(len(own) == 1 for own in keys.values())
    assert len(set[str]().union(*keys.values())) == len(keys)


@pytest.mark.parametrize("row", APART, ids=range(len(APART)))
def test_values_come_back_as_they_were_or_are_refused_or_are_in_the_table(row: Row) -> None:
    found = ""
    for value in row.values:
        try:
            _, read = Codec[Any](row.annotation, "value").recoded(value)
        except PayloadError:
            found += "!"
        else:
            found += "=" if _shown(read) == _shown(value) else "~"
    assert found == row.back


def _shown(value: Any) -> str:
    if isinstance(value, datetime | time):
        return f"{type(value).__name__} {value.isoformat()} {value.fold}"
    if isinstance(value, Open):
        return f"{value!r} {value.__pydantic_private__}"
    # The class of a fixed offset is not kept.
    offset = r"TzInfo\((\d+)\)|datetime\.timezone\(datetime\.timedelta\(seconds=(\d+)\)\)"
    shown = re.sub(offset, r"\1\2", repr(value)).replace("datetime.timezone.utc", "0")
    return f"{type(value).__name__} {shown}"


def test_a_number_that_json_does_not_have_is_found_in_a_deque() -> None:
    with pytest.raises(PayloadError, match=r"at \$\[1\]: nan is no JSON number"):
        Codec[Any](deque[float], "value").encode(deque([1.0, float("nan")]))


# ---- parameters with defaults --------------------------------------------------------------------------------------

MIDNIGHT: Final = datetime(2031, 1, 1, tzinfo=UTC)


@durable_activity
async def price(rate: Decimal = Decimal("1.0"), score: float = 0.0, since: datetime = MIDNIGHT) -> str:
    return f"{rate} {score} {since}"


def test_an_argument_that_only_equals_its_default_is_part_of_the_key() -> None:
    others = [
        key(price, Decimal("1.00")),
        key(price, score=-0.0),
        key(price, since=datetime(2031, 1, 1, 2, tzinfo=PLUS_2)),
    ]
    assert len({key(price), *others}) == 4
    assert key(price) == key(price, Decimal("1.0"), 0.0, datetime(2031, 1, 1, tzinfo=ZoneInfo("UTC")))


# ---- what was recorded before --------------------------------------------------------------------------------------


@durable_activity
async def look_at(at: datetime) -> str:
    return f"run {at.tzinfo}"


IN_BERLIN, AT_PLUS_2 = NOON.replace(tzinfo=BERLIN), NOON.replace(tzinfo=PLUS_2)


def record(base: str, value: str, stage: int | None, occurrence: int = 0) -> CheckpointRecord:
    return CheckpointRecord(f"{base}#{occurrence}", "succeeded", f'"{value}"'.encode(), stage)


async def test_what_0_2_0_recorded_is_found_and_not_what_was_recorded_since_of_another_input() -> None:
    async def body() -> list[str]:
        return [await look_at(IN_BERLIN), await look_at(AT_PLUS_2), await look_at(IN_BERLIN)]

    base = key(look_at, AT_PLUS_2)
    assert bound(look_at, IN_BERLIN).base_key_before({}) == base != key(look_at, IN_BERLIN)
    assert bound(price, Decimal("1.00")).base_key_before({}) == key(price)
    # 0.2.0 did not say in which stage it recorded.
    checkpoints = [record(base, "plus 2", -1), record(base, "as of 0.2.0", None, 1)]
    assert await Trial(checkpoints=checkpoints).value(body) == ["as of 0.2.0", "plus 2", "run Europe/Berlin"]


# ---- secrets -------------------------------------------------------------------------------------------------------


class Login(BaseModel):
    user: str
    token: SecretStr = Field(repr=False)


@durable_activity
async def fetch(token: SecretStr) -> int:
    return len(token.get_secret_value())


@durable_activity
async def log_in(login: Login) -> int:
    return len(login.token.get_secret_value())


async def test_two_secrets_are_not_answered_by_one_result() -> None:
    """They are no part of a key: a new token invalidates nothing, and no digest of one is stored."""
    assert key(fetch, SecretStr("one")) == key(fetch, SecretStr("other"))

    async def equal() -> list[int]:
        return [await fetch(SecretStr("one")), await fetch(SecretStr("one"))]

    async def different() -> list[int]:
        return [await fetch(SecretStr("one")), await fetch(SecretStr("other"))]

    async def within() -> list[int]:
        return [await log_in(Login(user="a", token=SecretStr(token))) for token in ("one", "other")]

    assert await Trial().value(equal) == [3, 3]
    for body in (different, within):
        ended = await Trial().end(body)
        assert isinstance(ended, AttemptFailed)
        assert isinstance(ended.error, PayloadError)
        assert "with another secret" in str(ended.error)
        assert "other'" not in str(ended.error)
