"""A world of batches in dictionaries, moved by the pure plan functions alone, and what always has to hold in it.

No store's code is used here, so that what is found wrong is wrong in the plan. The rules that `World.check` holds the
plan to are written down a second time, from the design's words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from durable_batches.lifecycle import failure_groups
from durable_batches.lifecycle.batch import BatchInProgress
from durable_batches.lifecycle.batch_core import (
    Definition,
    decode_core,
    definition_of,
    isolation_of,
    new_batch,
    operator_pause_of,
    quota_pause_of,
)
from durable_batches.lifecycle.commands import Command, Seal
from durable_batches.lifecycle.config import BatchConfig
from durable_batches.lifecycle.events import BatchPaused, BatchResumed, decode_event
from durable_batches.lifecycle.facts import (
    ActivityCompleted,
    ActivityFailed,
    ExecutionFailed,
    ExecutionReleased,
    ExecutionSucceeded,
    Fact,
    ProviderAnswered,
    StageEntered,
)
from durable_batches.lifecycle.failure_groups import added
from durable_batches.lifecycle.machine import BatchStateMachine
from durable_batches.lifecycle.planning import (
    Candidates,
    Departure,
    Loaded,
    Writes,
    executions_to_load,
    new_execution,
    plan_claims,
    plan_command,
    plan_facts,
    plan_release,
    plan_return,
)
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.lifecycle.progress import BatchSnapshot, snapshot_of
from durable_batches.lifecycle.records import (
    RESOLVER_DOCUMENT_ID,
    RESOLVER_POSITION,
    BatchRecord,
    ClaimRequest,
    EventRecord,
    ExecutionKey,
    ExecutionRecord,
    FailureRecord,
    Micros,
    NewDocument,
    WorkerId,
)
from durable_batches.lifecycle.states import BatchId, Stage
from durable_batches.lifecycle.transitions import transitions
from durable_batches.testing.history.replay import Replay

START: Final[Micros] = 1_900_000_000_000_000
LOADER: Final = WorkerId("loader")
ME: Final = WorkerId("me")
OTHER: Final = WorkerId("other")
SECOND: Final[Micros] = 1_000_000
CAPACITY: Final = 4
WORKFLOW: Final = ("workflow", "1")
ENDED: Final = ("completed", "failed", "cancelled")
STAGES: Final = ("one", "two", "three", "four", "five")

UNENCODABLE: Final = "half a \ud83d"
"""A message as a provider may send it, with what UTF-8 cannot hold."""

Identity = tuple[BatchId, int, int, int]


@dataclass
class _Seen:
    """What a batch was like at the check before."""

    state: str = "pending"
    percentage: float = 0.0
    ended: BatchRecord | None = None


@dataclass
class World:
    level: int = 1
    """Of the store that it stands for."""
    capacity: int = field(default=CAPACITY, kw_only=True)
    """Of each worker."""
    now: Micros = START
    batches: dict[BatchId, BatchRecord] = field(default_factory=dict[BatchId, BatchRecord])
    executions: dict[ExecutionKey, ExecutionRecord] = field(default_factory=dict[ExecutionKey, ExecutionRecord])
    outcomes: dict[ExecutionKey, bytes] = field(default_factory=dict[ExecutionKey, bytes])
    checkpoints: dict[tuple[ExecutionKey, str], tuple[str, bytes]] = field(
        default_factory=dict[tuple[ExecutionKey, str], tuple[str, bytes]]
    )
    events: dict[BatchId, list[EventRecord]] = field(default_factory=dict[BatchId, list[EventRecord]])
    seen: dict[BatchId, _Seen] = field(default_factory=dict[BatchId, _Seen])
    requests: dict[tuple[BatchId, str], str] = field(default_factory=dict[tuple[BatchId, str], str], compare=False)
    """The answers to commands: also one that changes nothing has one."""
    failures: dict[tuple[BatchId, int, str], FailureRecord] = field(
        default_factory=dict[tuple[BatchId, int, str], FailureRecord]
    )
    claimed: dict[ExecutionKey, tuple[int, Micros, int]] = field(
        default_factory=dict[ExecutionKey, tuple[int, Micros, int]], compare=False
    )
    """Of what was claimed in isolation, as its worker remembers it: the attempt, until when, and beside how many."""

    def copy(self) -> World:
        """Another world like this one; the records in it cannot change, and are shared."""
        return World(
            self.level,
            self.now,
            dict(self.batches),
            dict(self.executions),
            dict(self.outcomes),
            dict(self.checkpoints),
            {batch_id: list(events) for batch_id, events in self.events.items()},
            {batch_id: replace(seen) for batch_id, seen in self.seen.items()},
            dict(self.requests),
            dict(self.failures),
            dict(self.claimed),
            capacity=self.capacity,
        )

    # ---- what happens ----------------------------------------------------------------------------------------

    def load(
        self,
        batch_id: str,
        documents: int,
        *,
        stages: int = 3,
        resolver: bool = False,
        config: BatchConfig | None = None,
    ) -> BatchId:
        """An unsealed batch."""
        record = new_batch(
            batch_id=BatchId(batch_id),
            workflow=WORKFLOW[0],
            version=WORKFLOW[1],
            submitter=LOADER,
            definition=Definition(STAGES[:stages], resolver, config or BatchConfig()),
            now=self.now,
        )
        self.batches[record.batch_id] = record
        self.events[record.batch_id] = []
        self.seen[record.batch_id] = _Seen()
        loaded = [NewDocument(position, f"document-{position}", b"") for position in range(documents)]
        if resolver:
            loaded.append(NewDocument(RESOLVER_POSITION, RESOLVER_DOCUMENT_ID, b""))
        for document in loaded:
            key = (record.batch_id, document.position)
            self.executions[key] = new_execution(record.batch_id, document, self.now)
        return record.batch_id

    def batch(
        self,
        batch_id: str,
        documents: int,
        *,
        stages: int = 3,
        resolver: bool = False,
        config: BatchConfig | None = None,
    ) -> BatchId:
        """A sealed batch."""
        loaded = self.load(batch_id, documents, stages=stages, resolver=resolver, config=config)
        assert self.command(loaded, Seal(LOADER, documents)).applied
        return loaded

    def commit(
        self, worker: WorkerId, *facts: Fact, remembered: Mapping[ExecutionKey, ExecutionRecord] = MappingProxyType({})
    ) -> Writes:
        """One commit of a worker; of what a store remembers of its executions, it does not read the rows."""
        keys = executions_to_load(facts)
        loaded = Loaded(
            self.now,
            {batch_id: self.batches[batch_id] for batch_id in {key[0] for key in keys} if batch_id in self.batches},
            {key: remembered.get(key, self.executions[key]) for key in keys if key in self.executions},
        )
        return self._apply(plan_facts(loaded, worker, facts, level=self.level))

    def claim(self, worker: WorkerId, limit: int | None = None, *, most: int = 100) -> Writes:
        """Claim as a worker may, and not more than `limit`; `most` limits the candidates of each batch."""
        limit = self.capacity if limit is None else limit
        held = self.held(worker)
        window = min([self.capacity, *(self._window_beside(execution) for execution in held)])
        room = max(window - len(held), 0)
        request = ClaimRequest(frozenset({WORKFLOW}), min(limit, room), len(held), window, self.capacity, 0)
        candidates = [
            self._candidates(record, most)
            for record in sorted(self.batches.values(), key=lambda record: (record.served, record.batch_id))
            if record.free
            or (record.wake is not None and record.wake <= self.now)
            or (record.next_due is not None and record.next_due <= self.now)
        ]
        writes = plan_claims(self.now, worker, request, candidates, self.now, level=self.level)
        assert len(writes.executions) <= request.limit
        for execution in writes.executions:
            before = self.executions[(execution.batch_id, execution.position)]
            assert before.owner is None, f"{before} is owned, and was claimed"
            assert execution.owner == worker
            assert execution.attempt == before.attempt + 1
        self._apply(writes)
        for execution in writes.executions:
            isolation = isolation_of(self.batches[execution.batch_id], execution)
            if isolation is not None:
                key = (execution.batch_id, execution.position)
                self.claimed[key] = execution.attempt, isolation["until"], isolation["window"]
        return writes

    def _candidates(self, record: BatchRecord, most: int) -> Candidates:
        due = self.due(record.batch_id)
        if self.level < 2:
            return Candidates(record, due[:most])
        woken = [row for row in due if row.due and row.crashes < 2]
        new = [row for row in due if not row.due]
        isolated = [row for row in due if row.due and row.crashes >= 2]
        executions = [*woken[:most], *new[:most], *isolated[:most]]
        # Also where the plan need not know it.
        return Candidates(record, executions, self._first_due(record.batch_id, beside=executions), most)

    def _first_due(self, batch_id: BatchId, *, beside: Collection[ExecutionRecord] = ()) -> Micros | None:
        return min(
            (
                row.due
                for row in self.executions.values()
                if row.batch_id == batch_id and row.due is not None and row not in beside
            ),
            default=None,
        )

    def release(self, gone: Collection[WorkerId], departure: Departure) -> Writes:
        owned = {key for key, execution in self.executions.items() if execution.owner in gone}
        keys = owned | {(batch_id, RESOLVER_POSITION) for batch_id, _ in owned}
        loaded = Loaded(
            self.now,
            {batch_id: self.batches[batch_id] for batch_id in {key[0] for key in keys}},
            {key: self.executions[key] for key in keys if key in self.executions},
        )
        writes = plan_release(loaded, gone, departure, level=self.level)
        assert {(execution.batch_id, execution.position) for execution in writes.executions} >= owned
        return self._apply(writes)

    def see_again(self, session: WorkerId) -> Writes:
        """Take back the crashes of a session whose process is alive."""
        keys = [key for key, execution in self.executions.items() if execution.taken_from == session]
        loaded = Loaded(
            self.now,
            {batch_id: self.batches[batch_id] for batch_id, _ in keys},
            {key: self.executions[key] for key in keys},
        )
        writes = plan_return(loaded, session, level=self.level)
        assert all(execution.owner is None for execution in writes.executions), "owned rows are their owners' affair"
        assert not writes.events
        return self._apply(writes)

    def command(self, batch_id: BatchId, command: Command) -> Writes:
        resolver = self.executions.get((batch_id, RESOLVER_POSITION))
        loaded = Loaded(
            self.now,
            {batch_id: self.batches[batch_id]},
            {} if resolver is None else {(batch_id, RESOLVER_POSITION): resolver},
            {request_id: answer for (of, request_id), answer in self.requests.items() if of == batch_id},
        )
        return self._apply(plan_command(loaded, batch_id, command, level=self.level))

    def _apply(self, writes: Writes) -> Writes:
        for request in writes.requests:
            self.requests[request.batch_id, request.request_id] = request.answer
        if writes.discard is not None:
            del self.batches[writes.discard]
            self.executions = {key: row for key, row in self.executions.items() if key[0] != writes.discard}
        for record in writes.batches:
            self.batches[record.batch_id] = record
        changed = [*writes.executions, *writes.marks]
        keys = [(execution.batch_id, execution.position) for execution in changed]
        assert len(keys) == len(set(keys)), "one row is written twice in a transaction"
        for key, execution in zip(keys, changed, strict=True):
            before = self.executions[key]
            assert execution.document_id == before.document_id
            assert execution.updated_at == self.now
            if execution in writes.marks:
                assert before._replace(mark=execution.mark, updated_at=execution.updated_at) == execution
            self.executions[key] = execution
        for write in writes.checkpoints:
            key = (write.batch_id, write.position)
            self.checkpoints.setdefault((key, write.key), (write.kind, write.payload))
        for key, name in writes.forget:
            self.checkpoints.pop((key, name), None)
        self.outcomes.update(writes.outcomes)
        for failure in writes.failures:
            group = failure[:3]
            self.failures[group] = added(self.failures[group], failure) if group in self.failures else failure
        assert len({failure[:3] for failure in writes.failures}) == len(writes.failures), "one group is written twice"
        for event in writes.events:
            self.events[event.batch_id].append(event)
        return writes

    # ---- looking ---------------------------------------------------------------------------------------------

    def held(self, worker: WorkerId) -> list[ExecutionRecord]:
        return [execution for _, execution in sorted(self.executions.items()) if execution.owner == worker]

    def due(self, batch_id: BatchId) -> list[ExecutionRecord]:
        due = [
            (execution.due, execution.position, execution)
            for execution in self.executions.values()
            if execution.batch_id == batch_id and execution.due is not None and execution.due <= self.now
        ]
        return [execution for *_, execution in sorted(due)]

    def documents(self, batch_id: BatchId) -> list[ExecutionRecord]:
        return [
            execution
            for (owner, position), execution in sorted(self.executions.items())
            if owner == batch_id and position != RESOLVER_POSITION
        ]

    def _window_beside(self, execution: ExecutionRecord) -> int:
        """As a worker takes it from its claim, for as long as it says."""
        claimed = self.claimed.get((execution.batch_id, execution.position))
        if claimed is None or claimed[0] != execution.attempt or claimed[1] <= self.now or not execution.crashes:
            return self.capacity
        return claimed[2]

    # ---- what always has to hold -----------------------------------------------------------------------------

    def check(self) -> None:
        for execution in self.executions.values():
            owned = execution.owner is not None
            assert owned == (execution.status == "running")
            assert execution.alone in ((True, False) if owned else (False,))
            assert execution.taken_from is None or execution.crashes
            assert not execution.crashes or execution.status not in ("succeeded", "waiting") or execution.position < 0
            assert (execution.due is None) or execution.status in ("pending", "waiting")
        for batch_id, record in self.batches.items():
            self._check_log(record)
            if record.loader is None:
                snapshot = snapshot_of(record, machine_of(record), self.now)
                self._check_events(record, snapshot)
                self._check_counts(record)
                self._check_progress(record, snapshot)
                self._check_resolver(record)
                self._check_free(record)
                self._check_failures(record)
                self._check_suspects(record, snapshot)
                self._check_pause(record)
            seen = self.seen[batch_id]
            if seen.ended is not None:
                assert record == seen.ended, "an ended run absorbs: its record has changed"
            elif record.ended:
                seen.ended = record

    def _check_log(self, record: BatchRecord) -> None:
        events = self.events[record.batch_id]
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert record.seq == len(events)
        moments = [event.at for event in events]
        assert moments == sorted(moments)

    def _check_events(self, record: BatchRecord, snapshot: BatchSnapshot[Stage]) -> None:
        replay = Replay(definition_of(record))
        for event in self.events[record.batch_id]:
            replay.take(decode_event(event))
        replay.end_of_log()
        assert not replay.problems
        assert (replay.counts, replay.state) == (record.counts, record.state)
        assert replay.percentage == snapshot.percentage

    def _check_counts(self, record: BatchRecord) -> None:
        counts, documents = record.counts, self.documents(record.batch_id)
        assert counts.total == len(documents) == counts.unfinished + counts.ended
        assert (
            min(counts.pending, counts.running, counts.waiting, counts.succeeded, counts.failed, counts.cancelled) >= 0
        )
        found = Counter(execution.status for execution in documents)
        assert (counts.succeeded, counts.failed) == (found["succeeded"], found["failed"])
        if record.ended:
            assert counts.unfinished == 0
            return
        assert (counts.pending, counts.running, counts.waiting) == (
            found["pending"],
            found["running"],
            found["waiting"],
        )
        assert counts.cancelled == found["cancelled"] == 0
        owned = [execution for execution in documents if execution.owner is not None]
        assert len(owned) == counts.running
        # A claim leaves it so, and an update may lower it below.
        updated = any(event.tag == "batch_updated" for event in self.events[record.batch_id])
        assert updated or counts.running <= definition_of(record).config.concurrency
        for execution in documents:
            assert (execution.owner is not None) == (execution.status == "running")
            assert (execution.due is not None) == (execution.status in ("pending", "waiting"))

    def _check_progress(self, record: BatchRecord, snapshot: BatchSnapshot[Stage]) -> None:
        seen, stages = self.seen[record.batch_id], definition_of(record).stages
        documents = self.documents(record.batch_id)
        unfinished = [document for document in documents if document.status not in ("succeeded", "failed")]
        passed = sum(max(document.mark, 0) for document in unfinished)
        passed += len(stages) * (len(documents) - len(unfinished))
        whole = len(stages) * len(documents)
        percentage = snapshot.percentage
        assert percentage == (round(100 * passed / whole, 4) if whole else 100.0)
        assert percentage >= seen.percentage, "the percentage has decreased"
        seen.percentage = percentage
        if not record.ended and unfinished:
            started = any(document.attempt for document in documents)
            smallest = min(max(document.mark, 0) for document in unfinished)
            assert record.state == (stages[smallest] if started else "pending")
        elif not record.ended:
            assert record.state == "resolving"
        if record.state != seen.state:
            # A commit may move it several times; its events say how, and each move has to be in the table.
            assert _reachable(seen.state, record.state, stages), f"{seen.state} -> {record.state}"
            seen.state = record.state
        self._check_moves(record, stages)

    def _check_moves(self, record: BatchRecord, stages: tuple[str, ...]) -> None:
        state = "pending"
        for event in map(decode_event, self.events[record.batch_id]):
            if event.tag == "state_changed":
                assert event.previous == state
                assert event.state in transitions(stages)[state]
                state = event.state
        assert state == record.state

    def _check_resolver(self, record: BatchRecord) -> None:
        resolver = self.executions.get((record.batch_id, RESOLVER_POSITION))
        phase = BatchInProgress(record, self.now).phase
        if resolver is None or record.state != "resolving":
            assert phase == "idle"
        else:
            assert phase == ("due" if resolver.owner is None else "running")
        if resolver is None:
            assert record.state != "resolving"
        elif not record.ended:
            assert resolver.status == ("waiting" if resolver.owner is None else "running")
            claimable = resolver.due is not None
            assert claimable == (record.state == "resolving" and resolver.owner is None)
            assert resolver.owner is None or record.state == "resolving"

    def _check_suspects(self, record: BatchRecord, snapshot: BatchSnapshot[Stage]) -> None:
        core = decode_core(record.core)
        unfinished = ("pending", "running", "waiting")
        suspects = sum(
            execution.crashes >= 2
            for execution in self.executions.values()
            if execution.batch_id == record.batch_id and execution.status in unfinished and not record.ended
        )
        assert core.get("suspects", 0) == suspects
        assert ("isolation" in core) == (suspects > 0)
        assert suspects or snapshot.isolated == 0

    def _check_failures(self, record: BatchRecord) -> None:
        failed = Counter(
            execution.fingerprint
            for execution in self.documents(record.batch_id)
            if execution.fingerprint is not None and execution.status == "failed"
        )
        assert failed.total() == record.counts.failed
        for execution in self.executions.values():
            assert execution.fingerprint is None or execution.status == "failed"
        groups = {
            fingerprint: failure.documents
            for (batch_id, run, fingerprint), failure in self.failures.items()
            if (batch_id, run) == (record.batch_id, record.run)
        }
        if self.level < 2:
            assert not groups
            return
        assert sum(groups.values()) == record.counts.failed, "the groups do not have all failures"
        assert len(groups) <= failure_groups.MOST_GROUPS + 1
        groups.pop(failure_groups.REST, None)
        assert groups == {fingerprint: failed[fingerprint] for fingerprint in groups}

    def _check_pause(self, record: BatchRecord) -> None:
        pause = quota_pause_of(record)
        events = [
            event
            for stored in self.events[record.batch_id]
            if stored.tag in ("batch_paused", "batch_resumed")
            if isinstance(event := decode_event(stored), (BatchPaused, BatchResumed))
        ]
        assert record.needs == int(pause is not None)
        by_operator = [event for event in events if event.reason == "operator"]
        paused = bool(by_operator) and by_operator[-1].tag == "batch_paused" and not record.ended
        assert record.paused == paused == (operator_pause_of(record) is not None)
        events = [event for event in events if event.reason == "quota"]
        if pause is None:
            assert not events or record.ended or events[-1].tag == "batch_resumed"
            return
        assert not record.ended
        last = events[-1]
        assert isinstance(last, BatchPaused)
        assert last.until == from_micros(pause["until"])
        assert pause["since"] <= pause["until"]
        if "look" in pause:
            position, attempt = pause["look"]
            row = self.executions[(record.batch_id, position)]
            assert (row.attempt, row.status) == (attempt, "running"), "what looks is not there any more"

    def _check_free(self, record: BatchRecord) -> None:
        resolver = self.executions.get((record.batch_id, RESOLVER_POSITION))
        if record.ended or record.paused:
            expected = 0
        elif record.state == "resolving":
            expected = int(resolver is not None and resolver.owner is None)
        elif all(document.status not in ("pending", "waiting") for document in self.documents(record.batch_id)):
            expected = 0
        else:
            expected = max(definition_of(record).config.concurrency - record.counts.running, 0)
        pause = quota_pause_of(record)
        if pause is not None:
            expected = 0 if "look" in pause else min(expected, 1)
        sleeps = self.level >= 2 and expected > 0 and record.free == 0
        if sleeps:
            first = self._first_due(record.batch_id)
            if pause is None:
                assert record.counts.pending == 0
                assert record.next_due == first, "what is due then is not what it waits for"
            else:
                wakes = {pause["until"], None if first is None else max(pause["until"], first)}
                assert record.next_due in wakes, "it sleeps past the moment at which its provider is asked again"
        else:
            assert (record.free, record.next_due) == (expected, None)


def _reachable(start: str, end: str, stages: tuple[str, ...]) -> bool:
    table = transitions(stages)
    return end in table[start] or any(_reachable(following, end, stages) for following in table[start])


def machine_of(record: BatchRecord) -> BatchStateMachine[Stage]:
    """A machine with the stages of the batch."""
    return _MACHINES[len(definition_of(record).stages)]


def _stage(tag: str) -> type[Stage]:
    return type(tag.title(), (Stage,), {"tag": tag, "__annotations__": {"tag": str}})


_CLASSES: Final = [_stage(tag) for tag in STAGES]
_MACHINES: Final = {size: BatchStateMachine(*_CLASSES[:size]) for size in range(1, len(STAGES) + 1)}


# ---- facts -------------------------------------------------------------------------------------------------------


def identity(execution: ExecutionRecord) -> Identity:
    return execution.batch_id, execution.run, execution.position, execution.attempt


def facts_about(target: Identity, *, stages: int = 3, key: str = "key") -> list[Fact]:
    """Every kind of fact about this execution, with each of its options."""
    return [
        ActivityCompleted(*target, key, b"result"),
        ActivityCompleted(*target, key, b"result", stages - 1),
        ActivityCompleted(*target, key, b"result", stages),
        ActivityFailed(*target, key, b"failure"),
        *[StageEntered(*target, mark) for mark in range(-1, stages + 1)],
        ExecutionSucceeded(*target, b"outcome", 2),
        ExecutionFailed(*target, b"outcome", "broke"),
        ExecutionFailed(*target, b"outcome", UNENCODABLE, retryable=False, forget=(key,)),
        ExecutionFailed(*target, b"outcome", UNENCODABLE, retry_in=1_000_000),
        ProviderAnswered(*target),
        ExecutionReleased(*target, "paused"),
        ExecutionReleased(*target, "quota", None, UNENCODABLE, "ask"),
        ExecutionReleased(*target, "crash", activity=UNENCODABLE),
        ExecutionReleased(*target),
    ]


def succeeded(executions: Iterable[ExecutionRecord]) -> Sequence[Fact]:
    return [ExecutionSucceeded(*identity(execution), b"") for execution in executions]
