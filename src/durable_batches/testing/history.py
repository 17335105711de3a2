"""The history checker: what a store holds, and what activities did, held against the library's promises.

Run it after every crash and every fault of a test, on the store itself or on a copy of its file::

    checker = HistoryChecker(effects=EffectsLog("effects.log"))
    checker.acknowledged(batch_id, ["a", "b"])  # submit() returned
    ...  # a process is killed
    await checker.verify(store, interrupted=["process-1"])
    ...  # another one takes over, and ends
    await checker.verify(store, finished=True, everyone_left=True)

It remembers what it saw, so that it also finds what changed since and must not have. It reads through the
`Store` protocol alone, and folds the events by its own rules: an independent opinion of what the core wrote.

The promises, by the numbers that its messages have:

 1. Every acknowledged batch exists with all of its documents.
 2. After the faults everything ends (within which time is for the test to say: `finished=True` asks whether).
 3. At most one recorded result per (batch, document, key); once seen it never changes.
 4. No write of a fenced worker, or of a stale run or attempt, is accepted.
 5. Ended runs absorb; every transition is in the table.
 6. A recorded activity never runs again.
 7. Runs of an activity after its first one <= those in flight at the faults; tries of a run <= the policy's.
 8. The resolver starts after the last document's end is committed, and records one result a run.
 9. Events are 1..n without a gap, and never change.
10. Every subscriber's stream is a part of the log without a gap; of an ended run, up to its end.
11. The fold of the events equals the rows and the counters.
12. After an acknowledged cancel no activity starts in that process, and in others not later than a heartbeat.
13. A run ended CANCELLED <=> exactly one cancel() returned True.
14. No orphan lease: what is owned is owned by a living worker, and nothing once everyone has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from typing import Final, NamedTuple

from durable_batches.lifecycle.core import BatchInProgress, definition_of
from durable_batches.lifecycle.events import LAST_EVENT_TAGS, BatchEvent, decode_event
from durable_batches.lifecycle.failures import DocumentFailureRecord
from durable_batches.lifecycle.progress import fold
from durable_batches.lifecycle.records import (
    RESOLVER_DOCUMENT_ID,
    RESOLVER_POSITION,
    BatchRecord,
    CheckpointRecord,
    DocumentRecord,
    EventRecord,
    ExecutionRecord,
    WorkerId,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.protocol import BatchQuery, Store
from durable_batches.testing.effects import Effect, EffectsLog
from durable_batches.testing.replay import Replay

__all__ = ["HistoryChecker", "HistoryStats", "HistoryViolation"]

_PAGE: Final = 500
_LOOKS: Final = 100
"""How often a batch that others are writing to is looked at, until it stood still for one look."""


class HistoryViolation(AssertionError):
    """The history breaks promises; `violations` says which, one line each."""

    def __init__(self, violations: Sequence[str]) -> None:
        self.violations = tuple(violations)
        lines = "".join(f"\n  {violation}" for violation in self.violations[:50])
        more = len(self.violations) - 50
        super().__init__(
            f"{len(self.violations)} broken promises:{lines}" + (f"\n  ... and {more} more" if more > 0 else "")
        )


@dataclass(slots=True)
class HistoryStats:
    """What the checker counted in the effects log."""

    runs: int = 0
    """Runs of activities: bodies that were begun, further tries of the retry policy not counted."""
    repeated: int = 0
    """Runs of an activity after one that was interrupted."""
    retried: int = 0
    """Runs of an activity after one that failed, and was not tried to its end or failed its document with it."""
    in_flight: int = 0
    """Runs that were begun and not recorded when their process was interrupted, over all interruptions."""


class _Picture(NamedTuple):
    """A batch, read while nobody wrote to it."""

    record: BatchRecord
    log: Sequence[EventRecord]
    resolver: DocumentRecord | None
    documents: Mapping[str, DocumentRecord]
    checkpoints: Mapping[tuple[str, str], CheckpointRecord]
    """By document id (empty: the resolver) and key."""
    alive: Collection[WorkerId]


@dataclass(slots=True)
class _Known:
    """What was seen of a batch at earlier checks, in digests."""

    documents: frozenset[str] = frozenset()
    log: list[bytes] = field(default_factory=list[bytes])
    results: dict[tuple[str, str], bytes] = field(default_factory=dict[tuple[str, str], bytes])
    """Of recorded successes, by document and key."""
    failures: dict[tuple[str, str], tuple[bytes, int]] = field(default_factory=dict[tuple[str, str], tuple[bytes, int]])
    """Of recorded failures, and how often their document had failed then: its next attempt forgets some."""
    outcomes: dict[str, bytes] = field(default_factory=dict[str, bytes])
    starts_when_ended: int | None = None
    """How many activities the effects log had begun when the batch was first seen ended."""


class _Cancel(NamedTuple):
    answer: bool | None
    process: str
    at: float


class _Stream(NamedTuple):
    events: Sequence[BatchEvent]
    after: int
    ended: bool


class _Run(NamedTuple):
    """One run of an activity call: its tries, in one process."""

    process: str
    tries: list[Effect]
    """Their first marks."""
    returned: list[str]
    """Which of them returned."""
    raised: list[str]


class HistoryChecker:
    """Checks one history: the life of some batches, over any number of processes and crashes.

    Args:
        effects: What their activities really did; without it, only what the store holds is checked.
        run_of: Gives the name of the run (`EffectsLog.activity`) that a recorded result or failure came from,
            where its payload holds it: then it is also checked which of several runs was recorded.
        max_attempts: The retry policies' `max_attempts`, by activity.
    """

    def __init__(
        self,
        *,
        effects: EffectsLog | None = None,
        run_of: Callable[[CheckpointRecord], str | None] | None = None,
        max_attempts: Mapping[str, int] | None = None,
    ) -> None:
        self.stats: Final = HistoryStats()
        self._effects = effects
        self._run_of = run_of
        self._max_attempts = max_attempts or {}
        self._acknowledged: dict[str, frozenset[str]] = {}
        self._cancels: dict[str, list[_Cancel]] = {}
        self._streams: dict[str, list[_Stream]] = {}
        self._known: dict[str, _Known] = {}
        self._interrupted: set[str] = set()
        self._fenced: set[str] = set()
        self._left: set[str] = set()
        self._runs_when_recorded: dict[str, tuple[bytes, int]] = {}
        self._violations: list[str] = []

    # ---- what the test saw ---------------------------------------------------------------------------------

    def acknowledged(self, batch_id: str, document_ids: Iterable[str]) -> None:
        """`submit` returned this batch, of these documents."""
        self._acknowledged[batch_id] = frozenset(document_ids)

    def cancel_answered(self, batch_id: str, answer: bool | None, *, process: str = "", at: float = 0.0) -> None:
        """A `cancel` returned; None: its caller died before it did.

        `at`: when it did, on the boot clock; after that no activity of the batch starts in `process`.
        """
        self._cancels.setdefault(batch_id, []).append(_Cancel(answer, process, at))

    def streamed(self, batch_id: str, events: Sequence[BatchEvent], *, after: int = 0, ended: bool = False) -> None:
        """`progress(batch_id, after=after)` gave these events; `ended`: and then it ended."""
        self._streams.setdefault(batch_id, []).append(_Stream(list(events), after, ended))

    # ---- checking ------------------------------------------------------------------------------------------

    async def verify(
        self,
        store: Store,
        *,
        interrupted: Collection[str] = (),
        fenced: Collection[str] = (),
        left: Collection[str] = (),
        finished: bool = False,
        everyone_left: bool = False,
        heartbeat: float | None = None,
    ) -> None:
        """`check`, and raise what it finds.

        Raises:
            HistoryViolation: A promise is broken.
        """
        violations = await self.check(
            store,
            interrupted=interrupted,
            fenced=fenced,
            left=left,
            finished=finished,
            everyone_left=everyone_left,
            heartbeat=heartbeat,
        )
        if violations:
            raise HistoryViolation(violations)

    async def check(
        self,
        store: Store,
        *,
        interrupted: Collection[str] = (),
        fenced: Collection[str] = (),
        left: Collection[str] = (),
        finished: bool = False,
        everyone_left: bool = False,
        heartbeat: float | None = None,
    ) -> list[str]:
        """Every broken promise, one line each; empty where all are kept.

        Args:
            store: Open. May be in use by others meanwhile.
            interrupted: Processes of the effects log that have died since the last check, or gave up running
                activities (a drain that took too long): what they had begun and not recorded may run again.
            fenced: Processes that were declared dead and live: what they began meanwhile counts for nothing.
            left: Processes that left in good order: they let what ran finish, but did not wait for the next try of
                what had failed.
            finished: All batches must have ended.
            everyone_left: No worker may be alive, and nothing may be owned.
            heartbeat: Seconds after an acknowledged cancel from which on other processes start none of its
                activities.
        """
        self._violations = []
        newly = set(interrupted) - self._interrupted
        self._interrupted |= newly
        self._fenced |= set(fenced)
        self._left |= set(left)
        pictures = await self._pictures(store)
        # Read after the store: what is recorded there has left its marks before.
        effects = [] if self._effects is None else list(self._effects.read())
        for batch_id, picture in pictures.items():
            known = self._known.setdefault(batch_id, _Known())
            self._check_documents(picture, known)
            self._check_log(picture, known)
            self._check_checkpoints(picture, known)
            self._check_leases(picture)
            self._check_cancels(picture, effects, heartbeat)
            self._check_streams(picture)
            self._check_absorbed(picture, known, effects)
            if finished and not picture.record.ended:
                self._find(2, batch_id, f"has not ended: it is in state {picture.record.state!r}")
        for batch_id in (self._acknowledged.keys() | self._known.keys()) - pictures.keys():
            self._find(1, batch_id, "was acknowledged, or seen, and is gone")
        if everyone_left:
            await self._check_everyone_left(store, pictures)
        self._check_effects(pictures, effects, newly)
        return self._violations

    def _find(self, promise: int, batch_id: str, problem: str) -> None:
        self._violations.append(f"{promise}: batch {batch_id!r}: {problem}")

    # ---- reading -------------------------------------------------------------------------------------------

    async def _pictures(self, store: Store) -> dict[str, _Picture]:
        batch_ids: list[BatchId] = []
        while True:
            page = await store.batches(BatchQuery(), after=batch_ids[-1] if batch_ids else None, limit=_PAGE)
            batch_ids += [record.batch_id for record in page]
            if len(page) < _PAGE:
                break
        pictures: dict[str, _Picture] = {}
        for batch_id in batch_ids:
            picture = await _look(store, batch_id)
            if picture is not None:
                pictures[batch_id] = picture
        return pictures

    # ---- what the store holds ------------------------------------------------------------------------------

    def _check_documents(self, picture: _Picture, known: _Known) -> None:
        record = picture.record
        found = frozenset(picture.documents)
        expected = self._acknowledged.get(record.batch_id) or known.documents or found
        if found != expected:
            lost, strange = len(expected - found), len(found - expected)
            self._find(1, record.batch_id, f"{lost} of its documents are gone, {strange} are none of its own")
        if record.counts.total != len(found):
            self._find(1, record.batch_id, f"its total is {record.counts.total}, of {len(found)} documents stored")
        positions = [document.execution.position for document in picture.documents.values()]
        if positions != list(range(len(positions))):
            self._find(1, record.batch_id, "its documents' positions have gaps or are out of order")
        known.documents = known.documents or found

    def _check_log(self, picture: _Picture, known: _Known) -> None:
        record, log = picture.record, picture.log
        if [event.seq for event in log] != list(range(1, record.seq + 1)):
            self._find(9, record.batch_id, f"its {len(log)} events are not numbered 1 to {record.seq}")
            return
        digests = [_digest(event.tag.encode(), event.data, str(event.at).encode()) for event in log]
        if digests[: len(known.log)] != known.log:
            self._find(9, record.batch_id, "events that were seen before are others now, or gone")
        known.log = digests
        try:
            events = [decode_event(event) for event in log]
        except (LookupError, TypeError, ValueError) as error:
            self._find(9, record.batch_id, f"its events cannot be read: {error!r}")
            return
        replay = Replay(definition_of(record))
        for event in events:
            replay.take(event)
        replay.end_of_log()
        for problem in replay.problems:
            promise, _, text = problem.partition(": ")
            self._find(int(promise), record.batch_id, text)
        self._compare_record(record, replay, events)
        for document in picture.documents.values():
            self._compare_row(record, replay, document, known)
        self._compare_resolver(record, replay, picture.resolver, known)

    def _compare_record(self, record: BatchRecord, replay: Replay, events: Sequence[BatchEvent]) -> None:
        batch = BatchInProgress(record, record.created_at)
        folded = fold(events)
        for name, stored, told in (
            ("state", record.state, replay.state),
            ("counts", record.counts, replay.counts),
            ("free slots", record.free, batch.free),
            ("state by the library's fold", record.state, folded.state),
            ("counts by the library's fold", record.counts, folded.counts),
            ("sequence number by the library's fold", record.seq, folded.seq),
        ):
            if stored != told:
                self._find(11, record.batch_id, f"{name}: its row says {stored!r}, its events {told!r}")
        if not record.ended and record.counts.total and abs(batch.percentage - replay.percentage) > 0.001:
            self._find(
                11,
                record.batch_id,
                f"percentage: its row says {batch.percentage}, its events {replay.percentage}",
            )

    def _compare_row(self, batch: BatchRecord, replay: Replay, document: DocumentRecord, known: _Known) -> None:
        execution = document.execution
        told = replay.document(execution.document_id)
        status = _effective(batch, execution)
        expected = "cancelled" if batch.ended and told.unfinished else told.status
        last_failure = told.status == "failed"
        for name, stored, wanted in (
            ("status", status, expected),
            ("attempt", execution.attempt, told.attempt),
            ("stage", execution.mark, told.mark),
            (
                "failures and crashes",
                execution.failures + execution.crashes,
                told.failures + told.crashes + last_failure,
            ),
        ):
            if stored != wanted:
                self._find(
                    11,
                    batch.batch_id,
                    f"{name} of {_name(execution)}: its row says {stored!r}, its events {wanted!r}",
                )
        self._check_row(batch, execution)
        self._check_outcome(batch, document, known)

    def _compare_resolver(
        self, batch: BatchRecord, replay: Replay, resolver: DocumentRecord | None, known: _Known
    ) -> None:
        if resolver is None:
            if definition_of(batch).resolver:
                self._find(1, batch.batch_id, "it has lost its resolver's execution")
            return
        execution = resolver.execution
        if execution.attempt != replay.resolver_attempts:
            self._find(
                11,
                batch.batch_id,
                f"its resolver's row says attempt {execution.attempt}, its events {replay.resolver_attempts}",
            )
        if (execution.status == "succeeded") != (replay.resolver == "succeeded"):
            self._find(
                8,
                batch.batch_id,
                f"its resolver's row says {execution.status!r}, its events {replay.resolver!r}",
            )
        self._check_row(batch, execution)
        self._check_outcome(batch, resolver, known)

    def _check_row(self, batch: BatchRecord, execution: ExecutionRecord) -> None:
        """A row fits together: it is owned while it runs, and due while it waits."""
        running = execution.status == "running"
        unready = execution.position == RESOLVER_POSITION and batch.state != "resolving"
        waits_for_clock = execution.status in ("pending", "waiting") and not unready
        if (execution.owner is not None) != running:
            self._find(14, batch.batch_id, f"{_name(execution)} is {execution.status}, owned by {execution.owner!r}")
        if not batch.ended and (execution.due is not None) != waits_for_clock:
            self._find(2, batch.batch_id, f"{_name(execution)} is {execution.status}, due {execution.due!r}")

    def _check_outcome(self, batch: BatchRecord, document: DocumentRecord, known: _Known) -> None:
        execution, outcome = document.execution, document.outcome
        if execution.status not in ("succeeded", "failed"):
            return
        if outcome is None:
            self._find(1, batch.batch_id, f"{_name(execution)} has {execution.status}, and no outcome is stored")
            return
        digest = _digest(execution.status.encode(), outcome)
        if known.outcomes.setdefault(execution.document_id, digest) != digest:
            self._find(3, batch.batch_id, f"the outcome of {_name(execution)} is another one now")
        if execution.status == "failed":
            try:
                failure = DocumentFailureRecord.decode(outcome)
            except (TypeError, ValueError) as error:
                self._find(1, batch.batch_id, f"the failure of {_name(execution)} cannot be read: {error!r}")
                return
            limit = definition_of(batch).config.max_crashes
            if failure.error_type == "CrashLoopError" and execution.crashes < limit:
                self._find(
                    5,
                    batch.batch_id,
                    f"{_name(execution)} was given up after {execution.crashes} of {limit} crashes",
                )

    def _check_checkpoints(self, picture: _Picture, known: _Known) -> None:
        batch_id = picture.record.batch_id
        for identity, checkpoint in picture.checkpoints.items():
            digest = _digest(checkpoint.kind.encode(), checkpoint.payload)
            failures = _failures(picture, identity[0])
            if identity in known.results:
                if known.results[identity] != digest:
                    self._find(3, batch_id, f"the recorded result of {identity} is another one now")
            elif checkpoint.kind == "succeeded":
                known.results[identity] = digest
            else:
                before = known.failures.get(identity, (digest, failures))
                if before[0] != digest and before[1] == failures:
                    self._find(3, batch_id, f"the recorded failure of {identity} is another one now")
                known.failures[identity] = (digest, failures)
        for identity in known.results.keys() - picture.checkpoints.keys():
            self._find(3, batch_id, f"the recorded result of {identity} is gone")
        for identity in known.failures.keys() - picture.checkpoints.keys():
            if _failures(picture, identity[0]) == known.failures[identity][1]:
                self._find(3, batch_id, f"the recorded failure of {identity} is gone")
            del known.failures[identity]

    def _check_leases(self, picture: _Picture) -> None:
        for execution in _executions(picture):
            if execution.owner is not None and execution.owner not in picture.alive:
                self._find(
                    14,
                    picture.record.batch_id,
                    f"{_name(execution)} is owned by {execution.owner!r}, who is dead",
                )

    async def _check_everyone_left(self, store: Store, pictures: Mapping[str, _Picture]) -> None:
        alive = [worker.worker_id for worker in await store.workers()]
        if alive:
            self._violations.append(f"14: workers are alive after everyone left: {', '.join(alive)}")
        for batch_id, picture in pictures.items():
            owned = [_name(execution) for execution in _executions(picture) if execution.owner is not None]
            if owned:
                self._find(14, batch_id, f"still owned after everyone left: {', '.join(owned)}")

    # ---- what the test saw ---------------------------------------------------------------------------------

    def _check_cancels(self, picture: _Picture, effects: Sequence[Effect], heartbeat: float | None) -> None:
        record = picture.record
        cancels = self._cancels.get(record.batch_id, [])
        winners = [cancel for cancel in cancels if cancel.answer is True]
        lost_replies = any(cancel.answer is None for cancel in cancels)
        cancelled = record.state == "cancelled"
        if len(winners) > 1 or (winners and not cancelled) or (cancelled and not winners and not lost_replies):
            self._find(13, record.batch_id, f"{len(winners)} cancels won, and it is in state {record.state!r}")
        for cancel in winners:
            for effect in effects:
                if effect.batch_id != record.batch_id or effect.phase != "start":
                    continue
                allowed = 0.0 if effect.process == cancel.process else heartbeat
                if allowed is not None and effect.at > cancel.at + allowed:
                    self._find(
                        12,
                        record.batch_id,
                        f"{_call(effect)} began in {effect.process!r} {effect.at - cancel.at:.3f} s after "
                        f"the cancel in {cancel.process!r} was acknowledged",
                    )

    def _check_streams(self, picture: _Picture) -> None:
        record = picture.record
        log = {event.seq: event for event in picture.log}
        for stream in self._streams.get(record.batch_id, ()):
            numbers = [event.seq for event in stream.events]
            if numbers != list(range(stream.after + 1, stream.after + 1 + len(numbers))):
                self._find(10, record.batch_id, f"a stream after {stream.after} has the events {numbers}")
            elif any(
                seq not in log or decode_event(log[seq]) != event
                for seq, event in zip(numbers, stream.events, strict=True)
            ):
                self._find(10, record.batch_id, f"a stream after {stream.after} differs from the log")
            last = numbers[-1] if numbers else stream.after
            if stream.ended and (last != record.seq or log[last].tag not in LAST_EVENT_TAGS):
                self._find(10, record.batch_id, f"a stream ended with event {last} of {record.seq}")

    # ---- what activities did -------------------------------------------------------------------------------

    def _check_absorbed(self, picture: _Picture, known: _Known, effects: Sequence[Effect]) -> None:
        """What was seen ended does nothing any more; a cancel is heard of a little later, and is 12's matter."""
        batch_id = picture.record.batch_id
        if not picture.record.ended or picture.record.state == "cancelled":
            return
        starts = [
            effect
            for effect in effects
            if effect.batch_id == batch_id and effect.phase == "start" and effect.process not in self._fenced
        ]
        if known.starts_when_ended is None:
            known.starts_when_ended = len(starts)
        for effect in starts[known.starts_when_ended :]:
            self._find(5, batch_id, f"{_call(effect)} began in {effect.process!r} after the run had ended")

    def _check_effects(
        self, pictures: Mapping[str, _Picture], effects: Sequence[Effect], newly: Collection[str]
    ) -> None:
        calls = _calls(effects)
        recorded: dict[str, tuple[str, CheckpointRecord]] = {}
        for batch_id, picture in pictures.items():
            for (document_id, key), checkpoint in picture.checkpoints.items():
                recorded[_idempotency_key(batch_id, document_id, key)] = (batch_id, checkpoint)
        self.stats.repeated = self.stats.retried = 0
        for key, runs in calls.items():
            self._check_runs(key, runs, pictures)
            self._check_recorded(key, runs, recorded.get(key))
            for index, run in enumerate(runs):
                if run.process in newly and (key not in recorded or index < len(runs) - 1):
                    self.stats.in_flight += 1
        self.stats.runs = sum(len(runs) for runs in calls.values())
        self._check_resolver_effects(effects)
        if effects and recorded and not calls.keys() & recorded.keys():
            self._violations.append("the effects log knows none of the recorded calls: is it another history's?")

    def _check_runs(self, key: str, runs: Sequence[_Run], pictures: Mapping[str, _Picture]) -> None:
        for run in runs:
            first = run.tries[0]
            numbers = [effect.attempt for effect in run.tries]
            limit = self._max_attempts.get(first.activity, len(numbers))
            if numbers != list(range(1, len(numbers) + 1)) or len(numbers) > limit:
                self._find(7, first.batch_id, f"{_call(first)} has the tries {numbers}, of at most {limit}")
        for before, run in pairwise(runs):
            first = run.tries[0]
            picture = pictures.get(first.batch_id)
            # A failure that ended its document's attempt is forgotten, so that the next one tries again.
            forgotten = picture is not None and _failures(picture, first.document_id) > 0
            failed = before.raised and not before.returned
            if failed and (forgotten or before.process in self._left):
                self.stats.retried += 1
                continue
            if before.process in self._interrupted or {before.process, run.process} & self._fenced:
                self.stats.repeated += 1
                continue
            self._find(
                7,
                first.batch_id,
                f"{_call(first)} ran again in {run.process!r}, although nothing interrupted its run in "
                f"{before.process!r} (call {key})",
            )

    def _check_recorded(self, key: str, runs: Sequence[_Run], recorded: tuple[str, CheckpointRecord] | None) -> None:
        counted = [run for run in runs if run.process not in self._fenced]
        if recorded is None:
            # A failure that ended its document's attempt was forgotten.
            self._runs_when_recorded.pop(key, None)
            return
        batch_id, checkpoint = recorded
        first = runs[0].tries[0]
        digest = _digest(checkpoint.payload)
        before = self._runs_when_recorded.get(key, (digest, len(counted)))
        if before[0] == digest and len(counted) > before[1]:
            self._find(6, batch_id, f"{_call(first)} ran again in {runs[-1].process!r}, although it was recorded")
        self._runs_when_recorded[key] = (digest, len(counted))
        ended = {name for run in runs for name in (run.returned if checkpoint.kind == "succeeded" else run.raised)}
        if not ended:
            self._find(6, batch_id, f"{_call(first)} is recorded as {checkpoint.kind}, and never did so")
        source = self._run_of(checkpoint) if self._run_of is not None else None
        if source is None:
            return
        if source not in ended:
            self._find(4, batch_id, f"{_call(first)} is recorded as from {source}, which never came to that")
        later = [run for run in counted if source not in {effect.run for effect in run.tries}]
        place = next((index for index, run in enumerate(runs) if source in run.returned + run.raised), None)
        if place is not None and any(runs.index(run) > place for run in later):
            self._find(6, batch_id, f"{_call(first)} is recorded as from {source}, and ran again after that")

    def _check_resolver_effects(self, effects: Sequence[Effect]) -> None:
        resolving: set[str] = set()
        for effect in effects:
            if effect.phase != "start" or effect.process in self._fenced:
                continue
            if effect.document_id == RESOLVER_DOCUMENT_ID:
                resolving.add(effect.batch_id)
            elif effect.batch_id in resolving:
                self._find(8, effect.batch_id, f"{_call(effect)} began after the resolver had begun")


