"""Times at which the file was locked: nobody could renew a lease then, so that none has run out.

A connection with SQLite's write lock keeps all others from writing: a transaction of the host application that stays
open, a backup, a shell, a process that is stopped in the middle of a commit. Those that wait for the lock notice how
long it was held. For a moment after that, only the leases run out for which that time makes no difference.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from durable_batches.clock import Clock
from durable_batches.lifecycle.records import Micros

__all__ = ["LockOuts"]

_log = logging.getLogger("durable_batches")

_GRACE_SECONDS: Final = 1.0
"""How long those that were locked out have to renew their leases: SQLite looks for the lock ten times a second."""

_SHORTEST_SECONDS: Final = 0.05
"""Shorter ones are what commits of others take."""

_MOST_SECONDS: Final = 1e9

_NEVER: Final = float("inf")


class _LockOut(NamedTuple):
    """A wait for the lock."""

    ended: float
    """When, on the boot clock."""
    seconds: float


class LockOuts:
    """What the transactions of one store have seen of the file's write lock; see `LockWatch`.

    Args:
        path: The file.
        clock: What leases are measured on.
        open_batches: Returns the batches that were submitted in transactions of this process that are still open.
    """

    def __init__(self, path: Path, clock: Clock, open_batches: Callable[[], Sequence[str]]) -> None:
        self._path = path
        self._clock = clock
        self._open_batches = open_batches
        self.patience_seconds: float | None = None
        """How long a transaction waits for the lock; None: as long as the library has it."""
        self._mutex = threading.Lock()
        self._waiting: list[float] = []
        self._logged_since = _NEVER
        """Since when the file is locked, of which the log has a line; `_NEVER`: it has none."""
        self._locked_since = _NEVER
        self._seen: list[_LockOut] = []

    def opened(self) -> None:
        """Take note that the store was not open until now, and knows of no lock that was held meanwhile."""
        with self._mutex:
            self._seen = [_LockOut(self._clock.boot(), _MOST_SECONDS)]

    def asks(self) -> float:
        """See `LockWatch`."""
        asked = self._clock.boot()
        with self._mutex:
            self._waiting.append(asked)
        return asked

    def waits(self, asked: float, *, moved: bool) -> float:
        """See `LockWatch`; the first of those that wait at the same time logs it."""
        now, since, first = asked, _NEVER, False
        with self._mutex:
            if moved:
                now = self._clock.boot()
                self._locked_since = _NEVER
                self._waiting[self._waiting.index(asked)] = now
                since, self._logged_since = self._logged_since, _NEVER
            elif self._logged_since == _NEVER:
                first, self._logged_since = True, min(asked, self._locked_since)
        if moved:
            self._log_end(since, now)
        elif first:
            self._log()
        return now

    def _log_end(self, since: float, now: float) -> None:
        if since != _NEVER:
            _log.warning(
                "the database %s is no longer locked, after %.1f s",
                self._path,
                now - since,
                extra={"database": str(self._path), "locked_seconds": now - since},
            )

    def _log(self) -> None:
        batches = self._open_batches()
        if batches:
            _log.warning(
                "the database %s is locked by the application's transaction in which %s was submitted, and which is "
                "still open: nothing runs until it is committed or rolled back",
                self._path,
                ", ".join(f"batch {batch_id!r}" for batch_id in batches),
                extra={"database": str(self._path), "batch_ids": list(batches)},
            )
        else:
            _log.warning(
                "the database %s is locked by another connection: nothing runs until that ends its transaction",
                self._path,
                extra={"database": str(self._path), "batch_ids": []},
            )

    def has_waited(self, asked: float, *, in_vain: bool) -> None:
        """See `LockWatch`; what waited in vain is part of a time that goes on until one has the lock."""
        now = self._clock.boot()
        with self._mutex:
            self._waiting.remove(asked)
            logged_since = _NEVER
            if not in_vain:
                logged_since, self._logged_since = self._logged_since, _NEVER
            since = min(asked, self._locked_since)
            self._locked_since = since if in_vain else _NEVER
            seconds = now - since
            if seconds >= _SHORTEST_SECONDS:
                # The longest first: a later one that is longer makes those before it superfluous.
                self._seen = [*(seen for seen in self._recent(now) if seen.seconds > seconds), _LockOut(now, seconds)]
        self._log_end(logged_since, now)

    def recent(self) -> Micros:
        """Return for how long the file was locked, in microseconds, if that was a moment ago; 0: it was not."""
        now = self._clock.boot()
        with self._mutex:
            waits = [*(seen.seconds for seen in self._recent(now)), *(now - asked for asked in self._waiting)]
        return int(max(waits, default=0.0) * 1_000_000)

    def _recent(self, now: float) -> list[_LockOut]:
        return [seen for seen in self._seen if now < seen.ended + _GRACE_SECONDS]
