"""Records: the rows that a store keeps, of primitives and opaque bytes. The pure core reads and writes nothing else.

Times are whole microseconds since the epoch (UTC), on the store's clock. The records of the hot path are named
tuples: immutable, and as cheap to make and to bind to a statement as Python has them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Literal, NamedTuple, NewType, Self, TypeAlias, TypeVar

from durable_batches.lifecycle.primitives import Value
from durable_batches.lifecycle.states import BatchId, Counts

__all__ = [
    "GENERATION",
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
    "FailureRecord",
    "Micros",
    "NewDocument",
    "Refusal",
    "RequestRecord",
    "SharedLimit",
    "SharedSlot",
    "SharedWrites",
    "SignalRecord",
    "WorkerId",
    "WorkerRecord",
    "is_selected",
]

WorkerId = NewType("WorkerId", str)

T = TypeVar("T")

Micros: TypeAlias = int
"""Microseconds: since the epoch for a moment, or of a duration."""

ExecutionStatus: TypeAlias = Literal["pending", "running", "waiting", "succeeded", "failed", "cancelled"]

ExecutionKey: TypeAlias = tuple[BatchId, int]
"""An execution's batch, and its document's ordinal in it (`RESOLVER_POSITION` for the resolver)."""

Refusal: TypeAlias = Literal["unknown", "ended", "superseded", "budget"]
"""Why a fact was not applied: no such batch or execution; its run has ended; another attempt has taken over; or the
budget of the batch has no room for the call."""

RESOLVER_POSITION: Final = -1
"""The ordinal of a batch's resolver: before every document, and so outside of every page of them."""

RESOLVER_DOCUMENT_ID: Final = ""

NOW: Final[Micros] = 0
"""As a due time: at once."""

GENERATION: Final = 3
"""What this library can do with a batch: it claims those that need no more (`BatchRecord.needs`). A feature that an
older library would handle wrongly makes a batch need the generation that has it: 1 knows pauses for a quota, 2
`ContinueOnFailure(min_failures=)`, 3 `BatchConfig.budget`."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class BatchRecord(Value):
    """One row a batch. Values that a store filters or sorts by have a field; the state machine's own are in `core`."""

    batch_id: BatchId
    workflow: str
    version: str
    loader: WorkerId | None
    """The submitter, until the batch is sealed; an unsealed batch is invisible to everything but `submit`."""
    run: int
    """The number of the batch's run: 1 is the first, a redrive starts the next."""
    state: str
    """The tag of the state."""
    paused: bool
    counts: Counts
    seq: int
    """The sequence number of the last event."""
    free: int
    """Open slots: how many more executions may be owned now; 0: a claim need not look here."""
    wake: Micros | None
    """When a claim has to look at the batch even without an open slot (its deadline); None: never."""
    served: int
    """Grows with each claim from this batch: those with the smallest are served first."""
    core: bytes
    metadata: Mapping[str, str]
    created_at: Micros
    needs: int = 0
    """The `GENERATION` of the library that it takes to run it."""
    next_due: Micros | None = None
    """Of a batch with nothing to claim by now: when the first of its executions is due by time; None: none will be."""
    priority: int = 0
    """Batches of a higher one are served first."""
    partition: str = ""
    """A tenant: the capacity of workers is divided between these first."""
    purged: int = 0
    """How far the run's data is purged; 0: not at all."""
    ended_at: Micros | None = None

    @property
    def sealed(self) -> bool:
        """Whether the batch is wholly loaded."""
        return self.loader is None

    @property
    def ended(self) -> bool:
        """Whether the current run has ended."""
        return self.state in ("completed", "failed", "cancelled")


class ExecutionRecord(NamedTuple):
    """One row a document and one for the resolver: the values that change, none of the large ones."""

    batch_id: BatchId
    position: int
    document_id: str
    run: int
    status: ExecutionStatus
    mark: int
    """The index of the latest stage it has entered in this run; -1: none yet."""
    attempt: int
    """Claims so far."""
    failures: int
    """Attempts that failed; crashes and clean releases do not count."""
    crashes: int
    """Crashes of its process since it last recorded something, as far as none of them was taken back."""
    alone: bool
    """Whether its worker ran nothing else when it was claimed in isolation, and it has recorded nothing since."""
    owner: WorkerId | None
    due: Micros | None
    """The time from which it can be claimed (`NOW`: immediately); None: not by time (running, suspended, finished)."""
    updated_at: Micros
    expires: Micros | None = None
    """The document's deadline, waits included; None: it has none."""
    taken_from: WorkerId | None = None
    """The session that the last of its crashes was counted for: should its process be seen again, it is taken back.
    None: there was none, or progress since."""
    forget_from: int | None = None
    """Its next claim deletes the checkpoints of this stage and later ones; None: it deletes none."""
    fingerprint: str | None = None
    """The group of failures that it ended with; None: it has not failed for good."""


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
    stage: int | None = None
    """The index of the stage that the document was in; -1: in none yet; None: unknown."""
    spent: str | None = None
    """What the call cost, as JSON; None: it did not say."""


class CheckpointWrite(NamedTuple):
    """A checkpoint to be recorded; where the key has one already, that one stays."""

    batch_id: BatchId
    position: int
    key: str
    kind: Literal["succeeded", "failed"]
    payload: bytes
    stage: int | None = None
    spent: str | None = None


class SignalRecord(NamedTuple):
    """A signal that was sent to a document and not consumed yet."""

    ordinal: int
    document_id: str
    name: str
    payload: bytes


