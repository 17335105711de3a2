"""The commit cache: what a worker's last commit left, by which the next one is planned before anything is read.

Other workers cannot have changed what the worker owns (see `durable_batches.stores.ownership`). They can change a
batch's row; but each change makes a new version of it, and the server keeps the number of the transaction that made it
(`xmin`). So a commit that is planned by the cache is sound if the rows that it locks still have these versions.
"""

from __future__ import annotations

from typing import Final

from durable_batches.clock import SystemClock
from durable_batches.lifecycle.records import Micros
from durable_batches.stores.ownership import Ownership
from durable_batches.stores.postgres.commit.lock import Locked

__all__ = ["CommitCache"]

_MOST_BATCHES: Final = 256
_CLOCK_SECONDS: Final = 5.0
"""How long the server's time is computed from when it last said it; no clock drifts by a millisecond in that time."""
_SHARED_SECONDS: Final = 1.0
"""For how long nothing is taken for current where other workers were seen at the same batches."""

_seconds: Final = SystemClock().boot
"""Also of a machine that was suspended meanwhile."""


class CommitCache:
    """One worker's; used on the store's loop."""

    __slots__ = ("_clock", "_not_before", "batches", "owned")

    def __init__(self) -> None:
        self.owned: Final = Ownership()
        self.batches: Locked = Locked()
        """The batches that the last commits were about, as they left them."""
        self._clock: tuple[Micros, float] | None = None
        self._not_before = 0.0

    def may_be_current(self, number: int) -> bool:
        """Whether it is worth trying: this was the last commit, and no other worker was seen at the same batches."""
        return self.owned.number == number and _seconds() >= self._not_before

    def remember(self, locked: Locked) -> None:
        """Take over the batches as a commit has left them."""
        self.batches.update(locked)
        if len(self.batches.keys) > _MOST_BATCHES:
            self.batches = locked

    def invalidate(self) -> None:
        """Drop the batches, since a row had another version: other workers change them, and will again."""
        self._not_before = _seconds() + _SHARED_SECONDS
        self.batches = Locked()

    def note_time(self, now: Micros) -> None:
        """Note the server's time, as it has just said."""
        self._clock = now, _seconds()

    def server_time(self) -> Micros | None:
        """Compute the server's time from when it last said it; None: that was too long ago."""
        if self._clock is None:
            return None
        now, seen = self._clock
        passed = _seconds() - seen
        return now + int(passed * 1_000_000) if passed < _CLOCK_SECONDS else None
