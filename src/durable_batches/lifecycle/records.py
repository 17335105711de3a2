"""What a store keeps: primitives and opaque bytes, named. The pure core reads and writes these and nothing else.

Times are whole microseconds since the epoch (UTC), on the store's clock. The records of the hot path are named
tuples: immutable, and as cheap to make and to bind to a statement as Python has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, NewType, TypeAlias

from durable_batches.lifecycle.states import BatchId, Counts

__all__ = [
    "RESOLVER_DOCUMENT_ID",
    "RESOLVER_POSITION",
    "BatchRecord",
    "CheckpointRecord",
    "CheckpointWrite",
    "Claim",
    "ClaimRequest",
    "Committed",
    "DocumentRecord",
    "EventRecord",
    "ExecutionKey",
    "ExecutionRecord",
    "ExecutionStatus",
    "Micros",
    "NewDocument",
    "Refusal",
    "SignalRecord",
    "WorkerId",
    "WorkerRecord",
]

WorkerId = NewType("WorkerId", str)

Micros: TypeAlias = int
"""Microseconds: since the epoch for a moment, or of a duration."""

ExecutionStatus: TypeAlias = Literal["pending", "running", "waiting", "succeeded", "failed", "cancelled"]

ExecutionKey: TypeAlias = tuple[BatchId, int]
"""Which execution: its batch, and its document's place in it (`RESOLVER_POSITION` for the resolver)."""

Refusal: TypeAlias = Literal["unknown", "ended", "superseded"]
"""Why a fact was not applied: no such batch or execution; its run has ended; another attempt has taken over."""

RESOLVER_POSITION: Final = -1
"""Where a batch's resolver has its execution: before every document, and so outside of every page of them."""

RESOLVER_DOCUMENT_ID: Final = ""

NOW: Final[Micros] = 0
"""As a due time: at once."""


@dataclass(frozen=True, kw_only=True)
class BatchRecord:
    """One row a batch. What a store filters or sorts by has a field; the state machine's own row is `core`."""

    batch_id: BatchId
    workflow: str
    version: str
    loader: WorkerId | None
    """The submitter, until the batch is sealed; an unsealed batch is invisible to everything but `submit`."""
    run: int
    """The passage of the batch that this row speaks of: 1 is the first, a redrive starts the next."""
    state: str
    """The tag of the state."""
    paused: bool
    counts: Counts
    seq: int
    """The sequence number of the last event."""
    free: int
    """How many more executions may be owned now; 0: a claim need not look here."""
    wake: Micros | None
    """When the batch wants a claim to look at it even with nothing free (its deadline); None: never."""
    served: int
    """Grows with each claim from this batch: those with the smallest are served first."""
    core: bytes
    metadata: Mapping[str, str]
    created_at: Micros

    @property
    def sealed(self) -> bool:
        """Whether the batch is wholly loaded."""
        return self.loader is None

    @property
    def ended(self) -> bool:
        """Whether the current run has ended."""
        return self.state in ("completed", "failed", "cancelled")


class ExecutionRecord(NamedTuple):
    """One row a document and one for the resolver: all that changes, none of what is large."""

    batch_id: BatchId
    position: int
    document_id: str
    run: int
    status: ExecutionStatus
    mark: int
    """The index of the latest stage it has started in this run; -1: none yet."""
    attempt: int
    """Claims so far."""
    failures: int
    """Attempts that failed; crashes and clean releases do not count."""
    crashes: int
    alone: bool
    """Whether the current attempt's worker runs nothing else beside it."""
    owner: WorkerId | None
    due: Micros | None
    """From when it can be claimed (`NOW`: at once); None: not by the clock (running, suspended, ended)."""
    updated_at: Micros


class DocumentRecord(NamedTuple):
    """An execution with its payloads: the encoded document, and the encoded result or failure, if any."""

    execution: ExecutionRecord
    input: bytes
    outcome: bytes | None


class NewDocument(NamedTuple):
    """A document on its way in."""

    position: int
    document_id: str
    input: bytes


class CheckpointRecord(NamedTuple):
    """The recorded result, or final failure, of one activity call. The first record wins; it never changes."""

    key: str
    kind: Literal["succeeded", "failed"]
    payload: bytes


class CheckpointWrite(NamedTuple):
    """A checkpoint to be recorded; where the key has one already, that one stays."""

    batch_id: BatchId
    position: int
    key: str
    kind: Literal["succeeded", "failed"]
    payload: bytes


class SignalRecord(NamedTuple):
    """A signal that was sent to a document and not consumed yet."""

    ordinal: int
    document_id: str
    name: str
    payload: bytes


class EventRecord(NamedTuple):
    """One event as it is stored."""

    batch_id: BatchId
    seq: int
    at: Micros
    tag: str
    data: bytes


class ClaimRequest(NamedTuple):
    """What a worker asks for with a commit: to own some executions."""

    workflows: frozenset[tuple[str, str]]
    """The (name, version) pairs of the batches that it can run."""
    limit: int
    """Executions at most."""
    held: int
    """Executions that it will hold beside the new ones, when this commit's facts have been applied."""
    window: int
    """How many it may hold at all: its capacity, or less while a suspect is among them."""
    capacity: int
    checkpoints: int
    """Checkpoints at most that come with each claim; the rest is read by `Store.checkpoints`."""


class Claim(NamedTuple):
    """An execution that is now this worker's, with what it takes to run it."""

    batch: BatchRecord
    execution: ExecutionRecord
    input: bytes
    checkpoints: Sequence[CheckpointRecord]
    more_checkpoints: bool
    signals: Sequence[SignalRecord]


class Committed(NamedTuple):
    """The answer to a commit or a command."""

    events: Sequence[EventRecord] = ()
    """What was appended, per batch in order: handed to this process's subscribers without another read."""
    refused: Mapping[int, Refusal] = {}
    """The facts, by their index, that were not applied; all the others were."""
    claims: Sequence[Claim] = ()
    retry_in: Micros | None = None
    """Where a claim was asked for: the time until something falls due, by the store's clock. None: nothing will."""
    applied: bool = True
    """Of a command: whether it did what it says."""


class WorkerRecord(NamedTuple):
    """One incarnation of a worker. The identity of its process tells on one machine whether it is dead."""

    worker_id: WorkerId
    boot_id: str
    pid_namespace: str
    pid: int
    started: str
    workflows: frozenset[tuple[str, str]]
