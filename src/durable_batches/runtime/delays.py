"""The forms in which providers say how long to wait: seconds, durations, dates, moments. Pure: `now` is an argument."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Final

__all__ = ["LONGEST_SECONDS", "http_date", "quoted_seconds", "seconds_of", "seconds_until"]

LONGEST_SECONDS: Final = 86_400.0
"""Of any delay that is read from an error; a longer one is taken as this."""

_LONGEST_TEXT: Final = 64
_FIRST_EPOCH: Final = 1e9
"""Seconds; a number from here on is a moment since the epoch, no duration (it would be 30 years)."""
_FIRST_EPOCH_OF_MILLISECONDS: Final = 1.5e12
"""A number from here on is one in milliseconds, of 2017 or later."""

_WORDS: Final = r"milliseconds?|seconds?|secs?|minutes?|mins?|hours?|days?"
_PART: Final = re.compile(rf"(\d{{1,9}}(?:\.\d{{1,12}})?)({_WORDS}|ms|us|µs|ns|h|m|s|d)?")
_UNITS: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "milliseconds": 1e-3,
    "millisecond": 1e-3,
    "s": 1.0,
    "": 1.0,
    "m": 60.0,
    "h": 3_600.0,
    "d": 86_400.0,
}
_QUOTED: Final = re.compile(
    rf"(?:try again|retry) (?:in|after) ((?:\d{{1,6}}(?:\.\d{{1,9}})? ?(?:{_WORDS}|ms|h|m|s)(?![a-z]) ?){{1,4}})",
    re.IGNORECASE,
)


def seconds_of(value: object) -> float | None:
    """Read a duration, in seconds: 20, "20", "19.5s", "6m0s", "120ms", "2 minutes", a timedelta; None: it is none."""
    if isinstance(value, timedelta):
        return _bounded(max(value.total_seconds(), 0.0))
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return _bounded(float(min(max(value, -1), 2 * LONGEST_SECONDS)))
    if isinstance(value, float):
        return _bounded(value)
    if not isinstance(value, str):
        return None
    text = value[:_LONGEST_TEXT].strip().lower().replace(" ", "")
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return _bounded(sum(float(number) * (_UNITS.get(unit) or _UNITS[unit[0]]) for number, unit in parts))


def seconds_until(value: object, now: float) -> float | None:
    """Read a duration or a moment (seconds or milliseconds since the epoch, an HTTP date, RFC 3339), in seconds.

    A moment is meant from `now` on. One that has passed asks for no delay: None, so that the caller's own backoff
    applies. Of several, such as a header that was sent twice, the longest is meant.
    """
    seconds = seconds_of(value)
    if seconds is not None:
        epoch = _number(value)
        if epoch is None or epoch < _FIRST_EPOCH:
            return seconds
        return _ahead((epoch if epoch < _FIRST_EPOCH_OF_MILLISECONDS else epoch / 1_000) - now)
    if not isinstance(value, str):
        return None
    several = value[:_LONGEST_TEXT].split(",")
    if len(several) > 1 and all(seconds_of(each) is not None for each in several):
        delays = [seconds_until(each, now) for each in several]
        return max((delay for delay in delays if delay is not None), default=None)
    moment = _date(value[:_LONGEST_TEXT].strip())
    return None if moment is None else _ahead(moment - now)


def quoted_seconds(text: str) -> float | None:
    """Find "try again in 6.5s" in a message."""
    found = _QUOTED.search(text)
    return None if found is None else seconds_of(found.group(1))


def _date(text: str) -> float | None:
    # Imported when the first date is read: the library's own import stays quick.
    from email.utils import parsedate_to_datetime

    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        try:
            moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
        except ValueError:
            return None
    try:
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (OverflowError, ValueError):
        return None


def http_date(text: str) -> float | None:
    """Read a `Date` header, in seconds since the epoch; None: it is none."""
    return _date(text[:_LONGEST_TEXT].strip())


def _number(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, int | float | str) else None
    except (OverflowError, ValueError):
        return None


def _ahead(seconds: float) -> float | None:
    return _bounded(seconds) if seconds > 0 else None


def _bounded(seconds: float) -> float | None:
    return min(seconds, LONGEST_SECONDS) if math.isfinite(seconds) and seconds >= 0 else None