# ---- reading a batch ---------------------------------------------------------------------------------------


async def _look(store: Store, batch_id: BatchId) -> _Picture | None:
    """The batch at one moment: looked at again while it moves; None: deleted, or not sealed."""
    for _ in range(_LOOKS):
        before = [worker.worker_id for worker in await store.workers()]
        record = await store.batch(batch_id)
        if record is None or not record.sealed:
            return None
        executions = await _all_executions(store, batch_id)
        checkpoints = {
            (document.execution.document_id, checkpoint.key): checkpoint
            for document in executions
            for checkpoint in await _all_checkpoints(store, batch_id, document.execution)
        }
        log = await _all_events(store, batch_id)
        after = [worker.worker_id for worker in await store.workers()]
        if await store.batch(batch_id) != record:
            await asyncio.sleep(0.01)
            continue
        resolver = [doc for doc in executions if doc.execution.position == RESOLVER_POSITION]
        documents = [doc for doc in executions if doc.execution.position != RESOLVER_POSITION]
        return _Picture(
            record=record,
            log=log,
            resolver=resolver[0] if resolver else None,
            documents={document.execution.document_id: document for document in documents},
            checkpoints=checkpoints,
            alive={*before, *after},
        )
    raise TimeoutError(f"batch {batch_id!r} did not stand still for a look")


