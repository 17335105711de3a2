"""Stand between a worker and its store: tell whether a call is under way, and let the process be killed.

A process that dies hears no reply any more, and nothing that it had not handed to the store by then gets there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final, TypeVar

from durable_batches.errors import ConfigurationError, WorkerFencedError
from durable_batches.lifecycle.commands import Command, Seal
from durable_batches.lifecycle.facts import Fact
from durable_batches.lifecycle.records import (
    BatchRecord,
    CheckpointRecord,
    ClaimRequest,
    Committed,
    DocumentRecord,
    EventRecord,
    ExecutionStatus,
    Micros,
    NewDocument,
    SharedLimit,
    SharedWrites,
    WorkerId,
    WorkerRecord,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.protocol import (
    BatchQuery,
    Capabilities,
    Expired,
    Heart,
    SharedLimits,
    Store,
    WaitsForClaims,
)

__all__ = ["CrashableStore"]

T = TypeVar("T")


class CrashableStore:
    """A store as one process sees it.

    Args:
        store: Where everything goes to.
    """

    def __init__(self, store: Store) -> None:
        self.inner: Final = store
        self.calls: int = 0
        """How many calls were made so far."""
        self.writes: int = 0
        """How many of them write."""
        self.under_way: int = 0
        """How many are not answered yet; `wait`, which is a kind of sleep, is not among them."""
        self._killed: set[WorkerId] = set()

    def __repr__(self) -> str:
        return repr(self.inner)

    def kill(self, worker: WorkerId) -> None:
        """Kill this worker's process: nothing that it (or a submission through it) asks for is done from here on."""
        self._killed.add(worker)

    # ---- every call ------------------------------------------------------------------------------------------

    async def _read(self, call: Callable[[], Awaitable[T]]) -> T:
        self.check(None)
        return await self._answered(call)

    async def _write(self, method: str, call: Callable[[], Awaitable[T]], by: WorkerId | None = None) -> T:
        self.check(by)
        self.writes += 1
        number = self.writes
        self.before_write(number, method)
        answer = await self._answered(call)
        self.after_write(number, method)
        self.check(by)
        return answer

    async def _answered(self, call: Callable[[], Awaitable[T]]) -> T:
        self.calls += 1
        self.under_way += 1
        try:
            return await call()
        finally:
            self.under_way -= 1

    def check(self, by: WorkerId | None) -> None:
        """Refuse a killed worker.

        Raises:
            WorkerFencedError: `by` is killed.
        """
        if by in self._killed:
            assert by is not None
            raise WorkerFencedError(by)

    def before_write(self, number: int, method: str) -> None:
        """Called before each write, with its number; what this raises it raises."""

    def after_write(self, number: int, method: str) -> None:
        """Called when a write was applied, before it is answered; what this raises it raises."""

    def committed(self, facts: Sequence[Fact], committed: Committed) -> None:
        """Called when a commit was applied, before it is answered."""

    # ---- the store's methods ---------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """See `Store.capabilities`."""
        return self.inner.capabilities

    async def open(self) -> None:
        """See `Store.open`; also for a killed worker, which is closed in the end."""
        await self._answered(self.inner.open)

    async def close(self) -> None:
        """See `Store.close`; also for a killed worker, which is closed in the end."""
        await self._answered(self.inner.close)

    async def register(self, worker: WorkerRecord, lease: Micros) -> None:
        """See `Store.register`; the process that comes after a killed one knows nothing of that one's session."""
        if worker.before in self._killed:
            worker = worker._replace(before=None)
        await self._write("register", lambda: self.inner.register(worker, lease), worker.worker_id)

    def heart(self, worker: WorkerId) -> Heart:
        """See `Store.heart`."""
        return self.inner.heart(worker)

    async def workers(self) -> Sequence[WorkerRecord]:
        """See `Store.workers`."""
        return await self._read(self.inner.workers)

    async def expire(self, *, dead: Collection[WorkerId] = ()) -> Expired:
        """See `Store.expire`."""
        return await self._write("expire", lambda: self.inner.expire(dead=dead))

    async def leave(self, worker: WorkerId) -> Sequence[EventRecord]:
        """See `Store.leave`; a killed worker has left nothing that could still be released."""
        if worker in self._killed:
            return ()
        return await self._write("leave", lambda: self.inner.leave(worker), worker)

    async def create(self, batch: BatchRecord) -> BatchRecord | None:
        """See `Store.create`."""
        return await self._write("create", lambda: self.inner.create(batch), batch.loader)

    async def add(self, batch_id: BatchId, loader: WorkerId, documents: Sequence[NewDocument]) -> None:
        """See `Store.add`."""
        await self._write("add", lambda: self.inner.add(batch_id, loader, documents), loader)

    async def commit(
        self, worker: WorkerId, number: int, facts: Sequence[Fact], claim: ClaimRequest | None = None
    ) -> Committed:
        """See `Store.commit`."""

        async def call() -> Committed:
            committed = await self.inner.commit(worker, number, facts, claim)
            self.committed(facts, committed)
            return committed

        return await self._write("commit", call, worker)

    async def control(self, batch_id: BatchId, command: Command) -> Committed:
        """See `Store.control`."""
        # Not `Discard`: its loader may be dead, and another submitter removes its partial submission.
        by = command.loader if isinstance(command, Seal) else None
        return await self._write("control", lambda: self.inner.control(batch_id, command), by)

    async def batch(self, batch_id: BatchId) -> BatchRecord | None:
        """See `Store.batch`."""
        return await self._read(lambda: self.inner.batch(batch_id))

    async def batches(self, query: BatchQuery, *, after: BatchId | None = None, limit: int) -> Sequence[BatchRecord]:
        """See `Store.batches`."""
        return await self._read(lambda: self.inner.batches(query, after=after, limit=limit))

    async def documents(
        self,
        batch_id: BatchId,
        *,
        statuses: Collection[ExecutionStatus] = (),
        after: int = -1,
        limit: int,
        inputs: bool = True,
    ) -> Sequence[DocumentRecord]:
        """See `Store.documents`."""
        return await self._read(
            lambda: self.inner.documents(batch_id, statuses=statuses, after=after, limit=limit, inputs=inputs)
        )

    async def checkpoints(
        self, batch_id: BatchId, position: int, *, after: str = "", limit: int
    ) -> Sequence[CheckpointRecord]:
        """See `Store.checkpoints`."""
        return await self._read(lambda: self.inner.checkpoints(batch_id, position, after=after, limit=limit))

    async def count_checkpoints(self, batch_id: BatchId) -> int:
        """See `Store.count_checkpoints`."""
        return await self._read(lambda: self.inner.count_checkpoints(batch_id))

    async def events(self, batch_id: BatchId, *, after: int, limit: int) -> Sequence[EventRecord]:
        """See `Store.events`."""
        return await self._read(lambda: self.inner.events(batch_id, after=after, limit=limit))

    async def take(self, name: str, worker: WorkerId, plan: Callable[[SharedLimit], SharedWrites[T]]) -> T:
        """See `SharedLimits.take`."""
        inner = self.inner
        if not isinstance(inner, SharedLimits):
            raise ConfigurationError(f"{type(inner).__name__} keeps no limits that workers share")
        return await self._write("take", lambda: inner.take(name, worker, plan), worker)

    async def wait(self, seen: Mapping[BatchId, int], *, work: Collection[tuple[str, str]], timeout: Micros) -> None:
        """See `Store.wait`."""
        self.check(None)
        await self.inner.wait(seen, work=work, timeout=timeout)

    async def wait_for_claim(self, request: ClaimRequest, *, timeout: Micros) -> None:
        """See `WaitsForClaims.wait_for_claim`; in a store that is none, a wait for all work of its workflows."""
        self.check(None)
        if isinstance(self.inner, WaitsForClaims):
            await self.inner.wait_for_claim(request, timeout=timeout)
        else:
            await self.inner.wait({}, work=request.workflows, timeout=timeout)
