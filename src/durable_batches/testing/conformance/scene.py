"""Set up what the suite's tests use: a store, workers that report and claim, batches; and check what always holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import count
from typing import Final, Literal, TypeAlias

from durable_batches.lifecycle.batch_core import Definition, definition_of, new_batch
from durable_batches.lifecycle.commands import Cancel, Command, Seal
from durable_batches.lifecycle.config import BatchConfig
from durable_batches.lifecycle.events import decode_event
from durable_batches.lifecycle.facts import (
    ActivityCompleted,
    ActivityFailed,
    ExecutionFailed,
    ExecutionReleased,
    ExecutionSucceeded,
    Fact,
    LateResult,
    ProviderAnswered,
    StageEntered,
)
from durable_batches.lifecycle.machine import BatchStateMachine
from durable_batches.lifecycle.policies import ContinueOnFailure, FailurePolicy
from durable_batches.lifecycle.progress import snapshot_of
from durable_batches.lifecycle.records import (
    GENERATION,
    RESOLVER_DOCUMENT_ID,
    RESOLVER_POSITION,
    BatchRecord,
    CheckpointRecord,
    Claim,
    ClaimRequest,
    Committed,
    DocumentRecord,
    EventRecord,
    NewDocument,
    WorkerId,
    WorkerRecord,
)
from durable_batches.lifecycle.states import BatchId, Stage
from durable_batches.stores.protocol import Store
from durable_batches.testing.history.replay import Replay

__all__ = ["CAPACITY", "LEASE", "LETTERS", "STAGES", "Hand", "PassTime", "Scene", "all_events"]

LETTERS: Final = ("letters", "1")
"""The workflow (name, version) of the suite's batches, unless a test says otherwise."""

STAGES: Final = ("reading", "writing", "sending")

LEASE: Final = 30.0
"""Seconds."""

CAPACITY: Final = 100
"""The capacity of the suite's workers: more than any of its tests claims, so that it never is what limits a claim."""

PassTime: TypeAlias = Callable[[float], Awaitable[None]]


class Reading(Stage):
    """The first stage."""

    tag: Literal["reading"] = "reading"


class Writing(Stage):
    """The second."""

    tag: Literal["writing"] = "writing"


class Sending(Stage):
    """The third."""

    tag: Literal["sending"] = "sending"


_MACHINE: Final[BatchStateMachine[Stage]] = BatchStateMachine(Reading, Writing, Sending)


