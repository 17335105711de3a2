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

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from durable_batches.clock import SystemClock
from durable_batches.lifecycle.batch import BatchInProgress
from durable_batches.lifecycle.batch_core import definition_of
from durable_batches.lifecycle.events import LAST_EVENT_TAGS, BatchEvent, decode_event
from durable_batches.lifecycle.failures import DocumentFailureRecord
from durable_batches.lifecycle.records import RESOLVER_POSITION, BatchRecord, DocumentRecord, ExecutionRecord
from durable_batches.stores.protocol import Store
from durable_batches.testing.history.replay import Replay
from durable_batches.testing.history.runs import ActivityRuns, Faults, RunSource, call_of
from durable_batches.testing.history.store_snapshot import Picture, batch_ids, effective_status, name_of, picture_of
from durable_batches.testing.virtual.effects import Effect, EffectsLog

__all__ = ["HistoryChecker", "HistoryStats", "HistoryViolation"]


class HistoryViolation(AssertionError):
    """The history breaks guarantees; `violations` lists them, one line each."""

    def __init__(self, violations: Sequence[str]) -> None:
        self.violations: tuple[str, ...] = tuple(violations)
        lines = "".join(f"\n  {violation}" for violation in self.violations[:50])
        more = len(self.violations) - 50
        super().__init__(
            f"{len(self.violations)} broken promises:{lines}" + (f"\n  ... and {more} more" if more > 0 else "")
        )


@dataclass(frozen=True, kw_only=True)
class HistoryStats:
    """Counters of the effects log, as of the last check."""

    runs: int
    """Runs of activities: started bodies, without the further attempts of the retry policy."""
    repeated: int
    """Runs of an activity after an interrupted one."""
    retried: int
    """Runs of an activity after one that failed before its last attempt, or whose document failed with it."""
    in_flight: int
    """Runs that had started and were not recorded when their process was interrupted, over all interruptions."""


@dataclass
class _Known:
    """What was seen of a batch at earlier checks, in digests."""

    runs: ActivityRuns
    documents: frozenset[str] = frozenset()
    log: list[bytes] = field(default_factory=list[bytes])
    results: dict[tuple[str, str], bytes] = field(default_factory=dict[tuple[str, str], bytes])
    """Of recorded successes, by document and key."""
    failures: dict[tuple[str, str], tuple[bytes, int]] = field(default_factory=dict[tuple[str, str], tuple[bytes, int]])
    """Of recorded failures, and how often their document had failed then: its next attempt forgets some."""
    outcomes: dict[str, bytes] = field(default_factory=dict[str, bytes])


class _Cancel(NamedTuple):
    answer: bool | None
    process: str
    at: float


class _Stream(NamedTuple):
    events: Sequence[BatchEvent]
    after: int
    ended: bool


