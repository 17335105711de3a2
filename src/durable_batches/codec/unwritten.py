"""What is not written of a single value, and a comparison does not show either, though code can tell it.

The zone of a time is written as its offset; `fold` not at all, nor the seconds of an offset; of a deque its `maxlen`,
and of a pattern its flags are lost.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta, tzinfo
from math import copysign
from typing import Any, Final

from durable_batches.codec.shapes import is_deque, is_pattern

__all__ = ["TYPES", "has_fixed_zone", "is_negative_zero", "is_written_whole", "unwritten"]

TYPES: Final = frozenset("datetime time deque complex function-plain".split())
"""The core schemas of such values; that of a pattern is a plain function."""

_MINUTE: Final = timedelta(minutes=1)


def unwritten(value: Any) -> str | None:
    """Say what is not written of a value, without its parts; None: nothing."""
    if isinstance(value, datetime | time):
        return None if is_written_whole(value) else _of_time(value)
    if is_deque(value):
        return None if value.maxlen is None else f"maxlen {value.maxlen}"
    if is_pattern(value):
        return None if re.compile(value.pattern).flags == value.flags else f"flags {value.flags}"
    if isinstance(value, complex):
        return "a real part of -0.0" if is_negative_zero(value.real) else None
    return None


def has_fixed_zone(value: datetime | time) -> bool:
    """Tell whether a time has no zone, or one with a single offset, which is all that can be written of a zone."""
    return value.tzinfo is None or _offset_of(value.tzinfo) is not None


def is_written_whole(value: datetime | time) -> bool:
    """Tell whether a time has nothing that is not written of it."""
    if value.fold or type(value) not in (datetime, time):
        return False
    zone = value.tzinfo
    if zone is None or zone is UTC:
        return True
    offset = _offset_of(zone)
    return offset is not None and not offset % _MINUTE


def is_negative_zero(value: float) -> bool:
    """Tell -0.0 from 0.0, which it equals."""
    return value == 0 and copysign(1.0, value) < 0


def _offset_of(zone: tzinfo) -> timedelta | None:
    """Return the offset that a zone has at all times; None: it has several."""
    try:
        return zone.utcoffset(None)
    except Exception:  # noqa: BLE001  (a zone's own code may raise anything without a time)
        return None


def _of_time(value: datetime | time) -> str | None:
    marks: list[str] = []
    zone = value.tzinfo
    if zone is not None:
        offset = _offset_of(zone)
        if offset is None:
            marks.append(f"zone {_name_of(zone)}")
        elif offset % _MINUTE:
            marks.append(f"offset {offset}")
    if value.fold:
        marks.append("fold 1")
    # A class of its own may be more exact: one with nanoseconds shows them.
    plain = datetime.isoformat(value) if isinstance(value, datetime) else time.isoformat(value)
    own = value.isoformat()
    if own != plain:
        marks.append(own)
    return ", ".join(marks) or None


def _name_of(zone: tzinfo) -> str:
    """Name a zone, in every process the same way."""
    cls = type(zone)
    if cls.__str__ is object.__str__ and cls.__repr__ is object.__repr__:
        return f"{cls.__module__}.{cls.__qualname__}"
    return str(zone)