class Scene:
    """A store, and what a test does with it.

    Args:
        store: Open.
        pass_time: Lets a number of seconds pass on the store's clock.
    """

    def __init__(self, store: Store, pass_time: PassTime) -> None:
        self.store: Store = store
        self.pass_time: PassTime = pass_time
        self._batches: list[BatchId] = []
        self._numbers = count(1)

    # ---- workers -------------------------------------------------------------------------------------------

    async def worker(
        self,
        name: str | None = None,
        *,
        lease: float = LEASE,
        store: Store | None = None,
        before: WorkerId | None = None,
        machine: str = "boot",
        process: int = 1,
    ) -> Hand:
        """Register a worker; `before`: the session that its process had before."""
        worker_id = WorkerId(name or f"worker-{next(self._numbers)}")
        store = store or self.store
        workflows = frozenset({LETTERS})
        record = WorkerRecord(
            worker_id, machine, "namespace", process, "started", workflows, before=before, generation=GENERATION
        )
        await store.register(record, round(lease * 1_000_000))
        return Hand(self, store, worker_id)

    # ---- batches -------------------------------------------------------------------------------------------

    def record(
        self,
        batch_id: str | None = None,
        *,
        workflow: tuple[str, str] = LETTERS,
        resolver: bool = False,
        loader: str = "loader",
        config: BatchConfig | None = None,
        concurrency: int = 100,
        policy: FailurePolicy | None = None,
        deadline: float | None = None,
        max_crashes: int = 3,
        metadata: Mapping[str, str] | None = None,
        paused: bool = False,
        created_at: int = 1_900_000_000_000_000,
    ) -> BatchRecord:
        """Return the record of a batch that is to be created."""
        config = config or BatchConfig(
            concurrency=concurrency,
            failure_policy=policy or ContinueOnFailure(),
            deadline=None if deadline is None else timedelta(seconds=deadline),
            max_crashes=max_crashes,
            metadata=dict(metadata or {}),
        )
        record = new_batch(
            batch_id=BatchId(batch_id or f"batch-{next(self._numbers)}"),
            workflow=workflow[0],
            version=workflow[1],
            submitter=WorkerId(loader),
            definition=Definition(STAGES, resolver, config),
            now=created_at,
        )
        return replace(record, paused=paused)

    async def load(self, record: BatchRecord, documents: int | Sequence[NewDocument] = 0) -> BatchId:
        """Create a batch and add its documents (and its resolver), without sealing it."""
        assert record.loader is not None
        existing = await self.store.create(record)
        assert existing is None, f"create() must return None for an id that is new; it returned {existing}"
        chunk = _documents(documents)
        if definition_of(record).resolver:
            chunk = [NewDocument(RESOLVER_POSITION, RESOLVER_DOCUMENT_ID, b""), *chunk]
        if chunk:
            await self.store.add(record.batch_id, record.loader, chunk)
        return record.batch_id

    async def sealed(self, record: BatchRecord, documents: int | Sequence[NewDocument] = 0) -> BatchId:
        """Create, load and seal a batch."""
        assert record.loader is not None
        batch_id = await self.load(record, documents)
        total = documents if isinstance(documents, int) else len(documents)
        sealed = await self.store.control(batch_id, Seal(record.loader, total))
        assert sealed.applied, "Seal by the batch's loader must be applied"
        self._batches.append(batch_id)
        await self.check()
        return batch_id

    async def batch(
        self,
        documents: int | Sequence[NewDocument] = 1,
        *,
        concurrency: int = 100,
        resolver: bool = False,
        policy: FailurePolicy | None = None,
        workflow: tuple[str, str] = LETTERS,
        deadline: float | None = None,
        max_crashes: int = 3,
    ) -> BatchId:
        """Create and seal a batch with a number of documents."""
        record = self.record(
            workflow=workflow,
            resolver=resolver,
            concurrency=concurrency,
            policy=policy,
            deadline=deadline,
            max_crashes=max_crashes,
        )
        return await self.sealed(record, documents)

    async def cancel(self, batch_id: BatchId, request_id: str = "request", reason: str = "") -> Committed:
        """Cancel a batch."""
        committed = await self.store.control(batch_id, Cancel(request_id, reason))
        await self.check()
        return committed

    async def give(self, batch_id: BatchId, command: Command) -> bool:
        """Give a command to a batch; return whether it was applied."""
        committed = await self.store.control(batch_id, command)
        await self.check()
        return committed.applied

    # ---- looking -------------------------------------------------------------------------------------------

    async def look(self, batch_id: BatchId) -> BatchRecord:
        """Read the batch's record."""
        record = await self.store.batch(batch_id)
        assert record is not None, f"batch({batch_id!r}) must return the batch's record; it returned None"
        return record

    async def document(self, batch_id: BatchId, position: int) -> DocumentRecord:
        """Read one document's record (or the resolver's)."""
        page = await self.store.documents(batch_id, after=position - 1, limit=1)
        assert page, f"documents(after={position - 1}, limit=1) must return the document at {position}"
        assert page[0].execution.position == position
        return page[0]

    async def checkpoints(self, batch_id: BatchId, position: int = 0) -> list[CheckpointRecord]:
        """Read the checkpoints of one execution."""
        return list(await self.store.checkpoints(batch_id, position, limit=1_000))

    async def tags(self, batch_id: BatchId) -> list[str]:
        """Read the tags of the batch's events."""
        return [event.tag for event in await all_events(self.store, batch_id)]

    async def check(self) -> None:
        """Check what holds after every write: events have no gap, and rows and counters agree with them."""
        for batch_id in self._batches:
            await self._check(batch_id, await self.look(batch_id))

    async def _check(self, batch_id: BatchId, record: BatchRecord) -> None:
        events = await all_events(self.store, batch_id)
        numbers = [event.seq for event in events]
        assert numbers == list(range(1, len(events) + 1)), (
            f"the events of a batch must be numbered 1, 2, 3, ... without a gap; these are {numbers}"
        )
        assert record.seq == len(events), (
            f"the batch's seq is {record.seq}, its last event has {len(events)}: events and the batch row must be "
            "written in one transaction"
        )
        replay = Replay(definition_of(record))
        for event in events:
            replay.take(decode_event(event))
        snapshot = snapshot_of(record, _MACHINE, record.created_at)
        assert (replay.counts, replay.state) == (record.counts, record.state), (
            "what the events say differs from the batch row: write all of Writes.batches and Writes.events"
        )
        assert replay.percentage == snapshot.percentage, (
            "the percentage that the events say differs from the batch row's: write BatchRecord.core as it is"
        )
        assert not replay.problems, f"the events contradict each other: {replay.problems}"
        counts = record.counts
        parts = (
            counts.pending,
            counts.running,
            counts.waiting,
            counts.succeeded,
            counts.failed,
            counts.cancelled,
        )
        assert sum(parts) == counts.total, f"the counts must sum to the total: {counts}"
        if not record.ended:
            await self._check_rows(batch_id, record)

    async def _check_rows(self, batch_id: BatchId, record: BatchRecord) -> None:
        counts = record.counts
        rows = [document.execution for document in await _all_documents(self.store, batch_id)]
        found = Counter(row.status for row in rows)
        expected = Counter(
            {
                "pending": counts.pending,
                "running": counts.running,
                "waiting": counts.waiting,
                "succeeded": counts.succeeded,
                "failed": counts.failed,
                "cancelled": counts.cancelled,
            }
        )
        assert +found == +expected, (
            f"the documents' statuses {dict(found)} differ from the batch's counts {counts}: write all of "
            "Writes.executions in the transaction that writes Writes.batches"
        )
        owned = [row for row in rows if row.owner is not None]
        assert len(owned) == counts.running, f"{len(owned)} documents have an owner, {counts.running} are running"
        concurrency = definition_of(record).config.concurrency
        updated = "batch_updated" in await self.tags(batch_id)
        assert updated or counts.running <= concurrency, (
            f"{counts.running} documents run, more than the batch's concurrency of {concurrency}: a claim must load "
            "the batch row under its lock before it asks plan_claims"
        )