class HistoryChecker:
    """Check a history: the life of some batches, over any number of processes and crashes.

    Args:
        effects: The log of the activities' effects; without it, only the contents of the store are checked.
        run_of: Returns the id of the run (`EffectsLog.activity`) from a recorded result or failure, if its payload has
            it: then the checker also verifies which of several runs was recorded.
        max_attempts: The retry policies' `max_attempts`, by activity.
        calls_at_once: The maximum number of concurrent activities of one document: no more can be lost with a process.
    """

    def __init__(
        self,
        *,
        effects: EffectsLog | None = None,
        run_of: RunSource | None = None,
        max_attempts: Mapping[str, int] | None = None,
        calls_at_once: int | None = None,
    ) -> None:
        self._effects = effects
        self._run_of = run_of
        self._max_attempts = max_attempts or {}
        self._calls_at_once = calls_at_once
        self._faults = Faults()
        self._effects_read = 0
        self._clock = SystemClock()
        self._effects_by_batch: dict[str, list[Effect]] = {}
        self._acknowledged: dict[str, frozenset[str]] = {}
        self._cancels: dict[str, list[_Cancel]] = {}
        self._streams: dict[str, list[_Stream]] = {}
        self._known: dict[str, _Known] = {}
        self._violations: list[str] = []

    @property
    def stats(self) -> HistoryStats:
        """What was counted in the effects log so far."""
        runs = [known.runs for known in self._known.values()]
        return HistoryStats(
            runs=sum(counted.runs for counted in runs),
            repeated=sum(counted.repeated for counted in runs),
            retried=sum(counted.retried for counted in runs),
            in_flight=sum(counted.in_flight for counted in runs),
        )

    # ---- what the test saw -----------------------------------------------------------------------------------

    def acknowledged(self, batch_id: str, document_ids: Iterable[str]) -> None:
        """Note that `submit` returned this batch, of these documents."""
        self._acknowledged[batch_id] = frozenset(document_ids)

    def cancel_answered(self, batch_id: str, answer: bool | None, *, process: str = "", at: float = 0.0) -> None:
        """Note that a `cancel` returned; None: its caller died before it did.

        `at`: when it did, on the boot clock; after that no activity of the batch starts in `process`.
        """
        self._cancels.setdefault(batch_id, []).append(_Cancel(answer, process, at))

    def streamed(self, batch_id: str, events: Sequence[BatchEvent], *, after: int = 0, ended: bool = False) -> None:
        """Note that `progress(batch_id, after=after)` yielded these events; `ended`: and then stopped."""
        self._streams.setdefault(batch_id, []).append(_Stream(list(events), after, ended))

    # ---- checking --------------------------------------------------------------------------------------------

    async def verify(
        self,
        store: Store,
        *,
        only: Collection[str] | None = None,
        interrupted: Collection[str] = (),
        fenced: Collection[str] = (),
        left: Collection[str] = (),
        finished: bool = False,
        everyone_left: bool = False,
        heartbeat: float | None = None,
        as_of: float | None = None,
    ) -> None:
        """Check, and raise an error if a guarantee is broken.

        Raises:
            HistoryViolation: A guarantee is broken.
        """
        violations = await self.check(
            store,
            only=only,
            interrupted=interrupted,
            fenced=fenced,
            left=left,
            finished=finished,
            everyone_left=everyone_left,
            heartbeat=heartbeat,
            as_of=as_of,
        )
        if violations:
            raise HistoryViolation(violations)

    async def check(
        self,
        store: Store,
        *,
        only: Collection[str] | None = None,
        interrupted: Collection[str] = (),
        fenced: Collection[str] = (),
        left: Collection[str] = (),
        finished: bool = False,
        everyone_left: bool = False,
        heartbeat: float | None = None,
        as_of: float | None = None,
    ) -> list[str]:
        """List the broken guarantees, one line each.

        Args:
            store: An open store. Others may use it meanwhile, if they pause now and then.
            only: The batches to check; by default all.
            interrupted: Processes of the effects log that have died since the last check, or have abandoned running
                activities (when a drain took too long): activities that they had started but not recorded may run
                again.
            fenced: Processes whose lease expired while they were alive: activities that they started meanwhile do not
                count.
            left: Processes that were closed gracefully: running activities finished, but pending retries did not run.
            finished: The batches must have ended.
            everyone_left: No worker may be alive, and nothing may be owned.
            heartbeat: The seconds after an acknowledged cancel from which other processes start none of the batch's
                activities.
            as_of: For a copy of a store in use: the moment at which the copy was started, on the boot clock. Later
                entries of the log are ignored.

        Raises:
            TimeoutError: A batch changes all the time; take a copy of the store, and check that.
        """
        self._violations = []
        self._faults.interrupted |= set(interrupted)
        self._faults.fenced |= set(fenced)
        self._faults.left |= set(left)
        stored = set(await batch_ids(store))
        wanted = stored if only is None else stored & set(only)
        for batch_id in sorted(wanted):
            moment = self._clock.boot() if as_of is None else as_of
            picture = await picture_of(store, batch_id)
            if picture is None:
                stored.discard(batch_id)
                continue
            # Read after the store: what is recorded there has left its marks before.
            self._check(picture, self._effects_of(batch_id), heartbeat, moment)
            if finished and not picture.record.ended:
                self._find(2, batch_id, f"has not ended: it is in state {picture.record.state!r}")
            if everyone_left:
                self._check_nothing_owned(picture)
        for gone in (self._acknowledged.keys() | self._known.keys()) - stored:
            self._find(1, gone, "was acknowledged, or seen, and is gone")
        if everyone_left:
            alive = [worker.worker_id for worker in await store.workers()]
            if alive:
                self._violations.append(f"14: workers are alive after everyone left: {', '.join(alive)}")
        return self._violations

    def _check(self, picture: Picture, effects: Sequence[Effect], heartbeat: float | None, as_of: float) -> None:
        batch_id = picture.record.batch_id
        known = self._known.get(batch_id)
        if known is None:
            runs = ActivityRuns(batch_id, self._faults, self._run_of, self._max_attempts, self._calls_at_once)
            known = self._known[batch_id] = _Known(runs)
        self._check_documents(picture, known)
        self._check_log(picture, known)
        self._check_checkpoints(picture, known)
        self._check_leases(picture)
        self._check_cancels(picture, effects, heartbeat)
        self._check_streams(picture)
        for promise, problem in known.runs.check(picture, effects, as_of):
            self._find(promise, batch_id, problem)

    def _find(self, promise: int, batch_id: str, problem: str) -> None:
        self._violations.append(f"{promise}: batch {batch_id!r}: {problem}")

    def _effects_of(self, batch_id: str) -> Sequence[Effect]:
        if self._effects is None:
            return ()
        effects = self._effects.read()
        for effect in effects[self._effects_read :]:
            self._effects_by_batch.setdefault(effect.batch_id, []).append(effect)
        self._effects_read = len(effects)
        return self._effects_by_batch.get(batch_id, ())

    # ---- what the store holds ------------------------------------------------------------------------------

    def _check_documents(self, picture: Picture, known: _Known) -> None:
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

    def _check_log(self, picture: Picture, known: _Known) -> None:
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
        self._compare_record(record, replay)
        for document in picture.documents.values():
            self._compare_row(record, replay, document, known)
        self._compare_resolver(record, replay, picture.resolver, known)

    def _compare_record(self, record: BatchRecord, replay: Replay) -> None:
        try:
            batch = BatchInProgress(record, record.created_at)
        except AssertionError as error:
            self._find(11, record.batch_id, str(error))
            return
        for name, stored, told in (
            ("state", record.state, replay.state),
            ("counts", record.counts, replay.counts),
            ("free slots", record.free, batch.open_slots),
        ):
            if stored != told:
                self._find(11, record.batch_id, f"{name}: its row says {stored!r}, its events {told!r}")
        if abs(batch.percentage - replay.percentage) > 0.001:
            told = f"its row says {batch.percentage}, its events {replay.percentage}"
            self._find(11, record.batch_id, f"percentage: {told}")

    def _compare_row(self, batch: BatchRecord, replay: Replay, document: DocumentRecord, known: _Known) -> None:
        execution = document.execution
        told = replay.document(execution.document_id)
        status = effective_status(batch, execution)
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
                    f"{name} of {name_of(execution)}: its row says {stored!r}, its events {wanted!r}",
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
            self._find(14, batch.batch_id, f"{name_of(execution)} is {execution.status}, owned by {execution.owner!r}")
        if not batch.ended and (execution.due is not None) != waits_for_clock:
            self._find(2, batch.batch_id, f"{name_of(execution)} is {execution.status}, due {execution.due!r}")

    def _check_outcome(self, batch: BatchRecord, document: DocumentRecord, known: _Known) -> None:
        execution, outcome = document.execution, document.outcome
        if execution.status not in ("succeeded", "failed"):
            return
        if outcome is None:
            self._find(1, batch.batch_id, f"{name_of(execution)} has {execution.status}, and no outcome is stored")
            return
        digest = _digest(execution.status.encode(), outcome)
        if known.outcomes.setdefault(execution.document_id, digest) != digest:
            self._find(3, batch.batch_id, f"the outcome of {name_of(execution)} is another one now")
        if execution.status == "failed":
            try:
                failure = DocumentFailureRecord.decode(outcome)
            except (TypeError, ValueError) as error:
                self._find(1, batch.batch_id, f"the failure of {name_of(execution)} cannot be read: {error!r}")
                return
            limit = definition_of(batch).config.max_crashes
            if failure.error_type == "CrashLoopError" and execution.crashes < limit:
                self._find(
                    5,
                    batch.batch_id,
                    f"{name_of(execution)} was given up after {execution.crashes} of {limit} crashes",
                )

    def _check_checkpoints(self, picture: Picture, known: _Known) -> None:
        batch_id = picture.record.batch_id
        for identity, checkpoint in picture.checkpoints.items():
            digest = _digest(checkpoint.kind.encode(), checkpoint.payload)
            failures = picture.failures(identity[0])
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
            if picture.failures(identity[0]) == known.failures[identity][1]:
                self._find(3, batch_id, f"the recorded failure of {identity} is gone")
            del known.failures[identity]

    def _check_leases(self, picture: Picture) -> None:
        for execution in picture.executions():
            if execution.owner is not None and execution.owner not in picture.alive:
                self._find(
                    14,
                    picture.record.batch_id,
                    f"{name_of(execution)} is owned by {execution.owner!r}, who is dead",
                )

    def _check_nothing_owned(self, picture: Picture) -> None:
        owned = [name_of(execution) for execution in picture.executions() if execution.owner is not None]
        if owned:
            self._find(14, picture.record.batch_id, f"still owned after everyone left: {', '.join(owned)}")

    # ---- what the test saw ---------------------------------------------------------------------------------

    def _check_cancels(self, picture: Picture, effects: Sequence[Effect], heartbeat: float | None) -> None:
        record = picture.record
        cancels = self._cancels.get(record.batch_id, [])
        winners = [cancel for cancel in cancels if cancel.answer is True]
        lost_replies = any(cancel.answer is None for cancel in cancels)
        cancelled = record.state == "cancelled"
        if len(winners) > 1 or (winners and not cancelled) or (cancelled and not winners and not lost_replies):
            self._find(13, record.batch_id, f"{len(winners)} cancels won, and it is in state {record.state!r}")
        for cancel in winners:
            for effect in effects:
                allowed = 0.0 if effect.process == cancel.process else heartbeat
                if effect.phase == "start" and allowed is not None and effect.at > cancel.at + allowed:
                    self._find(
                        12,
                        record.batch_id,
                        f"{call_of(effect)} began in {effect.process!r} {effect.at - cancel.at:.3f} s after "
                        f"the cancel in {cancel.process!r} was acknowledged",
                    )

    def _check_streams(self, picture: Picture) -> None:
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


def _digest(*parts: bytes) -> bytes:
    return blake2b(b"\0".join(parts), digest_size=16).digest()
