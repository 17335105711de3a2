"""Find where a value that was written and read again is not what it was.

JSON has no tuples, no keys but texts, no zones of time; a serializer leaves out what the annotation does not have. A
replay would go on with another value than the first attempt, and nobody would be told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime, time
from decimal import Decimal
from typing import Any, Final

from pydantic import BaseModel

from durable_batches.codec.shapes import is_data, is_deque, is_dict, is_iterator, is_sequence, is_set, parts_of
from durable_batches.codec.unwritten import has_fixed_zone, unwritten

__all__ = ["difference", "equal"]

_NUMBERS: Final = (int, float, complex, Decimal)


def difference(value: Any, read: Any, *, loosely_equal: bool) -> tuple[str, str] | None:
    """Find the path to the first part that has not come back as it was, and what has become of it; None: there is none.

    Args:
        value: The value.
        read: What was read of it.
        loosely_equal: Whether it may hold what has lost something, although it is equal: the zone of a time, the
            maxlen of a deque.
    """
    if not loosely_equal and equal(value, read) is True:
        return None
    waiting: list[tuple[str, Any, Any]] = [("$", value, read)]
    while waiting:
        path, one, other = waiting.pop()
        if one is other:
            continue
        problem = _problem(one, other)
        if problem is not None:
            return path, problem
        waiting += reversed(list(_pairs(path, one, other)))
    return None


def _problem(one: Any, other: Any) -> str | None:
    """Say what has become of a single value, without its parts."""
    if isinstance(one, datetime | time):
        return _problem_with_time(one, other)
    if isinstance(one, str | bytes) or (isinstance(one, _NUMBERS) and isinstance(other, _NUMBERS)):
        # A text that is a member of an enumeration, a number of another kind: equal is enough.
        same = equal(one, other) is not False and not (isinstance(one, complex) and unwritten(one))
        return None if same else _becomes(one, other)
    if is_iterator(one) or is_iterator(other):
        # Written as a list, and used up by it.
        return None if is_iterator(one) and is_iterator(other) else _becomes(one, other)
    if type(one) is not type(other) and not _of_one_generic(one, other) and not _is_whole(one, other):
        return _becomes(one, other)
    if is_dict(one):
        return _problem_with_factory(one, other) or _problem_with_keys(one, other)
    if isinstance(one, BaseModel):
        return _problem_with_extras(one, other)
    if is_deque(one) and one.maxlen != other.maxlen:
        return "it comes back without its maxlen; make it of a list where it is used"
    if is_sequence(one) or is_deque(one):
        return None if len(one) == len(other) else "it comes back with another number of items"
    if is_data(one):
        return None
    if is_set(one):
        return _problem_with_times_in(one) if one == other else "its items do not come back as they were"
    return "it does not come back equal" if _has_comparison(one) and equal(one, other) is False else None


def _becomes(one: Any, other: Any) -> str:
    kinds = type(one).__name__, type(other).__name__
    if kinds[0] == kinds[1]:
        return "it does not come back equal"
    return f"a value of type {kinds[0]!r} comes back as one of type {kinds[1]!r}"


def _problem_with_keys(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> str | None:
    for lost in (key for key in one if key not in other):
        if isinstance(lost, str):
            return f"the entry {_shown(lost)} does not come back"
        return f"a key of type {type(lost).__name__!r} comes back as a text; annotate the keys, or make them texts"
    if len(one) != len(other):
        return "it comes back with another number of entries"
    return _problem_with_times_in(one)


def _problem_with_time(one: datetime | time, other: Any) -> str | None:
    if not has_fixed_zone(one):
        return "a time comes back without its zone, with the offset alone; convert it to UTC"
    if one.fold and one.tzinfo is None:
        return "a time comes back without its fold, as the first of two equal local times; convert it to UTC"
    # One of a class that derives from datetime: equal is enough.
    return None if isinstance(other, datetime | time) and equal(one, other) is not False else _becomes(one, other)


def _problem_with_times_in(keys: Iterable[Any]) -> str | None:
    """See `_problem_with_time`, of what has no path: the keys of a dict, the items of a set."""
    times = (key for key in keys if isinstance(key, datetime | time))
    return next((problem for key in times if (problem := _problem_with_time(key, key)) is not None), None)


def _problem_with_factory(one: Any, other: Any) -> str | None:
    """Compare what two dicts return for a key that they do not have."""
    if not (isinstance(one, defaultdict) and isinstance(other, defaultdict)):
        return None
    mine, its = _factory_of(one), _factory_of(other)
    same = mine is its
    if mine is not None and its is not None and not same:
        with suppress(Exception):
            # They are the user's code.
            same = equal(mine(), its()) is True
    return None if same else "it comes back with another default for the keys that it does not have"


def _factory_of(value: Any) -> Callable[[], Any] | None:
    factory: Callable[[], Any] | None = value.default_factory
    return factory


def _problem_with_extras(one: BaseModel, other: BaseModel) -> str | None:
    return _problem_with_keys(one.model_extra or {}, other.model_extra or {})


def _pairs(path: str, one: Any, other: Any) -> Iterable[tuple[str, Any, Any]]:
    """Pair the parts of two values of one kind."""
    if is_dict(one):
        for key, part in one.items():
            yield f"{path}[{_shown(key)}]", part, other[key]
    elif not is_set(one) and not isinstance(one, str | bytes):
        for (step, part), (_, counterpart) in zip(parts_of(one), parts_of(other), strict=False):
            yield f"{path}{step}", part, counterpart


def _shown(key: object) -> str:
    return repr(str(key).encode(errors="replace").decode()[:40])


def _of_one_generic(one: Any, other: Any) -> bool:
    """Whether both are of one generic model, with and without its parameters."""
    if not (isinstance(one, BaseModel) and isinstance(other, BaseModel)):
        return False
    origins = [type(model).__pydantic_generic_metadata__.get("origin") or type(model) for model in (one, other)]
    return origins[0] is origins[1] and type(one).model_fields.keys() == type(other).model_fields.keys()


def _is_whole(one: Any, other: Any) -> bool:
    """Whether it comes back as a builtin class that it derives from, and equal."""
    return isinstance(one, type(other)) and type(other).__module__ == "builtins" and equal(one, other) is True


def _has_comparison(value: object) -> bool:
    """Whether its class compares values; others are equal to nothing but themselves, whatever they hold."""
    return getattr(type(value), "__eq__", None) is not object.__eq__


def equal(one: Any, other: Any) -> bool | None:
    """Compare; None where the comparison raises, or answers with something that is neither true nor false."""
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001  (an object's own comparison may raise anything)
        return None
