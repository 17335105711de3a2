"""Timeouts of this process's transactions and locks, by the leases of its workers."""

from __future__ import annotations

import asyncio
from typing import Final

from durable_batches.lifecycle.records import Micros, WorkerId
from durable_batches.stores.postgres.connection.database import Database, millis
from durable_batches.stores.postgres.connection.session import Session

__all__ = ["RENEWALS_A_LEASE", "Timeouts"]

RENEWALS_A_LEASE: Final = 3
"""How often a lease is renewed; a session that is stuck in a transaction for one of these parts is ended."""
_DEFAULT_LEASE_SECONDS: Final = 30.0

_CONTENDED_SECONDS: Final = 5.0
_CONTENDED_LOCK_SECONDS: Final = 0.05
"""After a commit has waited for a lock in vain: for how long other commits wait less, and how long those wait."""

_SINCE_TRANSACTION_TIMEOUT: Final = 17


class Timeouts:
    """Used on the store's loop, but for `register` and `deregister`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._leases: dict[WorkerId, float] = {}
        self._contended_until = 0.0

    def register(self, worker: WorkerId, lease: Micros) -> None:
        """Take a worker of this process, and its lease, into account."""
        self._leases[worker] = lease / 1_000_000

    def deregister(self, worker: WorkerId) -> None:
        """Take a worker no more into account."""
        self._leases.pop(worker, None)

    def renewal_seconds(self, worker: WorkerId) -> float:
        """Compute how long it is from one renewal of a lease to the next."""
        return self._lease(worker) / RENEWALS_A_LEASE

    def longest_renewal_seconds(self, worker: WorkerId) -> float:
        """Compute how long a renewal may take, all told: the last one ends before the lease does."""
        return self._lease(worker) / (RENEWALS_A_LEASE + 1)

    def begin(self, session: Session, worker: WorkerId | None = None) -> str:
        """Write what begins a transaction: of this worker, or of any.

        A process that is stopped in the middle of one must not hold others up for longer than its lease.
        """
        lease = self._lease(worker)
        longest = lease / RENEWALS_A_LEASE
        settings: list[str] = []
        if worker is not None and session.connection.get_server_version().major >= _SINCE_TRANSACTION_TIMEOUT:
            settings.append(f"transaction_timeout = {millis(lease)}")
        if longest < self._database.statement_seconds:
            settings.append(f"idle_in_transaction_session_timeout = {millis(longest)}")
        if worker is not None and (locks := self.lock_timeout(worker)) is not None:
            settings.append(f"lock_timeout = {locks}")
        return "; SET LOCAL ".join(["BEGIN", *settings])

    def lock_timeout(self, worker: WorkerId) -> str | None:
        """Compute how long this worker's commits wait for a lock, as the server takes it; None: as everything else.

        A commit holds the row of the worker, whose lease cannot be renewed meanwhile.
        """
        seconds = _CONTENDED_LOCK_SECONDS if self.is_contended() else self.renewal_seconds(worker)
        return millis(seconds) if seconds < self._database.lock_seconds else None

    def _lease(self, worker: WorkerId | None) -> float:
        """Find the lease in seconds: this worker's, or the shortest of any."""
        leases = self._leases.values() if worker is None else [self._leases.get(worker, _DEFAULT_LEASE_SECONDS)]
        return min(leases, default=_DEFAULT_LEASE_SECONDS)

    def note_contention(self) -> None:
        """Note that a commit has waited for a lock in vain: for some time, others do not wait as long."""
        self._contended_until = asyncio.get_running_loop().time() + _CONTENDED_SECONDS

    def is_contended(self) -> bool:
        """Whether a commit has waited for a lock in vain just now."""
        return asyncio.get_running_loop().time() < self._contended_until
