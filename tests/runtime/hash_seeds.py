"""Run as a script: prints the checkpoint keys of calls whose arguments Python orders at random, by its hash seed."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, RootModel, SerializeAsAny, field_serializer, model_serializer
from typing_extensions import TypedDict

from durable_batches.runtime.activity import durable_activity
from durable_batches.runtime.bound_call import BoundCall

T = TypeVar("T")
NAMES = {"ada", "bela", "cleo", "dana", "emil", "fritz", "gisa", "hans"}


class Color(Enum):
    RED = "red"
    BLUE = "blue"
    GREEN = "green"


class Tags(BaseModel):
    names: set[str] = set()
    counts: dict[str, int] = {}


class Nested(BaseModel):
    tags: list[Tags] = []
    inner: Nested | None = None


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    names: set[str] = set()


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    names: set[str] = set()


class OwnField(BaseModel):
    names: set[str]

    @field_serializer("names")
    def _names(self, value: set[str]) -> Any:
        return {name.upper() for name in value}


class OwnModel(BaseModel):
    names: set[str]

    @model_serializer
    def _whole(self) -> dict[str, Any]:
        return {"them": self.names}


class Names(RootModel[set[str]]):
    pass


class Box(BaseModel, Generic[T]):
    value: T


class Pair(NamedTuple):
    names: frozenset[str]
    tags: Tags


class Movie(TypedDict):
    names: set[str]


@dataclass
class Data:
    names: frozenset[str] = frozenset()
    tags: list[Tags] = field(default_factory=list[Tags])


class Odd(BaseModel):
    """Its fields are named as the parts of pydantic's schemas are."""

    metadata: set[str] | list[str]
    default: Tags
    cls: dict[str, int]
    type: Movie


class Handle:
    """No data."""


@dataclass
class Job:
    """Cannot be recorded, because of one of its annotations; what it holds can."""

    names: set[str]
    handle: Handle | None = None


TAGS = Tags(names=NAMES, counts=dict.fromkeys(NAMES, 1))
TIMES = {datetime(2031, 7, 1, tzinfo=ZoneInfo(f"Europe/{city}")) for city in ("Berlin", "Paris", "Rome")}


class Rates(BaseModel):
    """Its fields equal their defaults."""

    rate: Decimal = Decimal("1.0")
    since: datetime = datetime(2031, 1, 1, tzinfo=ZoneInfo("Europe/Berlin"))


DATA = Data(frozenset(NAMES), [TAGS])

ARGUMENTS: dict[str, tuple[Any, Any]] = {
    "set": (set[str], NAMES),
    "frozenset": (frozenset[str], frozenset(NAMES)),
    "optional set": (set[str] | None, NAMES),
    "set of bytes": (set[bytes], {name.encode() for name in NAMES}),
    "set of tuples": (set[tuple[str, int]], {(name, 1) for name in NAMES}),
    "set of sets": (set[frozenset[str]], {frozenset(NAMES), frozenset({"x", "y"}), frozenset[str]()}),
    "set of enums": (set[Color], set(Color)),
    "list of sets": (list[set[str]], [NAMES]),
    "dict from a set": (dict[str, int], {name: len(name) for name in NAMES}),
    "dict of sets": (dict[str, set[str]], dict.fromkeys(NAMES, NAMES)),
    "dict with other keys": (dict[tuple[str, ...], int], {(name,): 1 for name in NAMES}),
    "defaultdict": (defaultdict[str, set[str]], defaultdict[str, set[str]](set, dict.fromkeys(NAMES, NAMES))),
    "Counter": (Counter[str], Counter(NAMES)),
    "Mapping": (Mapping[str, set[str]], dict.fromkeys(NAMES, NAMES)),
    "Sequence": (Sequence[set[str]], [NAMES]),
    "model": (Tags, TAGS),
    "nested model": (Nested, Nested(tags=[TAGS], inner=Nested(tags=[TAGS]))),
    "model with others' fields": (Open, Open.model_validate(dict.fromkeys(NAMES, NAMES))),
    "model with its own serializer": (OwnModel, OwnModel(names=NAMES)),
    "field with its own serializer": (OwnField, OwnField(names=NAMES)),
    "root model": (Names, Names(NAMES)),
    "generic model": (Box[set[str]], Box[set[str]](value=NAMES)),
    "generic model of anything": (Box[Any], Box[Any](value=NAMES)),
    "union": (Cat | Dog, Dog(names=NAMES)),
    "union of containers": (set[str] | list[str], NAMES),
    "discriminated union": (Annotated[Cat | Dog, Field(discriminator="kind")], Dog(names=NAMES)),
    "named tuple": (Pair, Pair(frozenset(NAMES), TAGS)),
    "set, whatever it holds": (SerializeAsAny[set[str]], NAMES),
    "iterable": (Iterable[str], NAMES),
    "typed dict": (Movie, {"names": NAMES}),
    "dataclass": (Data, DATA),
    "fields with odd names": (
        Odd,
        Odd(metadata=NAMES, default=TAGS, cls=dict.fromkeys(NAMES, 1), type={"names": NAMES}),
    ),
    "anything: set": (Any, NAMES),
    "anything: containers": (Any, {"a": [NAMES, (NAMES,)], "b": dict.fromkeys(NAMES, NAMES)}),
    "anything: model": (Any, [{"a": TAGS}]),
    "anything: dataclass": (Any, DATA),
    "anything: dataclass that cannot be recorded": (Any, [Job(NAMES)]),
    "anything: deque": (Any, deque([NAMES])),
    "anything: object": (object, [DATA, {"a": NAMES}]),
    "times in zones": (set[datetime], TIMES),
    "anything: times in zones": (Any, [TIMES, Rates()]),
    "dict of anything": (dict[str, Any], dict.fromkeys(NAMES, TAGS)),
}


def key_of(annotation: Any, value: Any) -> str:
    async def activity(value: Any) -> None: ...

    activity.__annotations__["value"] = annotation
    decorated = durable_activity(activity)
    return BoundCall(decorated, decorated.definition, (value,), {}).base_key()


if __name__ == "__main__":
    json.dump({name: key_of(*argument) for name, argument in ARGUMENTS.items()}, sys.stdout)
