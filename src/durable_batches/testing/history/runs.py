"""Compare the runs of a batch's activities with what its store has recorded of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from typing import Final, NamedTuple, TypeAlias

from durable_batches.lifecycle.records import RESOLVER_DOCUMENT_ID, CheckpointRecord
from durable_batches.testing.history.store_snapshot import StoreSnapshot
from durable_batches.testing.virtual.effects import Effect

__all__ = ["ActivityRuns", "Faults", "RunSource"]

RunSource: TypeAlias = Callable[[CheckpointRecord], str | None]


@dataclass
class Faults:
    """What happened to the processes of a history, by their names in the effects log."""

    interrupted: set[str] = field(default_factory=set[str])
    fenced: set[str] = field(default_factory=set[str])
    left: set[str] = field(default_factory=set[str])


class _Run(NamedTuple):
    """One run of an activity call: its attempts, in one process."""

    process: str
    tries: list[Effect]
    """Their first marks."""
    returned: list[str]
    """Which of them returned."""
    raised: list[str]

    @property
    def began(self) -> float:
        """Seconds on the boot clock."""
        return self.tries[0].at

    @property
    def failed(self) -> bool:
        """Whether it raised (or was cancelled), and did not return."""
        return bool(self.raised) and not self.returned


class ActivityRuns:
    """The runs of one batch's activities, from check to check.

    Args:
        batch_id: The batch.
        faults: Of the history; grows.
        run_of: See `HistoryChecker`.
        max_attempts: See `HistoryChecker`.
        calls_at_once: See `HistoryChecker`.
    """

    def __init__(
        self,
        batch_id: str,
        faults: Faults,
        run_of: RunSource | None,
        max_attempts: Mapping[str, int],
        calls_at_once: int | None,
    ) -> None:
        self.runs: int = 0
        self.repeated: int = 0
        self.retried: int = 0
        self.in_flight: int = 0
        self._batch_id: Final = batch_id
        self._faults = faults
        self._run_of = run_of
        self._max_attempts = max_attempts
        self._calls_at_once = calls_at_once
        self._counted: set[str] = set()
        """The interrupted processes whose runs in flight are in `in_flight`."""
        self._recorded_with: dict[str, tuple[bytes, int]] = {}
        """Of each recorded call: its digest, and how many runs it had had when that was seen."""
        self._starts_when_ended: int | None = None
        self._problems: list[tuple[int, str]] = []

    def check(self, snapshot: StoreSnapshot, effects: Sequence[Effect], as_of: float) -> list[tuple[int, str]]:
        """Return what is wrong: the numbers of promises, and how they are broken.

        Args:
            snapshot: The batch as it is stored.
            effects: Those of this batch, read later than the snapshot was taken.
            as_of: On the boot clock: the snapshot shows this moment, or a later one. Whether something may have begun
                after it cannot be told from the snapshot.
        """
        self._problems = []
        calls = _calls(effects)
        recorded = {
            _idempotency_key(self._batch_id, document_id, key): checkpoint
            for (document_id, key), checkpoint in snapshot.checkpoints.items()
        }
        self.runs = sum(len(runs) for runs in calls.values())
        self.repeated = self.retried = 0
        newly = self._faults.interrupted - self._counted
        self._counted |= newly
        for key, runs in calls.items():
            self._check_tries(runs)
            self._check_late_tries(runs)
            self._check_repetitions(runs, snapshot, as_of)
            self._check_recorded(key, runs, recorded.get(key), as_of)
        self._count_in_flight(calls, snapshot, recorded.keys(), newly)
        starts = [effect for effect in effects if effect.phase == "start" and effect.process not in self._faults.fenced]
        self._check_resolver(starts)
        self._check_absorbed(snapshot, starts)
        if effects and recorded and not calls.keys() & recorded.keys():
            self._find(6, "the effects log knows none of its recorded calls: is it another history's?")
        return self._problems

    def _find(self, promise: int, problem: str) -> None:
        self._problems.append((promise, problem))

    def _count_in_flight(
        self,
        calls: Mapping[str, Sequence[_Run]],
        snapshot: StoreSnapshot,
        recorded: Collection[str],
        newly: Collection[str],
    ) -> None:
        """Count the runs that interrupted processes did not record: at most what a document runs at once."""
        lost: Counter[tuple[str, str]] = Counter()
        for key, runs in calls.items():
            for index, run in enumerate(runs):
                document_id = run.tries[0].document_id
                again = index < len(runs) - 1
                retried = again and run.failed and snapshot.failures(document_id) > 0
                if run.process in newly and (again or key not in recorded) and not retried:
                    lost[(run.process, document_id)] += 1
        self.in_flight += lost.total()
        for (process, document_id), count in lost.items():
            if self._calls_at_once is not None and count > self._calls_at_once:
                self._find(
                    7,
                    f"{count} activities of document {document_id!r} were lost with {process!r}; it runs "
                    f"{self._calls_at_once} at once: some had ended, were not recorded, and others begun",
                )

    def _check_tries(self, runs: Sequence[_Run]) -> None:
        for run in runs:
            first = run.tries[0]
            numbers = [effect.attempt for effect in run.tries]
            limit = self._max_attempts.get(first.activity, len(numbers))
            if numbers != list(range(1, len(numbers) + 1)) or len(numbers) > limit:
                self._find(7, f"{call_of(first)} has the tries {numbers}, of at most {limit}")

    def _check_late_tries(self, runs: Sequence[_Run]) -> None:
        """Check that a process that stood still tries nothing again that another one has begun meanwhile."""
        for run in runs:
            for effect in run.tries[1:]:
                if any(run.began < other.began < effect.at and other.process != run.process for other in runs):
                    self._find(
                        19,
                        f"try {effect.attempt} of {call_of(effect)} began in {run.process!r}, whose lease had run out, "
                        "when another process had taken over",
                    )

    def _check_repetitions(self, runs: Sequence[_Run], snapshot: StoreSnapshot, as_of: float) -> None:
        faults = self._faults
        for before, run in pairwise(runs):
            if run.began > as_of:
                break
            first = run.tries[0]
            # A failure that ended its document's attempt is forgotten, so that the next one tries again.
            forgotten = snapshot.failures(first.document_id) > 0
            if before.failed and (forgotten or before.process in faults.left):
                self.retried += 1
            elif before.process in faults.interrupted | faults.fenced:
                self.repeated += 1
            elif run.process in faults.fenced:
                self._find(
                    19,
                    f"{call_of(first)} began in {run.process!r}, whose lease had run out, although nothing interrupted "
                    f"its run in {before.process!r}",
                )
            else:
                self._find(
                    7,
                    f"{call_of(first)} ran again in {run.process!r}, although nothing interrupted its run in "
                    f"{before.process!r}",
                )

    def _check_recorded(
        self, key: str, runs: Sequence[_Run], checkpoint: CheckpointRecord | None, as_of: float
    ) -> None:
        if checkpoint is None:
            # Not yet; or a failure that ended its document's attempt was forgotten.
            self._recorded_with.pop(key, None)
            return
        call = call_of(runs[0].tries[0])
        succeeded = checkpoint.kind == "succeeded"
        # One that began later is either the one that was recorded after all, or not judged yet.
        counted = [
            run
            for run in runs
            if run.process not in self._faults.fenced
            and (run.began <= as_of or (run.returned if succeeded else run.raised))
        ]
        digest = blake2b(checkpoint.payload, digest_size=16).digest()
        seen = self._recorded_with.get(key, (digest, len(counted)))
        if seen[0] == digest and len(counted) > seen[1]:
            self._find(6, f"{call} ran again in {runs[-1].process!r}, although it was recorded")
        self._recorded_with[key] = (digest, len(counted))
        ended = {name for run in runs for name in (run.returned if succeeded else run.raised)}
        if not ended:
            self._find(6, f"{call} is recorded as {checkpoint.kind}, and never came to that")
        source = None if self._run_of is None else self._run_of(checkpoint)
        if source is not None and source not in ended:
            self._find(4, f"{call} is recorded as from {source}, which never came to that")
        elif source is not None and _ran_after(source, runs, self._faults.fenced, as_of):
            self._find(6, f"{call} is recorded as from {source}, and ran again after that")

    def _check_resolver(self, starts: Sequence[Effect]) -> None:
        resolving = False
        for effect in starts:
            if effect.document_id == RESOLVER_DOCUMENT_ID:
                resolving = True
            elif resolving:
                self._find(8, f"{call_of(effect)} began after the resolver had begun")

    def _check_absorbed(self, snapshot: StoreSnapshot, starts: Sequence[Effect]) -> None:
        """Check that nothing begins after the run's end; a cancel, which is noticed later, is the matter of 12."""
        if not snapshot.record.ended or snapshot.record.state == "cancelled":
            return
        if self._starts_when_ended is None:
            self._starts_when_ended = len(starts)
        for effect in starts[self._starts_when_ended :]:
            self._find(5, f"{call_of(effect)} began in {effect.process!r} after the run had ended")


