"""Values of which nothing is known: what kind they are, and which parts they have."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from typing_extensions import TypeIs

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["is_data", "is_deque", "is_dict", "is_iterator", "is_pattern", "is_sequence", "is_set", "parts_of"]


def is_dict(value: object) -> TypeIs[dict[Any, Any]]:
    """Tell whether it is a dict."""
    return isinstance(value, dict)


def is_pattern(value: object) -> TypeIs[re.Pattern[Any]]:
    """Tell whether it is a compiled regular expression."""
    return isinstance(value, re.Pattern)


def is_sequence(value: object) -> TypeIs[list[Any] | tuple[Any, ...]]:
    """Tell whether it is a list or a tuple."""
    return isinstance(value, list | tuple)


def is_deque(value: object) -> TypeIs[deque[Any]]:
    """Tell whether it is a deque."""
    return isinstance(value, deque)


def is_iterator(value: object) -> TypeIs[Iterator[Any]]:
    """Tell whether it is an iterator, a generator for example."""
    return isinstance(value, Iterator)


def is_set(value: object) -> TypeIs[set[Any] | frozenset[Any]]:
    """Tell whether it is a set or a frozenset."""
    return isinstance(value, set | frozenset)


def is_data(value: object) -> TypeIs[DataclassInstance]:
    """Tell whether it is an instance of a dataclass."""
    return is_dataclass(value) and not isinstance(value, type)


def parts_of(item: Any) -> list[tuple[str, Any]]:
    """List the parts of a value, each with the step of the path that leads to it."""
    if isinstance(item, BaseModel):
        names = [*type(item).model_fields, *(item.model_extra or {})]
        return [(f".{name}", getattr(item, name, None)) for name in names]
    if is_data(item):
        return [(f".{field.name}", getattr(item, field.name, None)) for field in fields(item)]
    if is_dict(item):
        return [(f"[{str(key).encode(errors='replace').decode()[:40]!r}]", part) for key, part in item.items()]
    if is_sequence(item) or is_set(item) or is_deque(item):
        return [(f"[{index}]", part) for index, part in enumerate(item)]
    return []
