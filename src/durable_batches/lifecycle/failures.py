"""Record failures of activities and documents: data only, as JSON, the same on every read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final, NamedTuple

from durable_batches.errors import ActivityFailedError, Overloaded, RetryLater, qualified_name, shortened, with_type

__all__ = [
    "ActivityFailure",
    "DocumentFailureRecord",
    "in_a_line",
    "leaves",
    "line_of",
    "message_of",
    "message_of_group",
]

MESSAGE_LIMIT = 2_000
"""Characters kept of an error's message: enough to act on, and no way to fill a database."""

_LINE_LIMIT: Final = 400
"""Characters of it in a line of a log."""


class ActivityFailure(NamedTuple):
    """The last error of an activity call whose attempts are used up."""

    activity: str
    error_type: str
    message: str
    attempts: int
    retryable: bool
    kinds: tuple[str, ...]
    """The qualified names of the error's class and of its bases: what `caused_by` looks in."""

    @classmethod
    def of(cls, activity: str, error: BaseException, attempts: int, *, retryable: bool) -> ActivityFailure:
        """Record an error; in place of a bare `RetryLater`, the error that it was raised from, if any.

        Of a group, the message names its first error too, and the kinds are those of all of its errors.
        """
        bare = type(error) in (RetryLater, Overloaded)
        reported = error.__cause__ if bare and error.__cause__ is not None else error
        parts = list(leaves(reported))
        return cls(
            activity=activity,
            error_type=type(reported).__name__,
            message=message_of(reported) if parts == [reported] else message_of_group(reported, parts[0]),
            attempts=attempts,
            retryable=retryable,
            kinds=tuple(dict.fromkeys(kind for part in (reported, error, *parts) for kind in _kinds_of(part))),
        )

    def error(self, batch_id: str = "", document_id: str = "") -> ActivityFailedError:
        """Make the error that the workflow gets, live and on replay."""
        return ActivityFailedError(
            activity=self.activity,
            error_type=self.error_type,
            message=self.message,
            attempts=self.attempts,
            retryable=self.retryable,
            kinds=self.kinds,
            batch_id=batch_id,
            document_id=document_id,
        )

    def encode(self) -> bytes:
        """Encode as JSON."""
        return json.dumps(self._asdict(), separators=(",", ":")).encode()

    @classmethod
    def decode(cls, payload: bytes) -> ActivityFailure:
        """Decode from JSON."""
        data: dict[str, Any] = json.loads(payload)
        data["kinds"] = tuple(data["kinds"])
        return cls(**data)


class DocumentFailureRecord(NamedTuple):
    """The error that ended a document's (or the resolver's) last attempt."""

    error: str
    error_type: str
    activity: str | None
    attempts: int

    def encode(self) -> bytes:
        """Encode as JSON."""
        return json.dumps(self._asdict(), separators=(",", ":")).encode()

    @classmethod
    def decode(cls, payload: bytes) -> DocumentFailureRecord:
        """Decode from JSON."""
        return cls(**json.loads(payload))


_MOST_LEAVES: Final = 1_000
_DEEPEST_GROUP: Final = 32


def leaves(error: BaseException) -> list[BaseException]:
    """List the errors of a group, and of the groups in it; of any other error, itself. A thousand at most."""
    return list(islice(_leaves(error, 0), _MOST_LEAVES))


def _leaves(error: BaseException, depth: int) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup) and depth < _DEEPEST_GROUP:
        for part in error.exceptions:  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
            yield from _leaves(part, depth + 1)  # pyright: ignore[reportUnknownArgumentType]
    else:
        yield error


def _kinds_of(error: BaseException) -> tuple[str, ...]:
    return tuple(qualified_name(kind) for kind in type(error).__mro__ if issubclass(kind, BaseException))


def message_of(error: BaseException) -> str:
    """Take the error's message, of bounded length; the class's name where it has none."""
    try:
        message = str(error)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001  (a user's __str__ may raise anything, and must not hide the error itself)
        message = ""
    # What a provider sent may hold what UTF-8 cannot; it must not hide the error either.
    return _cut(message.encode(errors="replace").decode() or type(error).__name__, MESSAGE_LIMIT)


def message_of_group(group: BaseException, first: BaseException) -> str:
    """Join the message of a group of errors with its first error, which says what happened.

    Where the group was given that message, it is said once.
    """
    message = message_of(group)
    added = type(first).__name__ if message_of(first) in message else line_of(first)
    return _cut(f"{message}: {added}", MESSAGE_LIMIT)


def line_of(error: BaseException) -> str:
    """Write an error on one line, with the name of its class."""
    return in_a_line(type(error).__name__, message_of(error))


def in_a_line(error_type: str, message: str) -> str:
    """Shorten an error to one line of a log: its type and its message, which may be long and have many lines."""
    return with_type(error_type, shortened(message, _LINE_LIMIT))


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
