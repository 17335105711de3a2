"""Abandoned submissions: batches that were left half loaded by submitters that are dead are removed."""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import suppress
from typing import Final

from durable_batches.clock import Clock
from durable_batches.errors import BatchNotFoundError, StoreUnavailableError
from durable_batches.lifecycle.commands import Discard
from durable_batches.lifecycle.records import BatchRecord, Micros
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.protocol import FindsAbandoned, Store

__all__ = ["AbandonedSubmissions"]

_log = logging.getLogger("durable_batches")

_FIRST_SECONDS: Final = 5.0
"""From a session's begin to its first look; one that only submits has ended by then."""

_PAUSE_SECONDS: Final = 600.0

_LEAST_AGE: Final[Micros] = 3_600_000_000
"""Of a batch that is removed: its submitter may be alive, and only without its lease, or not at that moment."""

_MOST: Final = 20
"""Batches that are removed in one look."""


class AbandonedSubmissions:
    """Removes batches that nobody can seal.

    Args:
        store: Where they are; one that is not `FindsAbandoned` keeps them.
        clock: The worker's.
        loading: The batches that are being submitted through this worker.
    """

    def __init__(self, store: Store, clock: Clock, loading: Collection[BatchId]) -> None:
        self._store = store
        self._clock = clock
        self._loading = loading

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        pause = _FIRST_SECONDS
        while True:
            await self._clock.sleep(pause, housekeeping=True)
            pause = _PAUSE_SECONDS
            try:
                await self._look()
            except StoreUnavailableError as error:
                _log.debug("abandoned submissions are not looked for: %s", error)
            except Exception:  # noqa: BLE001  (the session does not end for it)
                _log.exception("abandoned submissions are not looked for")

    async def _look(self) -> None:
        if not isinstance(self._store, FindsAbandoned):
            return
        created_before = self._clock.now() - _LEAST_AGE
        for batch in await self._store.abandoned(created_before=created_before, limit=_MOST):
            if batch.batch_id not in self._loading:
                await self._remove(batch)

    async def _remove(self, batch: BatchRecord) -> None:
        assert batch.loader is not None
        # Another worker may remove it at this moment, or its id be submitted again.
        with suppress(BatchNotFoundError):
            removed = await self._store.control(batch.batch_id, Discard(batch.loader))
            if removed.applied:
                _log.info(
                    "batch %r removed: its submitter %s is gone, and had not loaded all of its documents",
                    batch.batch_id,
                    batch.loader,
                    extra={"batch_id": batch.batch_id, "worker_id": batch.loader},
                )
