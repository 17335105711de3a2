"""A worker's commits: fenced and numbered, its facts, and then its claim, in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from durable_batches.clock import Clock
from durable_batches.errors import WorkerFencedError
from durable_batches.lifecycle.facts import Fact
from durable_batches.lifecycle.planning import checkpoints_to_load, executions_to_load, plan_claims, plan_facts
from durable_batches.lifecycle.records import Claim, ClaimRequest, Committed, Micros, WorkerId
from durable_batches.stores.ownership import Ownership
from durable_batches.stores.protocol import LEVEL
from durable_batches.stores.rows import refusals_as_text, refusals_of
from durable_batches.stores.sqlite import claims, queries
from durable_batches.stores.sqlite.connection import LockWatch, transaction
from durable_batches.stores.sqlite.file import PinnedFile

__all__ = ["Commits"]


class Commits:
    """Made on the thread that writes.

    Args:
        path: The file.
        clock: The time it goes by.
        watch: Takes note of waits for the write lock.
        file: That is written to.
    """

    def __init__(self, path: Path, clock: Clock, watch: LockWatch, file: PinnedFile) -> None:
        self._file: Final = file
        self._path: Final = path
        self._watch: Final = watch
        self._clock: Final = clock
        self._owned: dict[WorkerId, Ownership] = {}

    def forget(self, workers: Iterable[WorkerId]) -> None:
        """Drop what is remembered of these workers, who commit nothing more."""
        for worker in workers:
            self._owned.pop(worker, None)

    def commit(
        self,
        connection: sqlite3.Connection,
        worker: WorkerId,
        number: int,
        facts: Sequence[Fact],
        claim: ClaimRequest | None,
    ) -> Committed:
        """See `Store.commit`."""
        # Taken out: what a commit that fails has made of it is of no use.
        owned = self._owned.pop(worker, None) or Ownership()
        known = owned.as_of(number - 1)
        with transaction(connection, self._path, self._watch, self._file):
            if not self._fence(connection, worker, number):
                return self._committed_before(connection, worker, number, claim)
            now = self._clock.now()
            committed = Committed()
            if facts:
                keys, loaded = queries.load_executions(connection, now, executions_to_load(facts), known)
                late = checkpoints_to_load(facts)
                if late:
                    loaded = loaded._replace(recorded=queries.load_recorded(connection, keys, late))
                writes = plan_facts(loaded, worker, facts, level=LEVEL)
                queries.apply(connection, keys, writes)
                owned.note(worker, loaded.executions, writes)
                committed = Committed(events=writes.events, refused=writes.refused, set_aside=writes.set_aside)
                if writes.refused:
                    connection.execute(
                        "UPDATE worker SET refused = ? WHERE worker_id = ?",
                        (refusals_as_text(number, writes.refused), worker),
                    )
            if claim is not None:
                committed = _claim(connection, worker, number, claim, now, committed)
                owned.claimed(committed.claims)
        owned.number = number
        self._owned[worker] = owned
        return committed

    def _fence(self, connection: sqlite3.Connection, worker: WorkerId, number: int) -> bool:
        """Number the commit and renew the lease, if the worker is alive; False: this number was committed."""
        numbered = connection.execute(
            "UPDATE worker SET commits = ?, lease_until = ? + lease WHERE worker_id = ? AND commits = ?",
            (number, int(self._clock.boot() * 1_000_000), worker, number - 1),
        )
        if numbered.rowcount == 1:
            return True
        row = connection.execute("SELECT commits FROM worker WHERE worker_id = ?", (worker,)).fetchone()
        if row is None or row[0] != number:
            raise WorkerFencedError(worker)
        return False

    def _committed_before(
        self, connection: sqlite3.Connection, worker: WorkerId, number: int, claim: ClaimRequest | None
    ) -> Committed:
        """Answer a number that was committed already: with its refusals, and the claims it made."""
        (text,) = connection.execute("SELECT refused FROM worker WHERE worker_id = ?", (worker,)).fetchone()
        refused = refusals_of(text, number)
        if claim is None:
            return Committed(refused=refused)
        owned = claims.claimed_by(connection, worker, number)
        keys, loaded = queries.load_executions(connection, self._clock.now(), owned)
        executions = [loaded.executions[key] for key in owned]
        made = claims.load_claims(connection, keys, loaded.batches, executions, claim)
        return Committed(refused=refused, claims=made, retry_in=0)


def _claim(
    connection: sqlite3.Connection,
    worker: WorkerId,
    number: int,
    request: ClaimRequest,
    now: Micros,
    committed: Committed,
) -> Committed:
    keys, candidates = claims.load_candidates(connection, now, request)
    events, set_aside = committed.events, committed.set_aside
    made: Sequence[Claim] = ()
    if candidates:
        writes = plan_claims(now, worker, request, candidates, now, level=LEVEL)
        assert len(writes.executions) <= request.limit, "the shares of a claim exceed what was asked for"
        queries.apply(connection, keys, writes, claimed_by_commit=number)
        events = [*events, *writes.events]
        set_aside = {**set_aside, **writes.set_aside}
        batches = {record.batch_id: record for record in writes.batches}
        made = claims.load_claims(connection, keys, batches, writes.executions, request)
    retry_in = claims.next_due(connection, now, request)
    return committed._replace(events=events, claims=made, retry_in=retry_in, set_aside=set_aside)