async def _all_executions(store: Store, batch_id: BatchId) -> list[DocumentRecord]:
    found: list[DocumentRecord] = []
    while True:
        after = found[-1].execution.position if found else RESOLVER_POSITION - 1
        page = await store.documents(batch_id, after=after, limit=_PAGE, inputs=False)
        found += page
        if len(page) < _PAGE:
            return found


async def _all_checkpoints(store: Store, batch_id: BatchId, execution: ExecutionRecord) -> list[CheckpointRecord]:
    found: list[CheckpointRecord] = []
    if execution.attempt == 0:
        return found
    while True:
        after = found[-1].key if found else ""
        page = await store.checkpoints(batch_id, execution.position, after=after, limit=_PAGE)
        found += page
        if len(page) < _PAGE:
            return found


async def _all_events(store: Store, batch_id: BatchId) -> list[EventRecord]:
    found: list[EventRecord] = []
    while True:
        page = await store.events(batch_id, after=found[-1].seq if found else 0, limit=_PAGE)
        found += page
        if len(page) < _PAGE:
            return found


# ---- small things ------------------------------------------------------------------------------------------


def _executions(picture: _Picture) -> list[ExecutionRecord]:
    documents = list(picture.documents.values())
    if picture.resolver is not None:
        documents.append(picture.resolver)
    return [document.execution for document in documents]