def call_of(effect: Effect) -> str:
    """Name a call, for messages."""
    where = f"document {effect.document_id!r}" if effect.document_id else "the resolver"
    return f"activity {effect.activity!r} of {where}"


def _calls(effects: Iterable[Effect]) -> dict[str, list[_Run]]:
    """Group the effects by call and run, in the order in which the runs began."""
    calls: dict[str, list[_Run]] = {}
    run_of: dict[str, _Run] = {}
    for effect in effects:
        runs = calls.setdefault(effect.key, [])
        match effect.phase:
            case "start":
                # Of a process that stood still, the next attempt may come when another one has begun the call anew.
                mine = [run for run in runs if run.process == effect.process]
                if effect.attempt == 1 or not mine:
                    mine.append(_Run(effect.process, [], [], []))
                    runs.append(mine[-1])
                mine[-1].tries.append(effect)
                run_of[effect.run] = mine[-1]
            case "end":
                run_of[effect.run].returned.append(effect.run)
            case "error":
                run_of[effect.run].raised.append(effect.run)
    return calls


def _ran_after(source: str, runs: Sequence[_Run], fenced: Collection[str], as_of: float) -> bool:
    place = next(index for index, run in enumerate(runs) if source in (*run.returned, *run.raised))
    later = [run for run in runs[place + 1 :] if run.process not in fenced and run.began <= as_of]
    if runs[place].process in fenced:
        # Its result may have come late, when another process had begun the call: runs whose failures were forgotten
        # leave room for it, and one may have been under way.
        later = [run for run in later if not run.failed][1:]
    return bool(later)


def _idempotency_key(batch_id: str, document_id: str, key: str) -> str:
    """Return the key as `current_activity().idempotency_key` has it."""
    return blake2b("\0".join((batch_id, document_id, key)).encode(), digest_size=16).hexdigest()