class RequestRecord(NamedTuple):
    """A command that was carried out or refused, by the id of its request: repeated, it is answered as before."""

    batch_id: BatchId
    request_id: str
    at: Micros
    answer: str
    """JSON, which no store reads."""


class FailureRecord(NamedTuple):
    """Documents of one run that failed for good for one reason: a row, or what is to be added to one."""

    batch_id: BatchId
    run: int
    fingerprint: str
    """Of the failures; "": those beyond the groups that a run may have."""
    error_type: str
    activity: str | None
    stage: str | None
    """The stage in which the first of them failed; None: in none."""
    message: str
    """Of the first one."""
    documents: int
    first_position: int
    """The smallest of their positions."""
    first_at: Micros
    last_at: Micros
    examples: bytes
    """Some of the first, a line of JSON each."""


class EventRecord(NamedTuple):
    """One event as it is stored."""

    batch_id: BatchId
    seq: int
    at: Micros
    tag: str
    data: bytes


def is_selected(batch: BatchRecord, batch_ids: Collection[BatchId], metadata: Mapping[str, str]) -> bool:
    """Whether a batch has one of these ids, or all of these labels; no labels: one of these ids."""
    if batch.batch_id in batch_ids:
        return True
    return bool(metadata) and all(batch.metadata.get(name) == value for name, value in metadata.items())


class ClaimRequest(NamedTuple):
    """A worker's request for executions, which comes with a commit."""

    workflows: frozenset[tuple[str, str]]
    """The (name, version) pairs of the batches that it can run."""
    limit: int
    """Executions at most."""
    held: int
    """Executions that it will hold beside the new ones, when this commit's facts have been applied."""
    window: int
    """How many it may hold at all: its capacity, or less while it holds a possible poison document."""
    capacity: int
    checkpoints: int
    """Checkpoints at most that come with each claim; the rest is read by `Store.checkpoints`."""
    batches: frozenset[BatchId] | None = None
    """Take from these batches, and from those with the labels of `metadata`; None, and no labels: from all."""
    metadata: Mapping[str, str] = {}
    """Take from batches that have all of these labels; none: from those of `batches` alone."""
    without: frozenset[BatchId] = frozenset()
    """Leave these batches out."""

    @classmethod
    def of_workflows(cls, workflows: Iterable[tuple[str, str]]) -> Self:
        """Make a request for one execution of whatever batch of these workflows, as of a worker that has nothing."""
        return cls(frozenset(workflows), limit=1, held=0, window=1, capacity=1, checkpoints=0)

    @property
    def takes_from_all(self) -> bool:
        """Whether it takes from all batches of its workflows."""
        return self.names_none and not self.without

    @property
    def names_none(self) -> bool:
        """Whether it names no batches to take from, and so takes from any."""
        return self.batches is None and not self.metadata

    def takes_from(self, batch: BatchRecord) -> bool:
        """Whether the worker can run this batch, and wants to."""
        if batch.needs > GENERATION or (batch.workflow, batch.version) not in self.workflows:
            return False
        if batch.batch_id in self.without:
            return False
        return self.names_none or is_selected(batch, self.batches or (), self.metadata)


class Claim(NamedTuple):
    """An execution that this worker owns from now on, with everything that running it takes."""

    batch: BatchRecord
    execution: ExecutionRecord
    input: bytes
    checkpoints: Sequence[CheckpointRecord]
    more_checkpoints: bool
    signals: Sequence[SignalRecord]


class Committed(NamedTuple):
    """The answer to a commit or a command."""

    events: Sequence[EventRecord] = ()
    """The appended events, in order per batch, for the subscribers of this process."""
    refused: Mapping[int, Refusal] = {}
    """The facts, by their index, that were not applied; all the others were."""
    claims: Sequence[Claim] = ()
    retry_in: Micros | None = None
    """Where a claim was asked for: the time until something falls due, by the store's clock. None: nothing will."""
    applied: bool = True
    """Whether a command was carried out."""
    set_aside: Mapping[BatchId, str] = {}
    """As `Writes` has it, for the log."""


class WorkerRecord(NamedTuple):
    """One session of a worker. The identity of its process shows, on the same machine, whether it has ended."""

    worker_id: WorkerId
    boot_id: str
    pid_namespace: str
    pid: int
    started: str
    workflows: frozenset[tuple[str, str]]
    note: str | None = None
    """What it does and what holds it up, for readers (`NotedHeart.tell`); opaque to a store."""
    before: WorkerId | None = None
    """The session that the same process had before this one."""
    generation: int = 0
    """The `GENERATION` of its library."""


class SharedSlot(NamedTuple):
    """What one worker has of a limit that workers share; it goes with the worker's row."""

    amount: int
    """Calls at once, 0 or more."""
    data: bytes = b""
    """Opaque to a store."""


class SharedLimit(NamedTuple):
    """A limit that workers share, at one moment."""

    now: Micros
    """By the clock that leases are measured on; after a reboot it may have gone back."""
    data: bytes | None
    """Opaque to a store; None: nothing was written yet."""
    slots: Mapping[WorkerId, SharedSlot]
    """Those of the workers that are registered: who asks, if it has one, and others."""


class SharedWrites(NamedTuple, Generic[T]):
    """What to write of a limit that workers share, and the answer to the worker that asked."""

    data: bytes
    slot: SharedSlot
    """Of the worker that asked."""
    answer: T
