"""Values, names, moments, and records made without a constructor's checks: the whole core uses them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, Protocol, TypeVar, cast

__all__ = [
    "LONGEST_NAME",
    "Value",
    "from_micros",
    "make_record",
    "problem_with_name",
    "problem_with_text",
    "to_micros",
]

T = TypeVar("T", bound=tuple[object, ...])

LONGEST_NAME: Final = 512
"""Characters; so that an index of any database has room for four bytes of each."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Value:
    """Base of frozen dataclasses that leaves them less to generate: `@dataclass(..., repr=False, eq=False)`.

    Its methods show, compare and hash like those of other frozen dataclasses. `dataclass` would compile them for each
    class, which would noticeably slow down the import of the library.
    """

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__qualname__}({shown})"

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))


def problem_with_name(name: object) -> str | None:
    """Say why this cannot be a name; None: it can be one."""
    if isinstance(name, str) and not 1 <= len(name) <= LONGEST_NAME:
        return f"must have 1 to {LONGEST_NAME} characters, not {len(name)}"
    return problem_with_text(name)


def problem_with_text(text: object) -> str | None:
    """Say why no database could be asked for this text; None: each can be."""
    if not isinstance(text, str):
        return f"must be a str, not {type(text).__name__!r}"
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        return "must not contain NUL or lone surrogates"
    return None


def from_micros(micros: int) -> datetime:
    """Convert microseconds since the epoch to an aware UTC moment, exactly."""
    return _EPOCH + timedelta(microseconds=micros)


def to_micros(moment: datetime) -> int:
    """Convert an aware moment to whole microseconds since the epoch, exactly (no float on the way)."""
    return (moment - _EPOCH) // _MICROSECOND


class _MakeRecord(Protocol):
    def __call__(self, kind: type[T], fields: tuple[object, ...], /) -> T: ...


make_record: Final = cast("_MakeRecord", tuple.__new__)  # pyright: ignore[reportUnknownMemberType]
"""Make a named tuple of all of its fields, in their order and unchecked, at half of what its constructor takes.

Only where one is made for each activity; a test holds the number of fields at each such place.
"""
