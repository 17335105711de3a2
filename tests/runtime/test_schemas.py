"""Core schemas are built anew, with the library's configuration, also where pydantic-core has no parameter for it."""

from __future__ import annotations

from typing import Any

import pydantic.types
import pytest
from pydantic import BaseModel, ConfigDict, SecretBytes, SecretStr
from pydantic.dataclasses import dataclass as pydantic_dataclass
from tests.runtime.hash_seeds import ARGUMENTS

from durable_batches import ActivityDefinitionError
from durable_batches.codec import schemas
from durable_batches.codec.canonical import Digester
from durable_batches.codec.codec import Codec


class Inner(BaseModel):
    model_config = ConfigDict(ser_json_bytes="utf8", val_json_bytes="utf8")
    data: bytes
    either: int | str | bytes


class Outer(BaseModel):
    inner: Inner
    inners: list[Inner]


@pydantic_dataclass(config=ConfigDict(ser_json_bytes="hex", val_json_bytes="hex"))
class Data:
    inner: Inner
    data: bytes


INNER = Inner(data=b"a\xff", either=b"b")
VALUES: list[tuple[Any, Any]] = [
    (Inner, INNER),
    (Outer, Outer(inner=INNER, inners=[INNER])),
    (Data, Data(INNER, b"c\xff")),
    (list[Data | Inner], [INNER, Data(INNER, b"d")]),
]


@pytest.fixture(params=[True, False], ids=["with the parameter", "without it"])
def parameter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    given: bool = request.param
    if given and not schemas._CAN_BUILD_ANEW:
        pytest.skip("this pydantic-core has no such parameter")
    monkeypatch.setattr(schemas, "_CAN_BUILD_ANEW", given)


@pytest.mark.usefixtures("parameter")
@pytest.mark.parametrize(("annotation", "value"), VALUES, ids=["itself", "model", "dataclass", "union"])
def test_the_configuration_of_a_part_does_not_count(annotation: Any, value: Any) -> None:
    codec = Codec[Any](annotation, "value")
    payload = codec.encode(value)
    assert b"\\u00" not in payload
    assert b"Yf8=" in payload
    assert codec.decode(payload) == value


def test_keys_and_payloads_are_the_same_without_the_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    def written() -> list[bytes]:
        return [
            *(Codec[Any](annotation, "value").encode(value) for annotation, value in VALUES),
            *(Digester(annotation, "value").encode(value) for annotation, value in (*VALUES, *ARGUMENTS.values())),
        ]

    before = written()
    monkeypatch.setattr(schemas, "_CAN_BUILD_ANEW", False)
    assert written() == before


def test_a_class_is_complete_again_when_its_schema_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas, "_CAN_BUILD_ANEW", False)
    Codec[Any](Outer, "value")
    assert Outer.__pydantic_complete__
    assert Inner.__pydantic_complete__

    def broken(*_: object) -> Any:
        assert not Inner.__pydantic_complete__
        raise RuntimeError("no schema")

    monkeypatch.setattr(schemas, "SchemaValidator", broken)
    with pytest.raises(RuntimeError, match="no schema"):
        Codec[Any](Outer, "value")
    assert Inner.__pydantic_complete__


def test_a_pydantic_core_without_the_parameter_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(schema: Any, config: Any = None) -> None: ...

    monkeypatch.setattr(schemas, "SchemaSerializer", without)
    assert not schemas._can_build_anew()


@pytest.mark.parametrize("annotation", [SecretStr, list[SecretBytes]])
def test_a_secret_is_known_by_its_class_whatever_pydantic_calls_its_functions(
    annotation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pydantic.types._serialize_secret_field, "__name__", "another")  # pyright: ignore
    with pytest.raises(ActivityDefinitionError, match="a secret"):
        Codec[Any](annotation, "value")
