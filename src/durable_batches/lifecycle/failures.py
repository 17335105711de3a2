"""A failure as it is recorded, of an activity and of a document: data only, JSON, the same on every read."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from durable_batches.errors import ActivityFailedError, qualified_name

__all__ = ["ActivityFailure", "DocumentFailureRecord"]

MESSAGE_LIMIT = 2_000
"""Characters kept of an error's message: enough to act on, and no way to fill a database."""


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
        """The record of an error."""
        return cls(
            activity=activity,
            error_type=type(error).__name__,
            message=message_of(error),
            attempts=attempts,
            retryable=retryable,
            kinds=tuple(qualified_name(kind) for kind in type(error).__mro__ if issubclass(kind, BaseException)),
        )

    def error(self) -> ActivityFailedError:
        """What the workflow gets, live and on replay."""
        return ActivityFailedError(
            activity=self.activity,
            error_type=self.error_type,
            message=self.message,
            attempts=self.attempts,
            retryable=self.retryable,
            kinds=self.kinds,
        )

    def encode(self) -> bytes:
        """As JSON."""
        return json.dumps(self._asdict(), separators=(",", ":")).encode()

    @classmethod
    def decode(cls, payload: bytes) -> ActivityFailure:
        """From JSON."""
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
        """As JSON."""
        return json.dumps(self._asdict(), separators=(",", ":")).encode()

    @classmethod
    def decode(cls, payload: bytes) -> DocumentFailureRecord:
        """From JSON."""
        return cls(**json.loads(payload))


def message_of(error: BaseException) -> str:
    """The error's message, of bounded length; the class's name where it has none."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001  (a user's __str__ may raise anything, and must not hide the error itself)
        message = ""
    # What a provider sent may hold what UTF-8 cannot; it must not hide the error either.
    message = message.encode(errors="replace").decode() or type(error).__name__
    return message if len(message) <= MESSAGE_LIMIT else message[: MESSAGE_LIMIT - 1] + "…"
