"""Group commit: the facts of all documents in flight, and the next claims, in one transaction at a time.

While one commit is under way, whatever is reported meanwhile gathers for the next; there is no timer that waits
for more. Commits are numbered, so that one whose reply was lost can be repeated without doing anything twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Final, TypeAlias

from durable_batches.clock import Clock, Timer
from durable_batches.errors import FactRejectedError, StoreLockedError, StoreUnavailableError, WorkerFencedError
from durable_batches.lifecycle.facts import (
    ActivityCompleted,
    ActivityFailed,
    ExecutionFailed,
    ExecutionSucceeded,
    Fact,
)
from durable_batches.lifecycle.records import ClaimRequest, Committed, Refusal, WorkerId
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.protocol import Store
from durable_batches.worker.signals import JournalSignals

__all__ = ["Journal"]

_log = logging.getLogger("durable_batches")

_MOST_FACTS: Final = 1_000
"""Facts in one transaction at most: enough to amortise a sync, little enough to keep the lock short."""

_MOST_BYTES: Final = 16 * 1024 * 1024
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 5.0
_LONGEST_LOCKED_PAUSE: Final = 1.0


_WITH_PAYLOAD: Final = frozenset({ActivityCompleted, ActivityFailed, ExecutionSucceeded, ExecutionFailed})


_Entry: TypeAlias = tuple[Fact, "asyncio.Future[Refusal | None] | None"]
"""A fact, and whom its verdict is awaited by."""


class Journal:
    """The only writer of a worker's facts.

    Args:
        store: Where they go.
        worker: Who reports them.
        clock: For the pauses while the store is away.
        claim: Asked at each commit, with the facts that go into it, what to claim with it.
        committed: Told of each commit, before the facts' own callers are.
        signals: Fired for tests.
    """

    def __init__(
        self,
        store: Store,
        worker: WorkerId,
        clock: Clock,
        *,
        claim: Callable[[Sequence[Fact]], ClaimRequest | None],
        committed: Callable[[Sequence[Fact], Committed, ClaimRequest | None], None],
        signals: JournalSignals,
    ) -> None:
        self._store = store
        self._worker = worker
        self._clock = clock
        self._claim = claim
        self._committed = committed
        self._signals = signals
        self._entries: list[_Entry] = []
        self._reminders: list[Callable[[], None]] = []
        self._in_commit: Sequence[_Entry] = ()
        self._wake = asyncio.Event()
        self._waiting = self._pausing = False
        self._closing = False
        self._failed: BaseException | None = None
        self._number = 0
        self._locked: dict[BatchId, Timer] = {}
        self._pauses: dict[BatchId, float] = {}
        self._loop = asyncio.get_running_loop()

    # ---- handing in ------------------------------------------------------------------------------------------

    def post(self, fact: Fact) -> None:
        """Hand a fact in; it rides on the next commit."""
        self._entries.append((fact, None))
        self._wake.set()

    def record(self, fact: Fact) -> asyncio.Future[Refusal | None]:
        """Hand a fact in; the future is its verdict once the store has committed it (None: applied)."""
        verdict: asyncio.Future[Refusal | None] = self._loop.create_future()
        if self._failed is not None:
            verdict.set_exception(self._failed)
        else:
            self._entries.append((fact, verdict))
            self._wake.set()
        return verdict

    def remind(self, callback: Callable[[], None]) -> None:
        """Call back just before the next commit is put together: whoever has a fact only if nothing supersedes it."""
        self._reminders.append(callback)
        self._wake.set()

    def poke(self) -> None:
        """Have a commit made even without a fact: there may be something to claim."""
        self._wake.set()

    def close(self) -> None:
        """Commit what is there, and end."""
        self._closing = True
        self._wake.set()

    @property
    def idle(self) -> bool:
        """Whether it commits nothing now: there is nothing to commit, or the store is away and it pauses."""
        return self._pausing or (self._waiting and not self._wake.is_set())

    # ---- committing ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Commit until closed.

        Raises:
            WorkerFencedError: The worker was declared dead; whoever waits for a verdict gets this, too.
        """
        try:
            while True:
                if not self._wake.is_set():
                    self._waiting = True
                    self._signals.waiting.fire(self._number)
                    await self._wake.wait()
                    self._waiting = False
                # One turn for those whose facts were just committed: what they report next goes along.
                await asyncio.sleep(0)
                self._wake.clear()
                entries = self._in_commit = self._take()
                facts = [fact for fact, _ in entries]
                request = self._claim(facts)
                if entries or request is not None:
                    await self._commit(entries, facts, request)
                elif self._closing and not self._entries:
                    # What is reported from here on, by a thread that was left behind, comes too late.
                    self._fail(WorkerFencedError(self._worker))
                    return
                if (self._closing and not self._entries) or self._is_any_ready():
                    self._wake.set()
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            for timer in self._locked.values():
                timer.cancel()

    def _take(self) -> list[_Entry]:
        """What has gathered, up to the bounds of one transaction."""
        reminders, self._reminders = self._reminders, []
        for remind in reminders:
            remind()
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
                _log.error("worker %s can claim nothing now: %s", self._worker, error)
                await self._pause(_LONGEST_PAUSE)
            if request is not None:
                # What was to be claimed along with them is asked for with the next commit.
                self._wake.set()
            return
        self._committed(facts, committed, request)
        if self._pauses:
            for fact in facts:
                self._pauses.pop(fact.batch_id, None)
        refused = committed.refused
        for index, (_, verdict) in enumerate(entries):
            if verdict is not None and not verdict.done():
                verdict.set_result(refused.get(index) if refused else None)
        self._signals.committed.fire(self._number)

    async def _write(self, facts: Sequence[Fact], request: ClaimRequest | None) -> Committed:
        """One numbered commit, repeated under its number for as long as the store is away."""
        number = self._number + 1
        pause = _FIRST_PAUSE
        self._signals.beginning.fire(number)
        while True:
            try:
                committed = await self._store.commit(self._worker, number, facts, request)
            except StoreUnavailableError as error:
                if isinstance(error, StoreLockedError) and error.batch_ids:
                    raise
                _log.warning("commit %d of worker %s waits: %s", number, self._worker, error)
                self._signals.pausing.fire(number)
                await self._pause(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                self._number = number
                return committed

    async def _pause(self, seconds: float) -> None:
        self._pausing = True
        await self._clock.sleep(seconds)
        self._pausing = False

    async def _isolate(self, entries: Sequence[_Entry], error: FactRejectedError) -> None:
        """The database refused some of this data: find whose, so that its neighbours are not held up.

        First a batch a transaction, then a document, then a fact; the one that still fails gets the error.
        """
        if len(entries) == 1:
            fact, verdict = entries[0]
            _log.error("a fact of %s was refused: %s", _where(fact), error)
            error.add_note(f"in {_where(fact)}")
            if verdict is not None and not verdict.done():
                verdict.set_exception(error)
            return
        for group in _split(entries):
            await self._commit(group, [fact for fact, _ in group], None)

    async def _set_aside(
        self, entries: Sequence[_Entry], request: ClaimRequest | None, error: StoreLockedError
    ) -> None:
        """Somebody else holds some batches' rows: what is about these waits, in order, and everything else goes on."""
        _log.warning("commits of worker %s wait: %s", self._worker, error)
        locked = {BatchId(batch_id) for batch_id in error.batch_ids}
        self._entries = [*(entry for entry in entries if entry[0].batch_id in locked), *self._entries]
        for batch_id in locked:
            pause = self._pauses.get(batch_id, _FIRST_PAUSE)
            self._pauses[batch_id] = min(pause * 2, _LONGEST_LOCKED_PAUSE)
            self._locked[batch_id] = self._clock.call_later(pause, partial(self._try_again, batch_id))
        rest = [entry for entry in entries if entry[0].batch_id not in locked]
        if rest or request is not None:
            await self._commit(rest, [fact for fact, _ in rest], request)

    def _try_again(self, batch_id: BatchId) -> None:
        self._locked.pop(batch_id, None)
        self._wake.set()

    def _fail(self, error: BaseException) -> None:
        self._failed = error if isinstance(error, WorkerFencedError) else WorkerFencedError(self._worker)
        entries, self._entries = [*self._in_commit, *self._entries], []
        for _, verdict in entries:
            if verdict is not None and not verdict.done():
                verdict.set_exception(self._failed)
                # Whoever would have waited for it may have been cancelled; then nobody need be told.
                verdict.exception()


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
        case ActivityCompleted(payload=payload) | ActivityFailed(payload=payload):
            return len(payload)
        case ExecutionSucceeded(outcome=outcome) | ExecutionFailed(outcome=outcome):
            return len(outcome)
        case _:
            return 0


def _where(fact: Fact) -> str:
    return f"batch {fact.batch_id!r}, document at position {fact.position}"
