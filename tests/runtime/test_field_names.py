"""Fields named as something in pydantic's schemas is: their values are told apart like all others'."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import pytest
from pydantic import BaseModel, Field, SecretStr
from tests.runtime.attempts import Trial
from tests.runtime.hash_seeds import key_of
from tests.runtime.keys import bound
from typing_extensions import TypedDict

from durable_batches import ActivityDefinitionError, PayloadError, durable_activity
from durable_batches.codec.codec import Codec
from durable_batches.lifecycle.records import CheckpointRecord
from durable_batches.runtime.bound_call import BoundCall


class Cat(BaseModel):
    name: str


class Dog(BaseModel):
    name: str


class Circle(BaseModel):
    kind: Literal["circle"] = "circle"


class Square(BaseModel):
    kind: Literal["square"] = "square"


class InMetadata(BaseModel):
    metadata: Cat | Dog


class InDefault(BaseModel):
    default: Annotated[Circle | Square, Field(discriminator="kind")]


class InCls(TypedDict):
    cls: Cat | Dog


class Ordered(BaseModel):
    metadata: dict[str, int]


DIFFERENT: Final[list[tuple[Any, Any, Any]]] = [
    (InMetadata, InMetadata(metadata=Cat(name="x")), InMetadata(metadata=Dog(name="x"))),
    (InDefault, InDefault(default=Circle()), InDefault(default=Square())),
    (InCls, InCls(cls=Cat(name="x")), InCls(cls=Dog(name="x"))),
    (list[InMetadata], [InMetadata(metadata=Cat(name="x"))], [InMetadata(metadata=Dog(name="x"))]),
]


@pytest.mark.parametrize(("annotation", "one", "other"), DIFFERENT)
def test_different_values_have_different_keys(annotation: Any, one: Any, other: Any) -> None:
    """Otherwise a call would be answered with the result of the other one."""
    assert key_of(annotation, one) != key_of(annotation, other)


def test_equal_values_have_equal_keys() -> None:
    one, other = Ordered(metadata={"a": 1, "b": 2}), Ordered(metadata={"b": 2, "a": 1})
    assert key_of(Ordered, one) == key_of(Ordered, other)


# ---- what was recorded before ------------------------------------------------------------------------------------

KEY_OF_0_2_0: Final = "read:1:6cb16795f19a42900daa615d"
"""Of `read(Ordered(metadata={"b": 2, "a": 1}))`, as 0.2.0 has made it: in the order of the dict."""


@durable_activity
async def read(value: Ordered) -> str:
    return "run"


def recorded(*keys: str) -> list[CheckpointRecord]:
    return [CheckpointRecord(key, "succeeded", b'"recorded"') for key in keys]


VALUE: Final = Ordered(metadata={"b": 2, "a": 1})


def test_a_call_has_the_key_that_it_was_recorded_with_beside_its_own() -> None:
    call = bound(read, VALUE)
    assert call.base_key_before({}) == KEY_OF_0_2_0 != call.base_key()
    assert bound(read.with_options(key="own"), VALUE).base_key_before({}) is None


async def test_what_an_earlier_version_recorded_is_found_once() -> None:
    async def body() -> list[str]:
        return [await read(VALUE), await read(VALUE), await read(VALUE)]

    key = bound(read, VALUE).base_key()
    trial = Trial(checkpoints=recorded(f"{KEY_OF_0_2_0}#0", f"{key}#0", "another:1:0#0"))
    assert await trial.value(body) == ["recorded", "recorded", "run"]


async def test_without_records_no_other_key_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> str:
        return await read(VALUE)

    monkeypatch.setattr(BoundCall, "base_key_before", None)
    assert await Trial().value(body) == "run"


async def test_a_key_that_is_the_same_takes_no_other_record() -> None:
    class Plain(BaseModel):
        metadata: str

    @durable_activity
    async def plain(value: Plain) -> str:
        return "run"

    call = bound(plain, Plain(metadata="x"))
    assert call.base_key_before({}) == call.base_key()

    async def body() -> list[str]:
        return [await plain(Plain(metadata="x")) for _ in range(2)]

    trial = Trial(checkpoints=recorded(f"{call.base_key()}#0", "another:1:0#0"))
    assert await trial.value(body) == ["recorded", "run"]


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_what_cannot_be_recorded_is_refused_in_these_fields_too() -> None:
    class Login(BaseModel):
        metadata: SecretStr

    class Lost(BaseModel):
        class Inner(BaseModel):
            name: str = Field(exclude=True)

        default: Inner

    class Number(BaseModel):
        cls: float

    with pytest.raises(ActivityDefinitionError, match="a secret"):
        Codec[Any](Login, "value")
    with pytest.raises(ActivityDefinitionError, match="field 'name' of Inner is required"):
        Codec[Any](Lost, "value")
    with pytest.raises(PayloadError):
        Codec[Any](Number, "value").encode(Number(cls=float("nan")))