class Hand:
    """A worker that a test controls: it numbers its commits, and the whole scene is checked after each of them."""

    def __init__(self, scene: Scene, store: Store, worker_id: WorkerId) -> None:
        self._scene = scene
        self.store: Store = store
        self.worker_id: WorkerId = worker_id
        self.number: int = 0

    async def commit(self, *facts: Fact, claim: ClaimRequest | None = None) -> Committed:
        """Make the next commit."""
        committed = await self.store.commit(self.worker_id, self.number + 1, facts, claim)
        self.number += 1
        await self._scene.check()
        return committed

    async def report(self, *facts: Fact) -> Committed:
        """Make the next commit; all of its facts must be applied."""
        committed = await self.commit(*facts)
        assert not committed.refused, f"facts that apply were refused: {dict(committed.refused)}"
        return committed

    async def claim(
        self,
        limit: int = 10,
        *,
        workflows: Iterable[tuple[str, str]] = (LETTERS,),
        held: int = 0,
        window: int = CAPACITY,
        capacity: int = CAPACITY,
        checkpoints: int = 100,
    ) -> Sequence[Claim]:
        """Make the next commit, with a claim alone."""
        request = self.request(
            limit, workflows=workflows, held=held, window=window, capacity=capacity, checkpoints=checkpoints
        )
        return (await self.commit(claim=request)).claims

    async def take(self, limit: int = 1) -> Claim:
        """Claim exactly one (of the first `limit`)."""
        claims = await self.claim(limit)
        assert len(claims) == 1, f"one execution can be claimed here; the claim returned {len(claims)}"
        return claims[0]

    @staticmethod
    def request(
        limit: int = 10,
        *,
        workflows: Iterable[tuple[str, str]] = (LETTERS,),
        held: int = 0,
        window: int = CAPACITY,
        capacity: int = CAPACITY,
        checkpoints: int = 100,
        batches: Iterable[BatchId] | None = None,
        metadata: Mapping[str, str] | None = None,
        without: Iterable[BatchId] = (),
    ) -> ClaimRequest:
        """Return a claim request."""
        return ClaimRequest(
            workflows=frozenset(workflows),
            limit=limit,
            held=held,
            window=window,
            capacity=capacity,
            checkpoints=checkpoints,
            batches=None if batches is None else frozenset(batches),
            metadata=metadata or {},
            without=frozenset(without),
        )

    # ---- facts about a claim -------------------------------------------------------------------------------

    @staticmethod
    def recorded(
        claim: Claim, key: str, payload: bytes = b"result", *, stage: int = -1, spent: str | None = None
    ) -> ActivityCompleted:
        """Return the fact that an activity succeeded."""
        return ActivityCompleted(*_identity(claim), key, payload, stage=stage, spent=spent)

    @staticmethod
    def late(
        claim: Claim, key: str, payload: bytes = b"result", *, stage: int = -1, spent: str | None = None
    ) -> LateResult:
        """Return the fact that an activity of a claim of another session had succeeded."""
        assert claim.execution.owner is not None
        return LateResult(*_identity(claim), claim.execution.owner, key, payload, stage=stage, spent=spent)

    @staticmethod
    def recorded_failure(
        claim: Claim, key: str, payload: bytes = b"failure", *, stage: int = -1, spent: str | None = None
    ) -> ActivityFailed:
        """Return the fact that an activity failed for good."""
        return ActivityFailed(*_identity(claim), key, payload, stage=stage, spent=spent)

    @staticmethod
    def entered(claim: Claim, mark: int) -> StageEntered:
        """Return the fact that the document entered this stage."""
        return StageEntered(*_identity(claim), mark)

    @staticmethod
    def succeeded(claim: Claim, outcome: bytes = b"outcome", unused: int = 0) -> ExecutionSucceeded:
        """Return the fact that the workflow returned."""
        return ExecutionSucceeded(*_identity(claim), outcome, unused)

    @staticmethod
    def failed(
        claim: Claim,
        outcome: bytes = b"error",
        *,
        error: str = "it broke",
        retryable: bool = True,
        retry_in: float | None = None,
        forget: Iterable[str] = (),
        error_type: str = "",
        activity: str | None = None,
    ) -> ExecutionFailed:
        """Return the fact that the workflow raised."""
        delay = None if retry_in is None else round(retry_in * 1_000_000)
        return ExecutionFailed(*_identity(claim), outcome, error, retryable, delay, tuple(forget), error_type, activity)

    @staticmethod
    def released(claim: Claim) -> ExecutionReleased:
        """Return the fact that the worker releases the execution."""
        return ExecutionReleased(*_identity(claim))

    @staticmethod
    def refused(claim: Claim, *, note: str = "no credit left", activity: str = "ask") -> ExecutionReleased:
        """Return the fact that a provider refused a call for its account."""
        return ExecutionReleased(*_identity(claim), "quota", None, note, activity)

    @staticmethod
    def answered(claim: Claim) -> ProviderAnswered:
        """Return the fact that the provider serves again."""
        return ProviderAnswered(*_identity(claim))


def _identity(claim: Claim) -> tuple[BatchId, int, int, int]:
    execution = claim.execution
    return execution.batch_id, execution.run, execution.position, execution.attempt


def _documents(documents: int | Sequence[NewDocument]) -> list[NewDocument]:
    if isinstance(documents, int):
        return [NewDocument(position, f"document-{position}", b"input %d" % position) for position in range(documents)]
    return list(documents)


async def all_events(store: Store, batch_id: BatchId, *, page: int = 1_000) -> list[EventRecord]:
    """Read all events of a batch, page by page."""
    found: list[EventRecord] = []
    while True:
        events = await store.events(batch_id, after=found[-1].seq if found else 0, limit=page)
        found += events
        if len(events) < page:
            return found


async def _all_documents(store: Store, batch_id: BatchId) -> list[DocumentRecord]:
    found: list[DocumentRecord] = []
    while True:
        after = found[-1].execution.position if found else RESOLVER_POSITION
        page = await store.documents(batch_id, after=after, limit=1_000, inputs=False)
        found += page
        if len(page) < 1_000:
            return found
