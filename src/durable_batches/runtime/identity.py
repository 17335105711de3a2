"""Refuse calls of one attempt that have one key and are not the same call.

A key names the activity, its version and its input. It knows neither the function behind the name nor the object that
a method is bound to: with two functions of one name, or two objects that differ, each call could be answered by what
the other one returned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

from pydantic import BaseModel

from durable_batches.codec.comparison import equal
from durable_batches.codec.shapes import is_data, is_dict, is_sequence, is_set
from durable_batches.errors import ActivityDefinitionError, PayloadError
from durable_batches.runtime.activity import DurableActivity

if TYPE_CHECKING:
    from durable_batches.runtime.bound_call import BoundCall
    from durable_batches.runtime.definition import ActivityDefinition

__all__ = ["Identities"]

_PLAIN: Final = (
    str,
    int,
    float,
    complex,
    bytes,
    date,
    time,
    timedelta,
    Decimal,
    UUID,
    Enum,
    PurePath,
    type,
    type(None),
)
_DEPTH: Final = 4
"""Levels down to which two objects are compared: a configuration in an attribute, and not what a client holds."""

_MISSING: Final = object()


class Identities:
    """The activities that an attempt has called, and the objects that their methods were bound to."""

    __slots__ = ("_definitions", "_forms", "_instances")

    def __init__(self) -> None:
        self._definitions: dict[str, ActivityDefinition[Any]] = {}
        self._instances: dict[str, object] = {}
        self._forms: dict[str, str] = {}

    def check(self, bound: BoundCall, base: str) -> None:
        """Refuse a call that could be answered by the result of another one.

        Args:
            bound: The call.
            base: Its key, without its occurrence.

        Raises:
            ActivityDefinitionError: Another activity has the same name and version, or the same call was made on an
                object that differs from this one.
            PayloadError: An input of other types, or with another secret, was written the same way.
        """
        definition, instance = bound.definition, bound.activity.instance
        known = self._definitions.setdefault(definition.label, definition)
        if known is not definition and not _same_activity(known, definition):
            raise ActivityDefinitionError(
                f"two activities of the name {definition.name!r} were called for one document, and their recorded "
                "results could not be told apart; give one of them another name: durable_activity(name=...)"
            )
        if definition.key is not None or bound.activity.explicit_key is not None:
            return
        if definition.keys.loose and self._forms.setdefault(base, form := bound.form()) != form:
            raise PayloadError(
                f"the input of activity {definition.name!r}",
                "$",
                "another call for the document has an input of other types, or with another secret, that is written "
                "the same way, and their recorded results could not be told apart; annotate the parameter with its "
                "types, or give the activity a key=",
            )
        if instance is not None:
            difference = _difference(self._instances.setdefault(base, instance), instance, _DEPTH)
            if difference is not None:
                raise ActivityDefinitionError(
                    f"activity {definition.name!r} was called for one document with the same input on two objects that "
                    f"differ{difference}, and their recorded results could not be told apart, because the object is no "
                    "part of the key; pass what differs as an argument, or give the activity a key="
                )


def _same_activity(one: ActivityDefinition[Any], other: ActivityDefinition[Any]) -> bool:
    """Whether both are made from one function, a helper that is run twice for example."""
    return (
        one.ignore == other.ignore
        and _same_function(one.key, other.key, _DEPTH)
        and _same_function(one.fn, other.fn, _DEPTH)
    )


def _same_function(one: Callable[..., Any] | None, other: Callable[..., Any] | None, depth: int) -> bool:
    if one is other:
        return True
    if not (isinstance(one, FunctionType) and isinstance(other, FunctionType)) or one.__code__ != other.__code__:
        return False
    return _all_same(
        [one.__defaults__, one.__kwdefaults__, *_enclosed(one)],
        [other.__defaults__, other.__kwdefaults__, *_enclosed(other)],
        depth,
    )


def _enclosed(function: FunctionType) -> list[object]:
    """List the values of the variables that a function takes from the function round it."""
    found: list[object] = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            # A variable that is not set yet.
            found.append(_MISSING)
    return found


def _all_same(ones: list[object], others: list[object], depth: int) -> bool:
    return len(ones) == len(others) and all(_same(one, other, depth) for one, other in zip(ones, others, strict=True))


def _same(one: Any, other: Any, depth: int) -> bool:
    if isinstance(one, FunctionType) and isinstance(other, FunctionType):
        # Functions within each other may name each other.
        return depth > 0 and _same_function(one, other, depth - 1)
    functions = _function_of(one), _function_of(other)
    if None not in functions:
        return depth > 0 and _same_function(*functions, depth - 1)
    return one is other or (type(one) is type(other) and equal(one, other) is True)


def _function_of(value: Any) -> Callable[..., Any] | None:
    return cast(DurableActivity[..., Any], value).definition.fn if type(value) is DurableActivity else None


# ---- objects that methods are bound to ---------------------------------------------------------------------------


def _difference(one: object, other: object, depth: int) -> str | None:
    """Find where the data of two objects differs; None: nowhere.

    Only data is compared. Clients, locks and pools are others in each object, and do not make it another one.
    """
    if one is other or depth == 0:
        return None
    if type(one) is not type(other):
        return ""
    if isinstance(one, _PLAIN) or is_set(one):
        return None if equal(one, other) is True else ""
    parts, others = _data_of(one, top=depth == _DEPTH), _data_of(other, top=depth == _DEPTH)
    for name in {**parts, **others}:
        # By its type too: an attribute that one of them lacks is a difference if the other one's is data.
        part, counterpart = parts.get(name, _MISSING), others.get(name, _MISSING)
        if part is _MISSING or counterpart is _MISSING:
            if isinstance(counterpart if part is _MISSING else part, _PLAIN):
                return f" ({name})"
            continue
        if _is_compared(part) or _is_compared(counterpart):
            deeper = _difference(part, counterpart, depth - 1)
            if deeper is not None:
                return f" ({name})"
    return None


def _is_compared(value: object) -> bool:
    return (
        isinstance(value, (*_PLAIN, BaseModel))
        or is_data(value)
        or is_dict(value)
        or is_sequence(value)
        or is_set(value)
    )


def _data_of(value: object, *, top: bool) -> Mapping[str, object]:
    """Name the attributes of an object, the entries of a dict, or the items of a list."""
    if is_dict(value):
        return {f"[{key!r}]": item for key, item in value.items() if isinstance(key, _PLAIN)}
    if is_sequence(value):
        return {f"[{index}]": item for index, item in enumerate(value)}
    if not (top or isinstance(value, BaseModel) or is_data(value)):
        return {}
    found: dict[str, object] = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                found[name] = getattr(value, name)
    return found
