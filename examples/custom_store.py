"""A store of your own: everything in memory, every change in a journal file.

    python examples/custom_store.py          (needs: pip install durable-batches)

Run it twice: the second run finds the batch of the first and runs nothing.

A store decides nothing. Whatever it is asked to write, it does the same four steps in one transaction: lock; load
the rows in question; ask the library's pure `plan_...` functions what to write; write exactly that. So an adapter
for a database of yours has the methods of this class, with its own way to lock, load and write. It is done when it
passes the conformance suite (`durable_batches.testing.StoreConformance`); tests/examples/test_custom_store.py is
that test of this one. docs/how-to/write-a-store.md goes through it, step by step.

What this one is good for: one process, batches that fit into memory (it looks through all documents of a batch at
each claim), and a file that a person can read. Each transaction is one line of JSON. It is in the file, and the
disk has confirmed it, before anybody is told that it was written; a line that a crash cut off was never promised.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from itertools import islice
from pathlib import Path
from types import CoroutineType
from typing import Any, BinaryIO, Concatenate, Final, Literal, NamedTuple, ParamSpec, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from durable_batches import BatchId, BatchOrchestrator, BatchStateMachine, Stage, durable_activity, workflow
from durable_batches.errors import (
    BatchNotFoundError,
    DuplicateDocumentError,
    FactRejectedError,
    StoreCorruptError,
    StoreUnavailableError,
    WorkerFencedError,
)
from durable_batches.stores import (
    RESOLVER_POSITION,
    BatchQuery,
    BatchRecord,
    Candidates,
    Capabilities,
    CheckpointRecord,
    Claim,
    ClaimRequest,
    Clock,
    Command,
    Committed,
    DocumentRecord,
    EventRecord,
    ExecutionKey,
    ExecutionRecord,
    ExecutionStatus,
    Expired,
    Fact,
    Heart,
    Loaded,
    Micros,
    NewDocument,
    SystemClock,
    WorkerId,
    WorkerRecord,
    Writes,
    executions_to_load,
    fair_shares,
    new_execution,
    overdue,
    plan_claims,
    plan_command,
    plan_facts,
    plan_release,
)

P = ParamSpec("P")
T = TypeVar("T")


# ---- the journal: a transaction is a line ---------------------------------------------------------------------------


class Entry(NamedTuple):
    """What one transaction changed; what it does not name, it left as it was."""

    registered: tuple[WorkerRecord, Micros] | None = None
    """A new worker, and how long its lease is."""
    gone: Sequence[WorkerId] = ()
    committed: tuple[WorkerId, int] | None = None
    """Whose commit it is, and the number of it."""
    created: BatchRecord | None = None
    added: Sequence[tuple[ExecutionRecord, bytes]] = ()
    """New documents, with their payloads."""
    writes: Sequence[Writes] = ()
    """What the library's plans said."""


