"""Group commit: the facts of all documents in flight, and the next claims, in one transaction at a time.

While a commit is under way, facts gather for the next one; no timer waits for more of them. Commits are numbered, so
that one whose reply was lost can be repeated without being applied twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from enum import Enum, auto
from functools import partial
from itertools import groupby
from typing import Final, TypeAlias

from durable_batches.clock import Clock, Timer
from durable_batches.errors import (
    CommitUnknownError,
    FactRejectedError,
    StoreLockedError,
    StoreUnavailableError,
    WorkerFencedError,
)
from durable_batches.lifecycle.facts import (
    ActivityCompleted,
    ActivityFailed,
    ExecutionFailed,
    ExecutionSucceeded,
    Fact,
    LateResult,
)
from durable_batches.lifecycle.records import ClaimRequest, Committed, Refusal, WorkerId
from durable_batches.lifecycle.states import BatchId
from durable_batches.outage import Backoff, Outages, ride_out
from durable_batches.stores.protocol import Store
from durable_batches.worker.reporting import Reporting
from durable_batches.worker.signals import JournalSignals

__all__ = ["Journal", "JournalPhase"]

_log = logging.getLogger("durable_batches")

_MOST_FACTS: Final = 1_000
"""Facts in one transaction at most: enough to amortise a sync, little enough to keep the lock short."""

_MOST_BYTES: Final = 16 * 1024 * 1024
_FIRST_PAUSE: Final = 0.05
_LONGEST_LOCKED_PAUSE: Final = 1.0
_REFUSED_CLAIM_PAUSE: Final = 5.0

_WITH_PAYLOAD: Final = frozenset({ActivityCompleted, ActivityFailed, ExecutionSucceeded, ExecutionFailed, LateResult})


_Entry: TypeAlias = tuple[Fact, "asyncio.Future[Refusal | None] | None"]
"""A fact, and the future of its verdict if a task awaits it."""


class JournalPhase(Enum):
    """What a journal does at the moment."""

    WAITING = auto()
    """For facts, or for something to claim."""
    COMMITTING = auto()
    PAUSING = auto()
    """The store is away, or refuses a claim: the commit is repeated after a pause."""


class Journal:
    """Commits the facts of one session; the only writer of them.

    Args:
        store: Where they are committed.
        worker: The session's id, under which they are committed.
        clock: For the pauses while the store is away.
        outages: Where those are logged.
        claim: Called for each commit with its facts; returns what to claim along with them.
        committed: Called after each commit, before the verdicts of its facts are given.
        renewed: Called after each commit, which renews the lease, with when the store was asked for it (`boot`).
        keep: Called with each result that is not recorded: the lease was lost before.
        signals: Fired for tests.
        reporting: Reports each commit; None: nobody wants to know.
    """

    def __init__(
        self,
        store: Store,
        worker: WorkerId,
        clock: Clock,
        *,
        outages: Outages,
        claim: Callable[[Sequence[Fact]], ClaimRequest | None],
        committed: Callable[[Sequence[Fact], Committed, ClaimRequest | None], None],
        renewed: Callable[[float], object],
        keep: Callable[[ActivityCompleted | LateResult], object],
        signals: JournalSignals,
        reporting: Reporting | None = None,
    ) -> None:
        self._store = store
        self._worker = worker
        self._clock = clock
        self._outages = outages
        self._operation = f"commits of worker {worker}"
        self._claim = claim
        self._committed = committed
        self._renewed = renewed
        self._keep = keep
        self._signals = signals
        self._reporting = reporting
        self._entries: list[_Entry] = []
        self._before_commit: list[Callable[[], None]] = []
        self._in_commit: Sequence[_Entry] = ()
        self._awake = asyncio.Event()
        self._phase = JournalPhase.COMMITTING
        self._is_running = False
        self._closing = False
        self._failed: BaseException | None = None
        self._number = 0
        self._locked: dict[BatchId, Timer] = {}
        self._backoffs: dict[BatchId, Backoff] = {}
        self._loop = asyncio.get_running_loop()

    # ---- handing in ------------------------------------------------------------------------------------------

    def post(self, fact: Fact) -> None:
        """Hand a fact in for the next commit, without waiting for its verdict."""
        self._entries.append((fact, None))
        self._awake.set()

    def record(self, fact: Fact) -> asyncio.Future[Refusal | None]:
        """Hand a fact in; the future is its verdict once the store has committed it (None: applied)."""
        verdict: asyncio.Future[Refusal | None] = self._loop.create_future()
        if self._failed is not None:
            self._keep_result(fact)
            verdict.set_exception(self._failed)
        else:
            self._entries.append((fact, verdict))
            self._awake.set()
        return verdict

    def before_commit(self, callback: Callable[[], None]) -> None:
        """Call back just before the next commit is put together, for a fact that another one may supersede."""
        self._before_commit.append(callback)
        self._awake.set()

    def wake(self) -> None:
        """Make a commit even without a fact: there may be something to claim."""
        self._awake.set()

    def close(self) -> None:
        """Commit the facts that are there, and end."""
        self._closing = True
        self._awake.set()

    @property
    def phase(self) -> JournalPhase:
        """What it does now."""
        if self._phase is JournalPhase.WAITING and self._awake.is_set():
            return JournalPhase.COMMITTING
        return self._phase

    # ---- committing ------------------------------------------------------------------------------------------

    async def commit_alone(self, facts: Sequence[Fact]) -> list[Refusal | None]:
        """Commit facts before `run`, with nothing claimed along with them; return the verdicts there are.

        Facts of batches that are locked, or that the database refuses, have none.

        Raises:
            StoreUnavailableError: The store is away; it is not waited for.
            WorkerFencedError: The worker was expired.
        """
        verdicts = [self.record(fact) for fact in facts]
        while entries := self._take():
            await self._commit(entries, [fact for fact, _ in entries], None)
        return [verdict.result() for verdict in verdicts if verdict.done() and verdict.exception() is None]

    async def run(self) -> None:
        """Commit until closed.

        Raises:
            WorkerFencedError: The worker was expired; those who await a verdict get this, too.
        """
        self._is_running = True
        try:
            await self._commit_until_closed()
            # What is reported from here on, by a thread that was left behind, comes too late.
            self._fail(WorkerFencedError(self._worker))
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            for timer in self._locked.values():
                timer.cancel()

    async def _commit_until_closed(self) -> None:
        while True:
            if not self._awake.is_set():
                self._phase = JournalPhase.WAITING
                self._signals.waiting.fire(self._number)
                await self._awake.wait()
                self._phase = JournalPhase.COMMITTING
            # One turn for those whose facts were just committed: what they report next goes along.
            await asyncio.sleep(0)
            self._awake.clear()
            entries = self._in_commit = self._take()
            facts = [fact for fact, _ in entries]
            request = self._claim(facts)
            if entries or request is not None:
                await self._commit(entries, facts, request)
                self._in_commit = ()
            elif self._closing and not self._entries:
                return
            if (self._closing and not self._entries) or self._is_any_ready():
                self._awake.set()

    def _take(self) -> list[_Entry]:
        """Take the facts that have gathered, up to the bounds of one transaction."""
        callbacks, self._before_commit = self._before_commit, []
        for callback in callbacks:
            callback()
        ready, waiting = self._entries, list[_Entry]()
        if self._locked:
            ready = [entry for entry in self._entries if entry[0].batch_id not in self._locked]
            waiting = [entry for entry in self._entries if entry[0].batch_id in self._locked]
        size, count = 0, 0
        for fact, _ in ready[:_MOST_FACTS]:
            if type(fact) in _WITH_PAYLOAD:
                size += _size(fact)
                if count and size > _MOST_BYTES:
                    break
            count += 1
        taken, self._entries = ready[:count], waiting + ready[count:]
        return taken

    def _is_any_ready(self) -> bool:
        if not self._locked:
            return bool(self._entries)
        return any(entry[0].batch_id not in self._locked for entry in self._entries)

    async def _commit(self, entries: Sequence[_Entry], facts: Sequence[Fact], request: ClaimRequest | None) -> None:
        try:
            committed = await self._write(facts, request)
        except StoreLockedError as error:
            await self._set_aside(entries, request, error)
            return
        except FactRejectedError as error:
            if entries:
                await self._isolate(entries, error)
            else:
                # Not because of a fact: then it would be refused again at once.
                _log.error(
                    "worker %s can claim nothing, next try in %.0f s: %s",
                    self._worker,
                    _REFUSED_CLAIM_PAUSE,
                    error,
                    extra={"worker_id": self._worker, "error_code": error.code},
                )
                await self._pause(_REFUSED_CLAIM_PAUSE)
            if request is not None:
                # What was to be claimed along with them is asked for with the next commit.
                self._awake.set()
            return
        self._committed(facts, committed, request)
        if self._backoffs:
            for fact in facts:
                self._backoffs.pop(fact.batch_id, None)
        refused = committed.refused
        for index, (_, verdict) in enumerate(entries):
            if verdict is not None and not verdict.done():
                verdict.set_result(refused.get(index) if refused else None)
        self._signals.committed.fire(self._number)

    async def _write(self, facts: Sequence[Fact], request: ClaimRequest | None) -> Committed:
        """Make one numbered commit, and report it."""
        if self._reporting is None:
            return await self._commit_numbered(facts, request)
        with self._reporting.commit(self._worker, len(facts), claims=request is not None) as end:
            committed = await self._commit_numbered(facts, request)
            self._reporting.committed(end, committed)
        return committed

    async def _commit_numbered(self, facts: Sequence[Fact], request: ClaimRequest | None) -> Committed:
        """Make one numbered commit, repeated under its number for as long as the store is away.

        Once a reply was lost, it is repeated as it was until one comes: the number stands for these facts, which it may
        have recorded. With others it would be answered all the same, and those be taken for recorded.
        """
        number, asked = self._number + 1, self._clock.boot()
        unknown = False

        def is_waited_for(error: StoreUnavailableError) -> bool:
            nonlocal unknown
            unknown = unknown or isinstance(error, CommitUnknownError)
            return self._is_waited_for(error, made=unknown)

        self._signals.beginning.fire(number)
        committed = await ride_out(
            lambda: self._store.commit(self._worker, number, facts, request),
            self._outages,
            self._operation,
            self._pause,
            backoff=lambda: Backoff(_FIRST_PAUSE),
            passes=is_waited_for,
        )
        self._number = number
        self._renewed(asked)
        return committed

    def _is_waited_for(self, error: StoreUnavailableError, *, made: bool) -> bool:
        """Return whether the whole commit waits: of rows that are locked, only their batches' facts do.

        Args:
            error: Why it has no answer.
            made: Whether it may have been made.
        """
        return self._is_running and (made or not (isinstance(error, StoreLockedError) and error.batch_ids))

    async def _pause(self, seconds: float) -> None:
        self._phase = JournalPhase.PAUSING
        self._signals.pausing.fire(self._number + 1)
        await self._clock.sleep(seconds)
        self._phase = JournalPhase.COMMITTING

    async def _isolate(self, entries: Sequence[_Entry], error: FactRejectedError) -> None:
        """Commit in parts what the database refused as a whole, so that one bad fact holds up no other.

        First a batch a transaction, then a document, then a fact; the one that still fails gets the error.
        """
        if len(entries) == 1:
            fact, verdict = entries[0]
            _log.error(
                "database refused the %s of %s: %s",
                type(fact).__name__,
                _where(fact),
                error,
                extra={"batch_id": fact.batch_id, "position": fact.position, "error_code": error.code},
            )
            error.add_note(f"in {_where(fact)}")
            if verdict is not None and not verdict.done():
                verdict.set_exception(error)
            return
        for group in _split(entries):
            await self._commit(group, [fact for fact, _ in group], None)

    async def _set_aside(
        self, entries: Sequence[_Entry], request: ClaimRequest | None, error: StoreLockedError
    ) -> None:
        """Let the facts of locked batches wait, in their order, and commit everything else."""
        _log.warning(
            "commits of worker %s wait for locked rows: %s",
            self._worker,
            error,
            extra={"worker_id": self._worker, "batch_ids": error.batch_ids, "error_code": error.code},
        )
        locked = {BatchId(batch_id) for batch_id in error.batch_ids}
        self._entries = [*(entry for entry in entries if entry[0].batch_id in locked), *self._entries]
        for batch_id in locked:
            backoff = self._backoffs.setdefault(batch_id, Backoff(_FIRST_PAUSE, _LONGEST_LOCKED_PAUSE))
            self._locked[batch_id] = self._clock.call_later(backoff.pause(), partial(self._retry, batch_id))
        rest = [entry for entry in entries if entry[0].batch_id not in locked]
        if rest or request is not None:
            await self._commit(rest, [fact for fact, _ in rest], request)

    def _retry(self, batch_id: BatchId) -> None:
        self._locked.pop(batch_id, None)
        self._awake.set()

    def _fail(self, error: BaseException) -> None:
        self._failed = error if isinstance(error, WorkerFencedError) else WorkerFencedError(self._worker)
        entries, self._entries = [*self._in_commit, *self._entries], []
        for fact, verdict in entries:
            if verdict is None:
                continue
            if not verdict.done():
                verdict.set_exception(self._failed)
                # Those who would have awaited it may have been cancelled: asyncio is not to complain of that.
                verdict.exception()
                self._keep_result(fact)
            elif verdict.cancelled():
                self._keep_result(fact)

    def _keep_result(self, fact: Fact) -> None:
        if isinstance(fact, ActivityCompleted | LateResult):
            self._keep(fact)


def _split(entries: Sequence[_Entry]) -> list[list[_Entry]]:
    """By batch; within one batch by document; within one document singly. The order of each stays."""
    by_batch = _grouped(entries, lambda entry: entry[0].batch_id)
    if len(by_batch) > 1:
        return by_batch
    by_document = _grouped(entries, lambda entry: entry[0].position)
    return by_document if len(by_document) > 1 else [[entry] for entry in entries]


def _grouped(entries: Sequence[_Entry], key: Callable[[_Entry], str | int]) -> list[list[_Entry]]:
    return [list(group) for _, group in groupby(sorted(entries, key=key), key)]


def _size(fact: Fact) -> int:
    match fact:
        case ActivityCompleted(payload=payload) | ActivityFailed(payload=payload) | LateResult(payload=payload):
            return len(payload)
        case ExecutionSucceeded(outcome=outcome) | ExecutionFailed(outcome=outcome):
            return len(outcome)
        case _:
            return 0


def _where(fact: Fact) -> str:
    return f"batch {fact.batch_id!r}, document at position {fact.position}"
