"""The result of an attempt, and the record of a failed one."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from durable_batches.errors import ActivityFailedError
from durable_batches.lifecycle.failures import DocumentFailureRecord, leaves, message_of, message_of_group
from durable_batches.lifecycle.quota import Refusal
from durable_batches.runtime.classify import is_retryable
from durable_batches.runtime.tracebacks import own_attribute, related, trim

__all__ = ["AttemptFailed", "AttemptStopped", "AttemptSucceeded", "Crash", "StopReason", "failed", "note_checkpoint"]

_CANCELLED: Final = (
    "cancelled, but not by its worker: by its own code, by what it waited for, or by a helper that cancels a task and "
    "does not call uncancel()"
)

StopReason: TypeAlias = Literal["paused", "shutdown", "quota", "crash", "ended", "fenced"]
"""Why an attempt is stopped: its batch is paused, its worker shuts down, a provider refused one of its calls for the
account, one of its calls ended the processes of its executor, its run has ended, or its worker lost the lease."""


class AttemptSucceeded(NamedTuple):
    """The body returned."""

    value: Any
    unused_checkpoints: int


class AttemptFailed(NamedTuple):
    """The body raised."""

    error: BaseException
    record: DocumentFailureRecord
    retryable: bool
    failures_to_delete: tuple[str, ...]


class Crash(NamedTuple):
    """A call that ended the processes of its executor."""

    activity: str
    note: str


class AttemptStopped(NamedTuple):
    """The attempt was stopped."""

    reason: StopReason
    refusal: Refusal | None = None
    """What the provider said, where the reason is "quota"."""
    crash: Crash | None = None
    """Of which call, where the reason is "crash"."""


def failed(error: BaseException, attempts: int, last_failures: Iterable[str]) -> AttemptFailed:
    """Make the result of an attempt whose body raised.

    Args:
        error: The error.
        attempts: The number of attempts of the document, this one included.
        last_failures: The keys of the recorded failures after which the body made no more calls (siblings in a
            `gather`, of which only one is raised).
    """
    trim(error)
    parts = leaves(error)
    first = next((part for part in parts if isinstance(part, ActivityFailedError)), error)
    if isinstance(first, ActivityFailedError):
        error_type, activity = first.error_type, first.activity
    else:
        error_type, activity = type(error).__name__, None
    record = DocumentFailureRecord(
        error=message_of_group(error, parts[0]) if isinstance(first, BaseExceptionGroup) else _message_of(first),
        error_type=error_type,
        activity=activity,
        attempts=attempts,
    )
    return AttemptFailed(
        error=error,
        record=record,
        retryable=all(_leaves_room(part) for part in parts),
        # The failures that ended the attempt: the next attempt runs those activities again. A failure that the body
        # caught stays recorded, and is replayed.
        failures_to_delete=tuple(sorted({*last_failures, *_checkpoints_behind(error)})),
    )


def note_checkpoint(error: ActivityFailedError, key: str) -> None:
    """Remember the key of an error's recorded failure."""
    error.__dict__["_checkpoint"] = key


def _checkpoints_behind(error: BaseException) -> Iterator[str]:
    for part in related(error):
        key: str | None = own_attribute(part, "__dict__").get("_checkpoint")
        if key is not None:
            yield key


def _message_of(error: BaseException) -> str:
    if isinstance(error, CancelledError) and not error.args:
        return _CANCELLED
    return message_of(error)


def _leaves_room(error: BaseException) -> bool:
    if isinstance(error, ActivityFailedError):
        return error.retryable
    return is_retryable(error)
