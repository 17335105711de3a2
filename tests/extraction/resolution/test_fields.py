from __future__ import annotations

from datetime import date
from typing import Annotated

import pytest
from pydantic import BaseModel

from durable_batches import ConfigurationError
from durable_batches.extraction.resolution import DateField, EmbeddingField, ExactField, NameField, NumberField
from durable_batches.extraction.resolution.fields import fields_of


class Person(BaseModel):
    id: str
    note: str = ""
    surname: Annotated[str | None, NameField()] = None
    born: Annotated[date | None, DateField(block=False)] = None
    height: Annotated[float | None, NumberField(near=1, close=3)] = None


def test_the_comparisons_of_a_model_are_found_in_the_order_of_its_fields() -> None:
    assert list(fields_of(Person).items()) == [
        ("surname", NameField()),
        ("born", DateField(block=False)),
        ("height", NumberField(near=1, close=3)),
    ]


class WithoutId(BaseModel):
    surname: Annotated[str | None, NameField()] = None


class WithNumberAsId(BaseModel):
    id: int
    surname: Annotated[str | None, NameField()] = None


class WithoutComparison(BaseModel):
    id: str
    surname: str | None = None


class WithTwo(BaseModel):
    id: str
    surname: Annotated[str | None, NameField(), ExactField()] = None


class WithComparedId(BaseModel):
    id: Annotated[str, ExactField()]
    surname: Annotated[str | None, NameField()] = None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (WithoutId, "must have a field `id: str`"),
        (WithNumberAsId, "must have a field `id: str`"),
        (WithoutComparison, "compares nothing"),
        (WithTwo, "must have one comparison, not 2"),
        (WithComparedId, "is not compared"),
    ],
)
def test_a_model_that_cannot_be_compared_is_refused(model: type[BaseModel], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fields_of(model)


@pytest.mark.parametrize("wrong", [dict, Person(id="1"), None])
def test_what_is_no_model_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match="a record model"):
        fields_of(wrong)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # refused where it runs, too


def test_comparisons_refuse_bounds_that_contradict_each_other() -> None:
    for near, close in ((-1.0, 0.0), (2.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)):
        with pytest.raises(ConfigurationError):
            NumberField(near=near, close=close)
    with pytest.raises(ConfigurationError, match="dimensions must be 1 or more"):
        EmbeddingField(dimensions=0)
    for same, similar in ((0.5, 0.9), (1.5, 0.9), (0.9, -1.0)):
        with pytest.raises(ConfigurationError, match="similar must be above -1"):
            EmbeddingField(dimensions=2, same=same, similar=similar)
