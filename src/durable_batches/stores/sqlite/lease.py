"""Renew the lease of a worker."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from durable_batches.clock import Clock
from durable_batches.lifecycle.records import WorkerId
from durable_batches.stores.sqlite.connection import LockWatch, connect, transaction

__all__ = ["LeaseRenewer"]


class LeaseRenewer:
    """Renews one worker's lease, on a connection of its own and on its caller's thread; see `Heart`."""

    def __init__(self, path: Path, clock: Clock, worker: WorkerId, watch: LockWatch, settings: Sequence[str]) -> None:
        self._path = path
        self._clock = clock
        self._worker = worker
        self._watch = watch
        self._settings = settings
        self._connection: sqlite3.Connection | None = None

    def beat(self) -> bool:
        """See `Heart.beat`."""
        if self._connection is None:
            self._connection = connect(self._path, settings=self._settings)
        with transaction(self._connection, self._path, self._watch):
            renewed = self._connection.execute(
                "UPDATE worker SET lease_until = ? + lease WHERE worker_id = ?",
                (int(self._clock.boot() * 1_000_000), self._worker),
            )
            return renewed.rowcount == 1

    def close(self) -> None:
        """See `Heart.close`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
