"""Renew the lease of a worker."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from durable_batches.clock import Clock
from durable_batches.lifecycle.records import WorkerId
from durable_batches.stores.columns import workflows_as_text
from durable_batches.stores.sqlite.connection import LockWatch, connect, transaction
from durable_batches.stores.sqlite.file import PinnedFile

__all__ = ["LeaseRenewer"]

_RENEW: Final = (
    "UPDATE worker SET lease_until = ? + lease, note = coalesce(?, note), workflows = coalesce(?, workflows) "
    "WHERE worker_id = ?"
)


class LeaseRenewer:
    """Renews one worker's lease, on a connection of its own and on its caller's thread; see `NotedHeart`."""

    def __init__(
        self,
        path: Path,
        clock: Clock,
        worker: WorkerId,
        watch: LockWatch,
        settings: Sequence[str],
        file: PinnedFile,
    ) -> None:
        self._path = path
        self._file = file
        self._clock = clock
        self._worker = worker
        self._watch = watch
        self._settings = settings
        self._connection: sqlite3.Connection | None = None

    def beat(self) -> bool:
        """See `Heart.beat`."""
        return self._renew(None, None)

    def tell(self, note: str, workflows: Collection[tuple[str, str]]) -> bool:
        """See `NotedHeart.tell`."""
        return self._renew(note, workflows_as_text(workflows))

    def _renew(self, note: str | None, workflows: str | None) -> bool:
        if self._connection is None:
            # Where the file is gone, a new one is no place for a lease.
            self._file.check()
            self._connection = connect(self._path, create=False, settings=self._settings)
        with transaction(self._connection, self._path, self._watch, self._file):
            boot = int(self._clock.boot() * 1_000_000)
            return self._connection.execute(_RENEW, (boot, note, workflows, self._worker)).rowcount == 1

    def close(self) -> None:
        """See `Heart.close`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
