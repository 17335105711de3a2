"""Facts: what a worker reports about executions that it owns.

Every fact names its batch's run and its attempt, so that a stale one is recognised. `position` is the document's
ordinal in its batch; the resolver has `RESOLVER_POSITION`.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias, final

from durable_batches.lifecycle.records import Micros
from durable_batches.lifecycle.states import BatchId

__all__ = [
    "ActivityCompleted",
    "ActivityFailed",
    "ExecutionFailed",
    "ExecutionReleased",
    "ExecutionSucceeded",
    "Fact",
    "StageEntered",
]


@final  # and so told apart by its type alone, by type checkers too
class ActivityCompleted(NamedTuple):
    """An activity call returned; `payload` is its encoded result."""

    batch_id: BatchId
    run: int
    position: int
    attempt: int
    key: str
    payload: bytes
    mark: int = -1
    """The index of the latest stage that the document has started; no fact of its own where the call was quick."""


class ActivityFailed(NamedTuple):
    """An activity call's attempts are used up; `payload` is the encoded failure."""

    batch_id: BatchId
    run: int
    position: int
    attempt: int
    key: str
    payload: bytes


class StageEntered(NamedTuple):
    """The document has started the stage of this index."""

    batch_id: BatchId
    run: int
    position: int
    attempt: int
    mark: int


class ExecutionSucceeded(NamedTuple):
    """The workflow (or resolver) returned."""

    batch_id: BatchId
    run: int
    position: int
    attempt: int
    outcome: bytes
    unused_checkpoints: int = 0


class ExecutionFailed(NamedTuple):
    """The workflow (or resolver) raised."""

    batch_id: BatchId
    run: int
    position: int
    attempt: int
    outcome: bytes
    """The encoded failure."""
    error: str
    """One line for people."""
    retryable: bool = True
    """False: no failure policy tries it again."""
    retry_in: Micros | None = None
    """Of a resolver: the delay that its own retry policy asks for; None: it has failed for good."""
    forget: tuple[str, ...] = ()
    """Keys of the recorded failures that ended this attempt: the next one runs those activities again."""


class ExecutionReleased(NamedTuple):
    """The worker gives the execution back, unfinished and through no fault of its own."""

    batch_id: BatchId
    run: int
    position: int
    attempt: int


Fact: TypeAlias = (
    ActivityCompleted | ActivityFailed | StageEntered | ExecutionSucceeded | ExecutionFailed | ExecutionReleased
)
