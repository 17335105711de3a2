"""Records as they are compared: a value a field, and the keys by which pairs of records become candidates.

Records that have a key in common are compared. A key is a function of its record alone, so neither the order of the
records nor other records change it. It names its field, so that keys of several fields can be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from hashlib import blake2b
from typing import Final, TypeAlias, TypeVar, assert_never

from pydantic import BaseModel

from durable_batches import NonRetryableError
from durable_batches.extraction.resolution.fields import (
    Comparison,
    DateField,
    EmailField,
    EmbeddingField,
    ExactField,
    IdentifierField,
    NameField,
    NumberField,
    SetField,
    TextField,
)
from durable_batches.extraction.resolution.folding import fold, is_unspaced, tokens

__all__ = ["KEY_SEPARATOR", "PlainRecord", "PlainValue", "Row", "Value", "plain_record", "row_of"]

T = TypeVar("T", bound=BaseModel)

PlainValue: TypeAlias = str | float | tuple[str, ...] | tuple[float, ...] | None
"""A field's value as it was given, of a type that travels to another process."""

Value: TypeAlias = str | float | tuple[str, ...] | tuple[float, ...] | None
"""A field's value as it is compared; None: it is missing."""

KEY_SEPARATOR: Final = "\x1f"
"""Stands between the field and the rest of a key; no folded text has it."""

_LONGEST: Final = 1_000
"""Characters of a text that count."""

_LARGEST: Final = 200
"""Members of a collection that count."""

_BANDS: Final = 4
_PLANES: Final = 8
"""An embedding has a key a band, of one bit a plane: on which side of it the vector lies."""


@dataclass(frozen=True)
class PlainRecord:
    """A record, out of the user's model."""

    id: str
    values: tuple[PlainValue, ...]
    """One a field, in the order of the model."""
    keys: tuple[str, ...] = ()
    """Keys of the user's own."""


@dataclass(frozen=True)
class Row:
    """A record as it is compared."""

    id: str
    values: tuple[Value, ...]
    keys: tuple[str, ...]
    """Sorted, each once."""


def plain_record(
    record: T, fields: Mapping[str, Comparison], keys: Callable[[T], Iterable[str]] | None = None
) -> PlainRecord:
    """Take a record out of the user's model.

    Args:
        record: The record.
        fields: The comparisons of its model.
        keys: Gives further keys.

    Raises:
        NonRetryableError: Its id is empty, or a value is not of a type that its comparison takes.
    """
    identity: object = getattr(record, "id", None)
    if not isinstance(identity, str) or not identity:
        raise NonRetryableError(f"a record of {type(record).__name__} must have an id that is a text, and not empty")
    try:
        values = tuple(_plain_value(comparison, getattr(record, name)) for name, comparison in fields.items())
    except (TypeError, ValueError) as error:
        raise NonRetryableError(f"record {identity!r}: {error}") from error
    own = () if keys is None else tuple(sorted({str(key) for key in keys(record)}))
    return PlainRecord(identity, values, own)


def _plain_value(comparison: Comparison, value: object) -> PlainValue:
    if value is None:
        return None
    match comparison:
        case NumberField():
            if not isinstance(value, int | float | Decimal):
                raise TypeError(f"a number is compared, not {type(value).__name__}")
            number = float(value)
            return number if math.isfinite(number) else None
        case SetField():
            return tuple(_text(member) for member in _members(value))
        case EmbeddingField(dimensions=dimensions):
            vector = tuple(_number(member) for member in _members(value))
            if len(vector) != dimensions:
                raise ValueError(f"an embedding has {dimensions} numbers, not {len(vector)}")
            return vector if any(vector) else None  # the zero vector has no direction
        case NameField() | TextField() | ExactField() | IdentifierField() | EmailField() | DateField():
            return _text(value)
        case _:
            assert_never(comparison)


