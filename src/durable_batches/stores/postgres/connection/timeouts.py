"""How long the transactions of this process may take and wait, by the leases of its workers."""

from __future__ import annotations

import asyncio
from typing import Final

from durable_batches.lifecycle.records import Micros, WorkerId
from durable_batches.stores.postgres.connection.connection import Database, Session, millis

__all__ = ["PARTS_OF_A_LEASE", "Limits"]

PARTS_OF_A_LEASE: Final = 3
"""A lease is renewed after one of these; and who is stuck in a transaction for one is ended."""
_DEFAULT_LEASE_SECONDS: Final = 30.0

_WARY_SECONDS: Final = 5.0
_WARY_LOCK_SECONDS: Final = 0.05
"""After a commit that has waited for a lock in vain: for so long, others wait for a lock only so long."""

_SINCE_TRANSACTION_TIMEOUT: Final = 17


class Limits:
    """Lives on the store's loop, but for `note` and `forget`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._leases: dict[WorkerId, float] = {}
        self._wary_until = 0.0

    def note(self, worker: WorkerId, lease: Micros) -> None:
        """A worker of this process, and its lease."""
        self._leases[worker] = lease / 1_000_000

    def forget(self, worker: WorkerId) -> None:
        """It is gone."""
        self._leases.pop(worker, None)

    def between_beats(self, worker: WorkerId) -> float:
        """Seconds: three beats a lease."""
        return self._lease(worker) / PARTS_OF_A_LEASE

    def longest_beat(self, worker: WorkerId) -> float:
        """Seconds that renewing a lease may take, with all that belongs to it: the last try ends before the lease."""
        return self._lease(worker) / (PARTS_OF_A_LEASE + 1)

    def begin(self, session: Session, worker: WorkerId | None = None) -> str:
        """What begins a transaction: of this worker, or of any.

        A process that is stopped in the middle of one must not hold others up for longer than its lease.
        """
        lease = self._lease(worker)
        longest = lease / PARTS_OF_A_LEASE
        settings: list[str] = []
        if worker is not None and session.connection.get_server_version().major >= _SINCE_TRANSACTION_TIMEOUT:
            settings.append(f"transaction_timeout = {millis(lease)}")
        if longest < self._database.statement_seconds:
            settings.append(f"idle_in_transaction_session_timeout = {millis(longest)}")
        if worker is not None and (locks := self.lock_timeout(worker)) is not None:
            settings.append(f"lock_timeout = {locks}")
        return "; SET LOCAL ".join(["BEGIN", *settings])

    def lock_timeout(self, worker: WorkerId) -> str | None:
        """How long this worker's commits wait for a lock, as the server takes it; None: as everything else.

        A commit holds the row of the worker, whose lease cannot be renewed meanwhile.
        """
        seconds = _WARY_LOCK_SECONDS if self.is_wary() else self.between_beats(worker)
        return millis(seconds) if seconds < self._database.lock_seconds else None

    def _lease(self, worker: WorkerId | None) -> float:
        """Seconds: of this worker, or the shortest of any."""
        leases = self._leases.values() if worker is None else [self._leases.get(worker, _DEFAULT_LEASE_SECONDS)]
        return min(leases, default=_DEFAULT_LEASE_SECONDS)

    def become_wary(self) -> None:
        """A commit has waited for a lock in vain: for some time others need not wait as long."""
        self._wary_until = asyncio.get_running_loop().time() + _WARY_SECONDS

    def is_wary(self) -> bool:
        """Whether that was just now."""
        return asyncio.get_running_loop().time() < self._wary_until
