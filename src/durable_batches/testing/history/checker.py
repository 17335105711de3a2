"""Check what a store holds, and what activities did, against the library's promises.

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
 4. No write of a fenced worker, or of a stale run or attempt, is accepted; a late result, which a later session of its
    process brings, is a checkpoint where there was none.
 5. Ended runs absorb; every transition is in the table.
 6. A recorded activity never runs again.
 7. Runs of an activity after its first one <= those in flight at the faults; tries of a run <= the policy's.
 8. The resolver starts after the last document's end is committed, and records one result a run.
 9. Events are 1..n without a gap, their times never go back, and they never change.
10. Every subscriber's stream is a part of the log without a gap; of an ended run, up to its end.
11. The fold of the events equals the rows and the counters.
12. After an acknowledged cancel no activity starts in that process, and in others not later than a heartbeat.
13. A run ended CANCELLED <=> exactly one cancel() returned True.
14. No orphan lease: what is owned is owned by a living worker, and nothing once everyone has left.
16. Nothing of a paused batch is started before the pause is over by time, and from then on one execution at a time.
17. What a batch has spent is at least what its recorded calls say, and is the sum over its stages and its resolver.
19. Paid = answered once, by the log of effects, which is outside of the library: a call is made again only if it was in
    flight at a fault, and a process whose lease has run out begins none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from durable_batches.clock import SystemClock
from durable_batches.lifecycle.events import LAST_EVENT_TAGS, BatchEvent, decode_event
from durable_batches.options import check_callable, check_instance, check_integer
from durable_batches.stores.protocol import Store
from durable_batches.testing.history.runs import ActivityRuns, Faults, RunSource, call_of
from durable_batches.testing.history.store_snapshot import (
    StoreSnapshot,
    batch_ids,
    take_snapshot,
)
from durable_batches.testing.history.stored_batch import StoredBatch
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
        check_instance("effects", effects, EffectsLog, optional=True)
        check_callable("run_of", run_of, optional=True)
        check_instance("max_attempts", max_attempts, Mapping, optional=True)
        check_integer("calls_at_once", calls_at_once, optional=True)
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
        self._stored: dict[str, StoredBatch] = {}
        self._runs: dict[str, ActivityRuns] = {}
        self._violations: list[str] = []

    @property
    def stats(self) -> HistoryStats:
        """The counters of the effects log so far."""
        runs = self._runs.values()
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
            fenced: Processes whose lease expired while they were alive: activities that they had started by then may
                run again.
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
            snapshot = await take_snapshot(store, batch_id)
            if snapshot is None:
                stored.discard(batch_id)
                continue
            # Read after the store: what is recorded there has left its marks before.
            self._check(snapshot, self._effects_of(batch_id), heartbeat, moment, everyone_left=everyone_left)
            if finished and not snapshot.record.ended:
                self._find(2, batch_id, f"has not ended: it is in state {snapshot.record.state!r}")
        for gone in (self._acknowledged.keys() | self._stored.keys()) - stored:
            self._find(1, gone, "was acknowledged, or seen, and is gone")
        if everyone_left:
            alive = [worker.worker_id for worker in await store.workers()]
            if alive:
                self._violations.append(f"14: workers are alive after everyone left: {', '.join(alive)}")
        return self._violations

    def _check(
        self,
        snapshot: StoreSnapshot,
        effects: Sequence[Effect],
        heartbeat: float | None,
        as_of: float,
        *,
        everyone_left: bool,
    ) -> None:
        batch_id = snapshot.record.batch_id
        stored = self._stored.setdefault(batch_id, StoredBatch())
        runs = self._runs.get(batch_id)
        if runs is None:
            runs = ActivityRuns(batch_id, self._faults, self._run_of, self._max_attempts, self._calls_at_once)
            self._runs[batch_id] = runs
        for promise, problem in stored.check(snapshot, self._acknowledged.get(batch_id), everyone_left=everyone_left):
            self._find(promise, batch_id, problem)
        self._check_cancels(snapshot, effects, heartbeat)
        self._check_streams(snapshot)
        for promise, problem in runs.check(snapshot, effects, as_of):
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

    # ---- what the test saw ---------------------------------------------------------------------------------

    def _check_cancels(self, snapshot: StoreSnapshot, effects: Sequence[Effect], heartbeat: float | None) -> None:
        record = snapshot.record
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

    def _check_streams(self, snapshot: StoreSnapshot) -> None:
        record = snapshot.record
        log = {event.seq: event for event in snapshot.log}
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
