"""Late results: what activities came to, and their session could not record any more, until the next session does."""

from __future__ import annotations

import logging
from typing import Final

from durable_batches.lifecycle.facts import ActivityCompleted, LateResult
from durable_batches.lifecycle.records import WorkerId
from durable_batches.lifecycle.states import BatchId

__all__ = ["LateResults"]

_log = logging.getLogger("durable_batches")


class LateResults:
    """Those of one worker, over its sessions.

    Args:
        max_bytes: How much is kept; what does not fit is dropped, and its activities run again.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes: Final = max_bytes
        self._kept: dict[tuple[BatchId, int, str], LateResult] = {}
        self._bytes = 0
        self._dropped = 0

    def keep(self, session: WorkerId, result: ActivityCompleted | LateResult) -> None:
        """Keep a result that this session could not record, unless another one of the same call is kept.

        Args:
            session: The session that made the call, or that was to record an earlier one's result.
            result: The result.
        """
        key = (result.batch_id, result.position, result.key)
        if key in self._kept:
            return
        size = len(result.key) + len(result.payload)
        if self._bytes + size > self._max_bytes:
            self._dropped += 1
            return
        if isinstance(result, ActivityCompleted):
            batch_id, run, position, attempt = result[:4]
            result = LateResult(batch_id, run, position, attempt, session, *result[4:6], *result[7:])
        self._kept[key] = result
        self._bytes += size

    def take(self) -> list[LateResult]:
        """Return what is kept, and keep it no longer."""
        taken = list(self._kept.values())
        self.clear()
        return taken

    def clear(self) -> None:
        """Drop what is kept."""
        self._kept.clear()
        self._bytes = 0

    def log_dropped(self, session: WorkerId) -> None:
        """Log how many results of a session there was no room for, if any, when it has ended."""
        if self._dropped:
            _log.warning(
                "%d results of worker %s dropped, which could not be recorded: %d bytes of such results are kept, of "
                "at most %d; these activities run again",
                self._dropped,
                session,
                self._bytes,
                self._max_bytes,
                extra={
                    "worker_id": session,
                    "results": self._dropped,
                    "kept_bytes": self._bytes,
                    "max_bytes": self._max_bytes,
                },
            )
            self._dropped = 0