LINE: Final = TypeAdapter(Entry, config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64"))


@dataclass
class BatchRows:
    record: BatchRecord
    executions: dict[int, ExecutionRecord] = field(default_factory=dict[int, ExecutionRecord])
    inputs: dict[int, bytes] = field(default_factory=dict[int, bytes])
    outcomes: dict[int, bytes] = field(default_factory=dict[int, bytes])
    checkpoints: dict[int, dict[str, CheckpointRecord]] = field(default_factory=dict[int, dict[str, CheckpointRecord]])
    events: list[EventRecord] = field(default_factory=list[EventRecord])


@dataclass
class WorkerRow:
    record: WorkerRecord
    lease: Micros
    lease_until: float
    """On the boot clock, in seconds. Leases are not in the journal: after a restart they begin anew."""
    commits: int = 0
    last: Committed | None = None
    """The answer to the last commit, for a worker that asks again."""


def transaction(
    method: Callable[Concatenate[JournalStore, P], T],
) -> Callable[Concatenate[JournalStore, P], CoroutineType[Any, Any, T]]:
    """One at a time, in a thread: the event loop never waits for the disk."""

    @wraps(method)
    async def call(self: JournalStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(self.locked, method, *args, **kwargs)

    return call  # type: ignore[return-value]  # to mypy, what an async function returns is less than it is


class JournalStore:
    """A store in one file.

    Args:
        path: The file; made where there is none.
        clock: The time it goes by.
    """

    def __init__(self, path: str | os.PathLike[str], *, clock: Clock | None = None) -> None:
        self._path: Final = Path(path)
        self._clock: Final[Clock] = clock or SystemClock()
        self._lock: Final = threading.RLock()
        self._opened = 0
        self._file: BinaryIO | None = None
        self._batches: dict[BatchId, BatchRows] = {}
        self._workers: dict[WorkerId, WorkerRow] = {}

    @property
    def capabilities(self) -> Capabilities:
        """It survives its process, and serves one at a time."""
        return Capabilities(several_processes=False, durable=True, pushes=False)

    def locked(self, method: Callable[Concatenate[JournalStore, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._lock:
            return method(self, *args, **kwargs)

    # ---- opening -----------------------------------------------------------------------------------------------

    @transaction
    def open(self) -> None:
        if self._opened == 0:
            self._file = self._opened_alone()
            try:
                self._recover()
            except BaseException:
                self._file.close()
                raise
        self._opened += 1

    @transaction
    def close(self) -> None:
        self._opened -= 1
        if self._opened == 0 and self._file is not None:
            self._file.close()
            self._file = None

    def _opened_alone(self) -> BinaryIO:
        try:
            file = self._path.open("a+b")
        except OSError as error:
            raise StoreUnavailableError(f"the journal {self._path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # So that a new file's name is on the disk as well, and not only what is in it.
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            file.close()
            raise StoreUnavailableError(f"the journal {self._path} is in use by another process") from error
        return file

    def _recover(self) -> None:
        """Read the journal from the beginning: what is in it is what there is."""
        assert self._file is not None
        self._batches, self._workers = {}, {}
        self._file.seek(0)
        sound = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break  # cut off by a crash
            try:
                self._apply(LINE.validate_json(line))
            except ValidationError as error:
                raise StoreCorruptError(f"line {number} of the journal {self._path} cannot be read") from error
            sound += len(line)
        self._file.truncate(sound)

    # ---- writing -----------------------------------------------------------------------------------------------

    def _write(self, entry: Entry) -> None:
        self._apply(entry)
        self._append(entry)

    def _append(self, entry: Entry) -> None:
        """The moment of the commit: when this returns, the disk has it."""
        assert self._file is not None
        try:
            self._file.write(LINE.dump_json(entry) + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            # Memory is ahead of the disk: back to what the disk has.
            self._recover()
            raise StoreUnavailableError(f"the journal {self._path} cannot be written: {error.strerror}") from error

    def _apply(self, entry: Entry) -> None:
        if entry.registered is not None:
            record, lease = entry.registered
            self._workers[record.worker_id] = WorkerRow(record, lease, self._lease_end(lease))
        for worker_id in entry.gone:
            # An id is never given twice: without its row, a worker is fenced.
            del self._workers[worker_id]
        if entry.committed is not None:
            worker_id, number = entry.committed
            self._workers[worker_id].commits = number
        if entry.created is not None:
            self._batches[entry.created.batch_id] = BatchRows(entry.created)
        for execution, payload in entry.added:
            batch = self._batches[execution.batch_id]
            batch.executions[execution.position] = execution
            batch.inputs[execution.position] = payload
        for writes in entry.writes:
            self._apply_writes(writes)

    def _apply_writes(self, writes: Writes) -> None:
        for record in writes.batches:
            self._batches[record.batch_id].record = record
        for execution in (*writes.executions, *writes.marks):
            self._batches[execution.batch_id].executions[execution.position] = execution
        for (batch_id, position), outcome in writes.outcomes:
            self._batches[batch_id].outcomes[position] = outcome
        for new in writes.checkpoints:
            recorded = self._batches[new.batch_id].checkpoints.setdefault(new.position, {})
            recorded.setdefault(new.key, CheckpointRecord(new.key, new.kind, new.payload))  # the first record wins
        for (batch_id, position), key in writes.forget:
            recorded = self._batches[batch_id].checkpoints.get(position, {})
            if key in recorded and recorded[key].kind == "failed":
                del recorded[key]
        for event in writes.events:
            self._batches[event.batch_id].events.append(event)
        if writes.discard is not None:
            del self._batches[writes.discard]

    # ---- workers -----------------------------------------------------------------------------------------------

    @transaction
    def register(self, worker: WorkerRecord, lease: Micros) -> None:
        self._write(Entry(registered=(worker, lease)))

    def heart(self, worker: WorkerId) -> Heart:
        return JournalHeart(self, worker)

    def beat(self, worker: WorkerId) -> bool:
        with self._lock:
            row = self._workers.get(worker)
            if row is None:
                return False
            row.lease_until = self._lease_end(row.lease)
            return True

    @transaction
    def workers(self) -> Sequence[WorkerRecord]:
        return [row.record for row in self._workers.values()]

    @transaction
    def expire(self, *, dead: Collection[WorkerId] = ()) -> Expired:
        now = self._clock.boot()
        gone = [worker for worker, row in self._workers.items() if row.lease_until <= now or worker in dead]
        return Expired(workers=gone, events=self._free(gone, "crash"))

    @transaction
    def leave(self, worker: WorkerId) -> Sequence[EventRecord]:
        return self._free([worker] if worker in self._workers else [], "shutdown")

    def _free(self, gone: Sequence[WorkerId], departure: Literal["shutdown", "crash"]) -> Sequence[EventRecord]:
        if not gone:
            return ()  # every worker asks every second; most of the time there is nothing to write
        owned = [
            (batch_id, position)
            for batch_id, batch in self._batches.items()
            for position, execution in batch.executions.items()
            if execution.owner in gone
        ]
        resolvers = [(batch_id, RESOLVER_POSITION) for batch_id, _ in owned]
        writes = plan_release(self._load([*owned, *resolvers]), gone, departure)
        self._write(Entry(gone=gone, writes=[writes]))
        return writes.events

    def _lease_end(self, lease: Micros) -> float:
        return self._clock.boot() + lease / 1_000_000

    # ---- loading -----------------------------------------------------------------------------------------------

    @transaction
    def create(self, batch: BatchRecord) -> BatchRecord | None:
        existing = self._batches.get(batch.batch_id)
        if existing is not None:
            return existing.record
        self._write(Entry(created=batch))
        return None

    @transaction
    def add(self, batch_id: BatchId, loader: WorkerId, documents: Sequence[NewDocument]) -> None:
        batch = self._batches.get(batch_id)
        if batch is None or batch.record.loader != loader:
            raise BatchNotFoundError(batch_id)
        # A chunk that comes again, because its answer was lost, is there already.
        known = {position: execution.document_id for position, execution in batch.executions.items()}
        fresh = [document for document in documents if known.get(document.position) != document.document_id]
        taken = set(known.values())
        for document_id, number in Counter(document.document_id for document in fresh).items():
            if number > 1 or document_id in taken:
                raise DuplicateDocumentError(batch_id, document_id)
        if any(document.position in known for document in fresh):
            raise FactRejectedError(f"a position in batch {batch_id!r} has another document already")
        now = self._clock.now()
        self._write(Entry(added=[(new_execution(batch_id, document, now), document.input) for document in fresh]))

    # ---- the two write paths -------------------------------------------------------------------------------------

    @transaction
    def commit(
        self, worker: WorkerId, number: int, facts: Sequence[Fact], claim: ClaimRequest | None = None
    ) -> Committed:
        row = self._workers.get(worker)
        if row is None:
            raise WorkerFencedError(worker)
        if number == row.commits and row.last is not None:
            return row.last
        if number != row.commits + 1:
            raise WorkerFencedError(worker)
        reported = plan_facts(self._load(executions_to_load(facts)), worker, facts)
        answer = Committed(events=reported.events, refused=reported.refused)
        entry = Entry(committed=(worker, number), writes=[reported])
        self._apply(entry)
        if claim is not None:
            # On top of the facts: what they freed can be claimed.
            claimed = self._plan_claims(worker, claim)
            self._apply_writes(claimed)
            entry = entry._replace(writes=[reported, claimed])
            answer = answer._replace(
                events=[*reported.events, *claimed.events],
                claims=[self._claim_of(execution, claim) for execution in claimed.executions],
                retry_in=self._next_due(claim),
            )
        self._append(entry)
        row.last = answer
        row.lease_until = self._lease_end(row.lease)
        return answer

    @transaction
    def control(self, batch_id: BatchId, command: Command) -> Committed:
        if batch_id not in self._batches:
            raise BatchNotFoundError(batch_id)
        writes = plan_command(self._load([(batch_id, RESOLVER_POSITION)]), batch_id, command)
        if writes.batches or writes.executions or writes.discard is not None:
            self._write(Entry(writes=[writes]))
        return Committed(events=writes.events, applied=writes.applied)

    def _load(self, keys: Iterable[ExecutionKey]) -> Loaded:
        known = [(key, self._batches[key[0]]) for key in keys if key[0] in self._batches]
        return Loaded(
            now=self._clock.now(),
            batches={batch_id: batch.record for (batch_id, _), batch in known},
            executions={
                (batch_id, position): batch.executions[position]
                for (batch_id, position), batch in known
                if position in batch.executions
            },
        )

    # ---- claims --------------------------------------------------------------------------------------------------

    def _plan_claims(self, worker: WorkerId, request: ClaimRequest) -> Writes:
        now = self._clock.now()
        batches = [
            batch
            for batch in self._served_by(request.workflows)
            if overdue(batch.record, now) or (batch.record.free > 0 and due_now(batch, now))
        ]
        # Those past their deadline first, then those that were served longest ago.
        batches.sort(key=lambda batch: (not overdue(batch.record, now), batch.record.served))
        candidates: dict[BatchId, Candidates] = {}
        shares = fair_shares(
            batches, request.limit, lambda batch: 0 if overdue(batch.record, now) else batch.record.free
        )
        for batch, share in shares:
            executions = due_now(batch, now)[: share.size]
            share.used(len(executions))
            candidates[batch.record.batch_id] = Candidates(batch.record, executions)
        return plan_claims(now, worker, request, list(candidates.values()), now)

    def _claim_of(self, execution: ExecutionRecord, request: ClaimRequest) -> Claim:
        batch = self._batches[execution.batch_id]
        recorded = batch.checkpoints.get(execution.position, {})
        return Claim(
            batch=batch.record,
            execution=execution,
            input=batch.inputs[execution.position],
            checkpoints=[recorded[key] for key in sorted(recorded)[: request.checkpoints]],
            more_checkpoints=len(recorded) > request.checkpoints,
            signals=(),
        )

    def _next_due(self, request: ClaimRequest) -> Micros | None:
        """The time until the worker should ask again, where nobody tells it earlier."""
        now = self._clock.now()
        moments: list[Micros] = []
        for batch in self._served_by(request.workflows):
            if batch.record.wake is not None:
                moments.append(batch.record.wake)
            if batch.record.free > 0:
                dues = (execution.due for execution in batch.executions.values())
                moments += [due for due in dues if due is not None and due > now]
        return max(min(moments) - now, 0) if moments else None

    def _served_by(self, workflows: Collection[tuple[str, str]]) -> list[BatchRows]:
        return [batch for batch in self._batches.values() if (batch.record.workflow, batch.record.version) in workflows]

    # ---- reading -------------------------------------------------------------------------------------------------

    @transaction
    def batch(self, batch_id: BatchId) -> BatchRecord | None:
        batch = self._batches.get(batch_id)
        return None if batch is None else batch.record

    @transaction
    def batches(self, query: BatchQuery, *, after: BatchId | None = None, limit: int) -> Sequence[BatchRecord]:
        newest = list(reversed(self._batches))  # a dict keeps the order in which they were created
        if after is not None:
            newest = newest[newest.index(after) + 1 :] if after in self._batches else []
        found = (self._batches[batch_id].record for batch_id in newest)
        return list(islice((record for record in found if query.matches(record)), limit))

    @transaction
    def documents(
        self,
        batch_id: BatchId,
        *,
        statuses: Collection[ExecutionStatus] = (),
        after: int = RESOLVER_POSITION,
        limit: int,
        inputs: bool = True,
    ) -> Sequence[DocumentRecord]:
        batch = self._batches.get(batch_id)
        if batch is None:
            return []
        found = (
            DocumentRecord(execution, batch.inputs[position] if inputs else b"", batch.outcomes.get(position))
            for position, execution in sorted(batch.executions.items())
            if position > after and (not statuses or execution.status in statuses)
        )
        return list(islice(found, limit))

    @transaction
    def checkpoints(
        self, batch_id: BatchId, position: int, *, after: str = "", limit: int
    ) -> Sequence[CheckpointRecord]:
        batch = self._batches.get(batch_id)
        recorded = {} if batch is None else batch.checkpoints.get(position, {})
        return [recorded[key] for key in sorted(recorded) if key > after][:limit]

    @transaction
    def count_checkpoints(self, batch_id: BatchId) -> int:
        batch = self._batches.get(batch_id)
        return 0 if batch is None else sum(map(len, batch.checkpoints.values()))

    @transaction
    def events(self, batch_id: BatchId, *, after: int, limit: int) -> Sequence[EventRecord]:
        batch = self._batches.get(batch_id)
        return [] if batch is None else batch.events[after : after + limit]

    async def wait(self, seen: Mapping[BatchId, int], *, work: Collection[tuple[str, str]], timeout: Micros) -> None:
        # A hint. What this process writes, it knows at once by itself; a look now and then is enough for the rest.
        end = self._clock.boot() + timeout / 1_000_000
        while not await self._has_news(seen, work) and (left := end - self._clock.boot()) > 0:
            await self._clock.sleep(min(left, 0.1), housekeeping=True)

    @transaction
    def _has_news(self, seen: Mapping[BatchId, int], work: Collection[tuple[str, str]]) -> bool:
        now = self._clock.now()
        return any(
            batch_id in self._batches and self._batches[batch_id].record.seq > seq for batch_id, seq in seen.items()
        ) or any(batch.record.free > 0 and due_now(batch, now) for batch in self._served_by(work))


class JournalHeart:
    """Keeps a worker's lease; used on a thread of its own."""

    def __init__(self, store: JournalStore, worker: WorkerId) -> None:
        self._store = store
        self._worker = worker

    def beat(self) -> bool:
        return self._store.beat(self._worker)

    def close(self) -> None:
        pass


def due_now(batch: BatchRows, now: Micros) -> list[ExecutionRecord]:
    """What can be claimed, in the order in which it is to be."""
    due = [
        (execution.due, position, execution)
        for position, execution in batch.executions.items()
        if execution.due is not None and execution.due <= now
    ]
    return [execution for *_, execution in sorted(due, key=lambda item: item[:2])]


# ---- a batch on it --------------------------------------------------------------------------------------------------


class Counting(Stage):
    tag: Literal["counting"] = "counting"


@durable_activity(stage=Counting)
async def count_words(line: str) -> int:
    return len(line.split())


@workflow(BatchStateMachine(Counting), name="word-count")
async def word_count(line: str) -> int:
    return await count_words(line)


async def main() -> None:
    async with BatchOrchestrator(word_count, store=JournalStore("batches.journal")) as batches:
        result = await batches.run(["to be or not to be", "that is the question"], batch_id="hamlet")
        print(result)
        print(f"activities run: {batches.stats.activities_run}")


if __name__ == "__main__":
    asyncio.run(main())