def _text(value: object) -> str:
    match value:
        case Enum():
            return _text(value.value)
        case datetime():
            return value.date().isoformat()
        case date():
            return value.isoformat()
        case bytes() | bytearray() | Mapping() | list() | tuple() | set() | frozenset():
            raise TypeError(f"a text is compared, not {type(value).__name__}")  # pyright: ignore[reportUnknownArgumentType]
        case _:
            return str(value)


def _members(value: object) -> Iterator[object]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"a collection is compared, not {type(value).__name__}")
    members: Iterable[object] = value  # pyright: ignore[reportUnknownVariableType]  # of anything
    return iter(members)


def _number(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError("an embedding consists of finite numbers")
    return float(value)


def row_of(record: PlainRecord, fields: Mapping[str, Comparison]) -> Row:
    """Make a record comparable: fold its texts, and find its keys."""
    values: list[Value] = []
    keys = {f"{KEY_SEPARATOR}{key}" for key in record.keys}
    for (name, comparison), plain in zip(fields.items(), record.values, strict=True):
        value = value_of(comparison, plain)
        values.append(value)
        if comparison.block and value is not None:
            keys.update(f"{name}{KEY_SEPARATOR}{key}" for key in keys_of(comparison, value))
    return Row(record.id, tuple(values), tuple(sorted(keys)))


def value_of(comparison: Comparison, plain: PlainValue) -> Value:
    """Return a value as it is compared; None: it is missing, or nothing of it is left."""
    if isinstance(plain, str):
        if isinstance(comparison, EmailField):
            return plain.strip().casefold()[:_LONGEST] or None
        return fold(plain[:_LONGEST]) or None
    if isinstance(plain, tuple) and isinstance(comparison, SetField):
        members = {fold(str(member)[:_LONGEST]) for member in plain} - {""}
        return tuple(sorted(members)[:_LARGEST]) or None
    return plain


def keys_of(comparison: Comparison, value: Value) -> Iterator[str]:
    """Find the keys of a value, without its field."""
    match comparison, value:
        case NameField(), str():
            yield from _keys_of_name(value)
        case TextField(), str():
            yield f"={value}"
            yield from (f"~{token}" for token in tokens(value) if len(token) > 2 or not token.isascii())
        case SetField(), tuple():
            yield from (f"={member}" for member in value)
        case EmbeddingField(), tuple():
            yield from _keys_of_vector(tuple(float(number) for number in value))
        case _:
            yield f"={value}"


def _keys_of_name(name: str) -> Iterator[str]:
    """The name itself, its beginning, and its end; an initial alone is no key.

    In scripts with a letter a syllable or a word, one letter says as much as three of an alphabet.
    """
    dense = is_unspaced(name[0])
    length = 1 if dense else 3
    if dense or len(name) > 1:
        yield f"={name}"
    if len(name) > length:
        yield f"<{name[:length]}"
        yield f">{name[-length:]}"


def _keys_of_vector(vector: tuple[float, ...]) -> Iterator[str]:
    planes = _planes(len(vector))
    for band in range(_BANDS):
        sides = (
            sum(number * part for number, part in zip(vector, plane, strict=True)) >= 0
            for plane in planes[band * _PLANES : (band + 1) * _PLANES]
        )
        yield f"{band}" + "".join("+" if side else "-" for side in sides)


@lru_cache(8)
def _planes(dimensions: int) -> tuple[tuple[float, ...], ...]:
    """Planes through the origin in all directions, the same in every process."""
    return tuple(tuple(_direction(f"{plane}", dimensions)) for plane in range(_BANDS * _PLANES))


def _direction(seed: str, dimensions: int) -> Iterator[float]:
    for dimension in range(dimensions):
        digest = blake2b(f"{seed}:{dimension}".encode(), digest_size=8).digest()
        # The sum of eight uniform numbers is nearly normal, which no direction of a cube's corners is preferred by.
        yield sum(digest) / 255 - 4
