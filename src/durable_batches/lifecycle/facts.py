"""Facts: what a worker reports about executions that it owns.

Every fact names its batch's run and its attempt, so that a stale one is recognised. `position` is the document's
ordinal in its batch; the resolver has `RESOLVER_POSITION`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias, final

from durable_batches.lifecycle.records import Micros, WorkerId
from durable_batches.lifecycle.states import BatchId

__all__ = [
    "ActivityCompleted",
    "ActivityFailed",
    "CallReserved",
    "ExecutionFailed",
    "ExecutionReleased",
    "ExecutionSucceeded",
    "Fact",
    "LateResult",
    "ProviderAnswered",
    "StageEntered",
]


@final  # and so told apart by its type alone, by type checkers too
class ActivityCompleted(NamedTuple):
    """Report that an activity call returned; `payload` is its encoded result."""

    batch_id: BatchId
    run: int
    position: int
    attempt: int
    key: str
    payload: bytes
    mark: int = -1
    """The index of the latest stage that the document has entered; a quick call needs no `StageEntered` beside it."""
    stage: int = -1
    """The index of the stage in which it was called, of those that this attempt has entered; -1: in none."""
    spent: str | None = None
    """What its attempts have spent (`spending.encode_spends`); None: nothing."""


class ActivityFailed(NamedTuple):
    """Report that an activity call has used up its attempts; `payload` is the encoded failure."""

    batch_id: BatchId
    run: int
    position: int
    attempt: int
    key: str
    payload: bytes
    stage: int = -1
    """The index of the stage in which it was called; -1: in none."""
    spent: str | None = None
    """What its attempts have spent; None: nothing."""


class StageEntered(NamedTuple):
    """Report that the document has entered the stage of this index."""

    batch_id: BatchId
    run: int
    position: int
    attempt: int
    mark: int


class ExecutionSucceeded(NamedTuple):
    """Report that the workflow (or resolver) returned."""

    batch_id: BatchId
    run: int
    position: int
    attempt: int
    outcome: bytes
    unused_checkpoints: int = 0
    spent: str | None = None
    """What calls have spent that ended without a record; None: nothing."""
    replayed: str | None = None
    """What the results had cost that were found recorded; None: nothing."""


class ExecutionFailed(NamedTuple):
    """Report that the workflow (or resolver) raised."""

    batch_id: BatchId
    run: int
    position: int
    attempt: int
    outcome: bytes
    """The encoded failure."""
    error: str
    """One line for people."""
    retryable: bool = True
    """False: no failure policy retries it."""
    retry_in: Micros | None = None
    """Of a resolver: the delay that its own retry policy asks for; None: it has failed for good."""
    forget: tuple[str, ...] = ()
    """Keys of the recorded failures that ended this attempt: the next one runs those activities again."""
    error_type: str = ""
    """The name of the error's class; it, `activity` and `error` say which group of failures this one belongs to."""
    activity: str | None = None
    """The activity that failed; None: the workflow itself."""
    spent: str | None = None
    """As of `ExecutionSucceeded`."""
    replayed: str | None = None
    """As of `ExecutionSucceeded`."""


class ExecutionReleased(NamedTuple):
    """Report that the worker releases the execution, which is unfinished and has not failed."""

    batch_id: BatchId
    run: int
    position: int
    attempt: int
    reason: Literal["shutdown", "paused", "quota", "crash"] = "shutdown"
    """Why: a shutdown, or a pause of its batch; "quota": a provider refused a call for its account, and the batch is to
    be paused; "crash": a call ended the process of its executor again and again, also with none beside it."""
    retry_after: Micros | None = None
    """Of "quota": the delay that the provider asks for."""
    note: str = ""
    """Of "quota": the provider's message, in one line."""
    activity: str = ""
    """Of "quota" and "crash": the name of the activity."""
    spent: str | None = None
    """As of `ExecutionSucceeded`."""
    replayed: str | None = None
    """As of `ExecutionSucceeded`."""


class ProviderAnswered(NamedTuple):
    """Report that a call succeeded of the activity that was refused: the execution that looks has an answer."""

    batch_id: BatchId
    run: int
    position: int
    attempt: int


@final
class LateResult(NamedTuple):
    """Report that an activity call of an earlier session of this process returned, which that could not record.

    Reported only to stores of level 2.
    """

    batch_id: BatchId
    run: int
    position: int
    attempt: int
    """The attempt that made the call."""
    session: WorkerId
    """The session that owned the execution then."""
    key: str
    payload: bytes
    stage: int = -1
    """The index of the stage in which it was called; -1: in none."""
    spent: str | None = None
    """What its attempts have spent; None: nothing."""


@final
class CallReserved(NamedTuple):
    """Ask for room in the batch's budget, before a call begins that says what it is estimated to take.

    It is refused ("budget") where there is none now. The call's record, or the end of the attempt, gives it back.
    """

    batch_id: BatchId
    run: int
    position: int
    attempt: int
    key: str
    """Of the call."""
    tokens: int
    cost: str
    """Money, as text."""


Fact: TypeAlias = (
    ActivityCompleted
    | ActivityFailed
    | StageEntered
    | ExecutionSucceeded
    | ExecutionFailed
    | ExecutionReleased
    | LateResult
    | ProviderAnswered
    | CallReserved
)