def _effective(batch: BatchRecord, execution: ExecutionRecord) -> str:
    """An unfinished execution of an ended run is cancelled; its row is left as it was."""
    unfinished = execution.status in ("pending", "running", "waiting")
    return "cancelled" if batch.ended and unfinished else execution.status


def _failures(picture: _Picture, document_id: str) -> int:
    document = picture.documents.get(document_id, picture.resolver if not document_id else None)
    return 0 if document is None else document.execution.failures


def _calls(effects: Iterable[Effect]) -> dict[str, list[_Run]]:
    """The runs of each call, in the order in which they began."""
    calls: dict[str, list[_Run]] = {}
    run_of: dict[str, _Run] = {}
    for effect in effects:
        runs = calls.setdefault(effect.key, [])
        match effect.phase:
            case "start":
                if not runs or effect.attempt == 1 or runs[-1].process != effect.process:
                    runs.append(_Run(effect.process, [], [], []))
                runs[-1].tries.append(effect)
                run_of[effect.run] = runs[-1]
            case "end":
                run_of[effect.run].returned.append(effect.run)
            case "error":
                run_of[effect.run].raised.append(effect.run)
    return calls


def _idempotency_key(batch_id: str, document_id: str, key: str) -> str:
    """As `current_activity().idempotency_key` makes it."""
    return blake2b("\0".join((batch_id, document_id, key)).encode(), digest_size=16).hexdigest()


def _digest(*parts: bytes) -> bytes:
    return blake2b(b"\0".join(parts), digest_size=16).digest()


def _name(execution: ExecutionRecord) -> str:
    resolver = execution.position == RESOLVER_POSITION
    return "the resolver" if resolver else f"document {execution.document_id!r}"


def _call(effect: Effect) -> str:
    where = f"document {effect.document_id!r}" if effect.document_id else "the resolver"
    return f"activity {effect.activity!r} of {where}"
