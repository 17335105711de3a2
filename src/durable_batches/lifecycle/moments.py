"""Moments as the records keep them: whole microseconds since the epoch (UTC), exact both ways."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

__all__ = ["from_micros", "to_micros"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def from_micros(micros: int) -> datetime:
    """The aware UTC moment of so many microseconds since the epoch, exactly."""
    return _EPOCH + timedelta(microseconds=micros)


def to_micros(moment: datetime) -> int:
    """Whole microseconds since the epoch of an aware moment, exactly (no float on the way)."""
    return (moment - _EPOCH) // _MICROSECOND
