"""Compare the rows of one batch with each other, with its events, and with what was seen before."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from durable_batches.lifecycle.batch import BatchInProgress
from durable_batches.lifecycle.batch_core import decode_core, definition_of
from durable_batches.lifecycle.events import decode_event
from durable_batches.lifecycle.failures import DocumentFailureRecord
from durable_batches.lifecycle.isolation import ISOLATED_CRASHES
from durable_batches.lifecycle.records import RESOLVER_POSITION, BatchRecord, DocumentRecord, ExecutionRecord
from durable_batches.lifecycle.spending import NOTHING_SPENT, amount_of, decode_spends, spending_of
from durable_batches.testing.history.replay import Replay
from durable_batches.testing.history.store_snapshot import StoreSnapshot, effective_status, name_of

__all__ = ["StoredBatch"]


class StoredBatch:
    """The rows of one batch, from check to check. It keeps digests, not payloads."""

    def __init__(self) -> None:
        self._documents: frozenset[str] = frozenset()
        self._log: list[bytes] = []
        self._results: Final[dict[tuple[str, str], bytes]] = {}
        """Of recorded successes, by document and key."""
        self._failures: Final[dict[tuple[str, str], tuple[bytes, int]]] = {}
        """Of recorded failures, and how often their document had failed then: its next attempt deletes some."""
        self._outcomes: Final[dict[str, bytes]] = {}
        self._problems: list[tuple[int, str]] = []

    def check(
        self, snapshot: StoreSnapshot, acknowledged: frozenset[str] | None, *, everyone_left: bool
    ) -> list[tuple[int, str]]:
        """Return what is wrong: the numbers of guarantees, and how they are broken.

        Args:
            snapshot: The batch as it is stored.
            acknowledged: The ids of the documents that `submit` returned for; None: it did not, so far.
            everyone_left: Nothing may be owned.
        """
        self._problems = []
        self._check_documents(snapshot, acknowledged)
        self._check_log(snapshot)
        self._check_checkpoints(snapshot)
        self._check_spending(snapshot)
        self._check_leases(snapshot)
        if everyone_left:
            self._check_nothing_owned(snapshot)
        return self._problems

    def _find(self, promise: int, problem: str) -> None:
        self._problems.append((promise, problem))

    def _check_documents(self, snapshot: StoreSnapshot, acknowledged: frozenset[str] | None) -> None:
        record = snapshot.record
        found = frozenset(snapshot.documents)
        expected = acknowledged or self._documents or found
        if found != expected:
            lost, strange = len(expected - found), len(found - expected)
            self._find(1, f"{lost} of its documents are gone, {strange} are none of its own")
        if record.counts.total != len(found):
            self._find(1, f"its total is {record.counts.total}, of {len(found)} documents stored")
        positions = [document.execution.position for document in snapshot.documents.values()]
        if positions != list(range(len(positions))):
            self._find(1, "its documents' positions have gaps or are out of order")
        self._documents = self._documents or found

    def _check_log(self, snapshot: StoreSnapshot) -> None:
        record, log = snapshot.record, snapshot.log
        if [event.seq for event in log] != list(range(1, record.seq + 1)):
            self._find(9, f"its {len(log)} events are not numbered 1 to {record.seq}")
            return
        digests = [_digest(event.tag.encode(), event.data, str(event.at).encode()) for event in log]
        if digests[: len(self._log)] != self._log:
            self._find(9, "events that were seen before are others now, or gone")
        self._log = digests
        try:
            events = [decode_event(event) for event in log]
        except (LookupError, TypeError, ValueError) as error:
            self._find(9, f"its events cannot be read: {error!r}")
            return
        replay = Replay(definition_of(record))
        for event in events:
            replay.take(event)
        replay.end_of_log()
        for problem in replay.problems:
            promise, _, text = problem.partition(": ")
            self._find(int(promise), text)
        self._compare_record(snapshot, replay)
        for document in snapshot.documents.values():
            self._compare_row(record, replay, document)
        self._compare_resolver(record, replay, snapshot.resolver)

    def _compare_record(self, snapshot: StoreSnapshot, replay: Replay) -> None:
        record = snapshot.record
        try:
            batch = BatchInProgress(record, record.created_at)
        except AssertionError as error:
            self._find(11, str(error))
            return
        for name, stored, told in (
            ("state", record.state, replay.state),
            ("counts", record.counts, replay.counts),
        ):
            if stored != told:
                self._find(11, f"{name}: its row says {stored!r}, its events {told!r}")
        self._check_claimable(snapshot, batch)
        if abs(batch.percentage - replay.percentage) > 0.001:
            told = f"its row says {batch.percentage}, its events {replay.percentage}"
            self._find(11, f"percentage: {told}")

    def _check_claimable(self, snapshot: StoreSnapshot, batch: BatchInProgress) -> None:
        """Check that claims are offered what the counts say, or pass the batch by until something is due."""
        record, slots, pause = snapshot.record, batch.slots, batch.quota_pause
        if record.free == slots:
            return
        if record.free or (record.counts.pending and pause is None):
            self._find(11, f"free slots: its row says {record.free}, its events {slots}")
            return
        due = min((each.due for each in snapshot.executions() if each.due is not None), default=None)
        if due is not None and pause is not None:
            due = max(due, pause["until"])
        if due is not None and (record.next_due is None or record.next_due > due):
            self._find(2, f"claims pass it by until {record.next_due}, and something is due at {due}")

    def _compare_row(self, batch: BatchRecord, replay: Replay, document: DocumentRecord) -> None:
        execution = document.execution
        told = replay.document(execution.document_id)
        status = effective_status(batch, execution)
        expected = "cancelled" if batch.ended and told.unfinished else told.status
        last_failure = told.status == "failed"
        given_up = last_failure and _was_given_up(document)
        if not (execution.crashes <= told.crashes + given_up):
            self._find(
                11,
                f"crashes of {name_of(execution)}: its row says {execution.crashes}, its events at most "
                f"{told.crashes + given_up}",
            )
        for name, stored, wanted in (
            ("status", status, expected),
            ("attempt", execution.attempt, told.attempt),
            ("stage", execution.mark, told.mark),
            ("failures", execution.failures, told.failures + (last_failure and not given_up)),
        ):
            if stored != wanted:
                self._find(
                    11,
                    f"{name} of {name_of(execution)}: its row says {stored!r}, its events {wanted!r}",
                )
        self._check_row(batch, execution)
        self._check_outcome(batch, document)

    def _compare_resolver(self, batch: BatchRecord, replay: Replay, resolver: DocumentRecord | None) -> None:
        if resolver is None:
            if definition_of(batch).resolver:
                self._find(1, "it has lost its resolver's execution")
            return
        execution = resolver.execution
        if execution.attempt != replay.resolver_attempts:
            self._find(
                11,
                f"its resolver's row says attempt {execution.attempt}, its events {replay.resolver_attempts}",
            )
        if (execution.status == "succeeded") != (replay.resolver == "succeeded"):
            self._find(
                8,
                f"its resolver's row says {execution.status!r}, its events {replay.resolver!r}",
            )
        self._check_row(batch, execution)
        self._check_outcome(batch, resolver)

    def _check_row(self, batch: BatchRecord, execution: ExecutionRecord) -> None:
        """Check that a row is owned exactly while it runs, and due while it waits."""
        running = execution.status == "running"
        unready = execution.position == RESOLVER_POSITION and batch.state != "resolving"
        waits_for_clock = execution.status in ("pending", "waiting") and not unready
        if (execution.owner is not None) != running:
            self._find(14, f"{name_of(execution)} is {execution.status}, owned by {execution.owner!r}")
        if not batch.ended and (execution.due is not None) != waits_for_clock:
            self._find(2, f"{name_of(execution)} is {execution.status}, due {execution.due!r}")

    def _check_outcome(self, batch: BatchRecord, document: DocumentRecord) -> None:
        execution, outcome = document.execution, document.outcome
        if execution.status not in ("succeeded", "failed"):
            return
        if outcome is None:
            self._find(1, f"{name_of(execution)} has {execution.status}, and no outcome is stored")
            return
        digest = _digest(execution.status.encode(), outcome)
        if self._outcomes.setdefault(execution.document_id, digest) != digest:
            self._find(3, f"the outcome of {name_of(execution)} is another one now")
        if execution.status == "failed":
            try:
                failure = DocumentFailureRecord.decode(outcome)
            except (TypeError, ValueError) as error:
                self._find(1, f"the failure of {name_of(execution)} cannot be read: {error!r}")
                return
            # Of the first crash nobody can know whose fault it was.
            limit = max(definition_of(batch).config.max_crashes, ISOLATED_CRASHES)
            if failure.error_type == "CrashLoopError" and execution.crashes < limit:
                self._find(
                    5,
                    f"{name_of(execution)} was given up after {execution.crashes} of {limit} crashes",
                )

    def _check_checkpoints(self, snapshot: StoreSnapshot) -> None:
        for identity, checkpoint in snapshot.checkpoints.items():
            digest = _digest(checkpoint.kind.encode(), checkpoint.payload)
            failures = snapshot.failures(identity[0])
            if identity in self._results:
                if self._results[identity] != digest:
                    self._find(3, f"the recorded result of {identity} is another one now")
            elif checkpoint.kind == "succeeded":
                self._results[identity] = digest
            else:
                before = self._failures.get(identity, (digest, failures))
                if before[0] != digest and before[1] == failures:
                    self._find(3, f"the recorded failure of {identity} is another one now")
                self._failures[identity] = (digest, failures)
        for identity in self._results.keys() - snapshot.checkpoints.keys():
            self._find(3, f"the recorded result of {identity} is gone")
        for identity in self._failures.keys() - snapshot.checkpoints.keys():
            if snapshot.failures(identity[0]) == self._failures[identity][1]:
                self._find(3, f"the recorded failure of {identity} is gone")
            del self._failures[identity]

    def _check_spending(self, snapshot: StoreSnapshot) -> None:
        """Check that the batch's sums have at least what its checkpoints say: calls may end without one, too."""
        sums = spending_of(decode_core(snapshot.record.core).get("spent"))
        recorded = NOTHING_SPENT
        for checkpoint in snapshot.checkpoints.values():
            if checkpoint.spent is not None:
                recorded += amount_of(decode_spends(checkpoint.spent))
        if recorded.cost > sums.total.cost or recorded.tokens > sums.total.tokens:
            self._find(17, f"its checkpoints have cost {recorded}, its row says {sums.total}")
        parts = sums.resolver
        for amount in sums.by_stage.values():
            parts += amount
        if parts != sums.total:
            self._find(17, f"its stages and its resolver have spent {parts}, its row says {sums.total}")

    def _check_leases(self, snapshot: StoreSnapshot) -> None:
        for execution in snapshot.executions():
            if execution.owner is not None and execution.owner not in snapshot.alive:
                self._find(
                    14,
                    f"{name_of(execution)} is owned by {execution.owner!r}, who is dead",
                )

    def _check_nothing_owned(self, snapshot: StoreSnapshot) -> None:
        owned = [name_of(execution) for execution in snapshot.executions() if execution.owner is not None]
        if owned:
            self._find(14, f"still owned after everyone left: {', '.join(owned)}")


def _was_given_up(document: DocumentRecord) -> bool:
    """Whether it ended with a crash, which no event of its own tells."""
    try:
        return DocumentFailureRecord.decode(document.outcome or b"").error_type == "CrashLoopError"
    except (TypeError, ValueError):
        return False


def _digest(*parts: bytes) -> bytes:
    return blake2b(b"\0".join(parts), digest_size=16).digest()
