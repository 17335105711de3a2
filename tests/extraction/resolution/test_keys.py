from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from tests.properties import modest

from durable_batches import NonRetryableError
from durable_batches.extraction.resolution import (
    DateField,
    EmailField,
    EmbeddingField,
    ExactField,
    NameField,
    NumberField,
    SetField,
    TextField,
)
from durable_batches.extraction.resolution.fields import Comparison, fields_of
from durable_batches.extraction.resolution.keys import Row, plain_record, row_of


class Colour(StrEnum):
    RED = "red"


class Thing(BaseModel):
    id: str
    name: Annotated[str | None, NameField()] = None
    title: Annotated[str | None, TextField()] = None
    colour: Annotated[Colour | None, ExactField()] = None
    mail: Annotated[str | None, EmailField()] = None
    made: Annotated[date | datetime | None, DateField()] = None
    price: Annotated[Decimal | float | None, NumberField()] = None
    tags: Annotated[frozenset[str], SetField()] = frozenset()
    vector: Annotated[tuple[float, ...] | None, EmbeddingField(dimensions=2, block=True)] = None


FIELDS = fields_of(Thing)


def row(**values: Any) -> Row:
    return row_of(plain_record(Thing.model_validate({"id": "1", **values}), FIELDS), FIELDS)


def keys(**values: Any) -> set[str]:
    return {key.replace("\x1f", ":") for key in row(**values).keys}


def test_each_kind_has_its_form_and_its_keys() -> None:
    assert keys(name="Łukasz") == {"name:=lukasz", "name:<luk", "name:>asz"}
    assert keys(title="The durable batch") == {
        "title:=the durable batch",
        "title:~the",
        "title:~durable",
        "title:~batch",
    }
    assert keys(colour=Colour.RED) == {"colour:=red"}
    assert keys(mail=" Ada@Example.org ") == {"mail:=ada@example.org"}
    assert keys(made=date(2020, 1, 31)) == keys(made=datetime(2020, 1, 31, 23, 59)) == {"made:=2020 01 31"}
    assert keys(tags={"Open source", "ASYNC"}) == {"tags:=open source", "tags:=async"}
    assert keys(price=Decimal("1.50")) == set()
    assert row(price=Decimal("1.50")).values[5] == 1.5


def test_an_initial_alone_is_no_key_but_a_letter_that_is_a_word_is() -> None:
    assert keys(name="J.") == set()
    assert keys(name="Li") == {"name:=li"}
    assert keys(name="李小明") == {"name:=李小明", "name:<李", "name:>明"}
    assert keys(name="明") == {"name:=明"}


def test_keys_of_texts_without_blanks_are_their_neighbouring_letters() -> None:
    assert keys(title="東京都") == {"title:=東京都", "title:~東京", "title:~京都"}


def test_a_value_that_is_missing_has_no_key_and_no_form() -> None:
    missing = row(name="  ", title="...", mail="", price=float("nan"), tags={""}, vector=(0.0, 0.0))
    assert missing.keys == ()
    assert missing.values == (None,) * 8


def test_vectors_of_one_direction_have_their_keys_in_common_and_opposite_ones_none() -> None:
    assert len(keys(vector=(1.0, 2.0))) == 4
    assert keys(vector=(1.0, 2.0)) == keys(vector=(10.0, 20.0))
    assert not keys(vector=(1.0, 2.0)) & keys(vector=(-1.0, -2.0))


def test_keys_of_the_users_own_are_of_no_field() -> None:
    thing = Thing(id="1", name="Ada")
    plain = plain_record(thing, FIELDS, lambda found: [f"{found.name}!", "all", "all"])
    assert [key for key in row_of(plain, FIELDS).keys if key.startswith("\x1f")] == ["\x1fAda!", "\x1fall"]


def test_a_field_that_does_not_block_has_its_value_and_no_key() -> None:
    fields: dict[str, Comparison] = {"name": NameField(block=False)}
    assert row_of(plain_record(Thing(id="1", name="Ada"), fields), fields) == Row("1", ("ada",), ())


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": ""},
        {"price": "many"},
        {"name": ["Ada"]},
        {"name": b"Ada"},
        {"tags": "Ada"},
        {"vector": (1.0,)},
        {"vector": (1.0, float("inf"))},
    ],
)
def test_a_record_that_cannot_be_compared_is_refused_with_its_id(wrong: dict[str, object]) -> None:
    thing = Thing(id="thing-7").model_copy(update=wrong)  # which does not validate
    with pytest.raises(NonRetryableError, match=r"record 'thing-7'|must have an id"):
        plain_record(thing, FIELDS)


def test_long_values_count_to_a_bound() -> None:
    assert len(str(row(title="word " * 10_000).values[1])) <= 1_000
    tags = row(tags={f"{number}" for number in range(1_000)}).values[6]
    assert isinstance(tags, tuple)
    assert len(tags) == 200


@modest(100)
@given(st.sets(st.text(max_size=12), max_size=8), st.text(max_size=20), st.randoms(use_true_random=False))
def test_the_order_of_what_a_record_holds_changes_nothing(tags: set[str], name: str, random: Any) -> None:
    shuffled = sorted(tags)
    random.shuffle(shuffled)
    one, other = (
        row_of(plain_record(Thing(id="1", name=name).model_copy(update={"tags": given}), FIELDS), FIELDS)
        for given in (sorted(tags), shuffled)
    )
    assert one == other
    assert list(one.keys) == sorted(set(one.keys))
