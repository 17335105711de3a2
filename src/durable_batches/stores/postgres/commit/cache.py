"""What a worker's last commit left behind, so that the next one can be planned before anything is read.

What the worker owns cannot have been changed by others (see `durable_batches.stores.ownership`). A batch's row can; but
each change makes a new version of it, and the server keeps the number of the transaction that made it (`xmin`). So a
commit that was planned by what is remembered here is sound if the rows that it locks still have these versions.
"""

from __future__ import annotations

from typing import Final

from durable_batches.clock import SystemClock
from durable_batches.lifecycle.records import Micros
from durable_batches.stores.ownership import Ownership
from durable_batches.stores.postgres.commit.lock import Locked

__all__ = ["Memory"]

_MOST_BATCHES: Final = 256
_CLOCK_SECONDS: Final = 5.0
"""How long the server's clock is reckoned from when it was last seen; no clock goes astray by a millisecond in it."""
_SHARED_SECONDS: Final = 1.0
"""Where others work on the same batches, so long nothing is taken for current."""

_seconds: Final = SystemClock().boot
"""Also of a machine that was suspended meanwhile."""


class Memory:
    """Of one worker; lives on the store's loop."""

    __slots__ = ("_clock", "_doubted_until", "batches", "owned")

    def __init__(self) -> None:
        self.owned: Final = Ownership()
        self.batches: Locked = Locked()
        """The batches that the last commits were about, as they left them."""
        self._clock: tuple[Micros, float] | None = None
        self._doubted_until = 0.0

    def may_be_current(self, number: int) -> bool:
        """Whether it is worth trying: this was the last commit, and others were not seen at the same batches."""
        return self.owned.number == number and _seconds() >= self._doubted_until

    def remember(self, locked: Locked) -> None:
        """A commit has left these batches so."""
        self.batches.update(locked)
        if len(self.batches.keys) > _MOST_BATCHES:
            self.batches = locked

    def was_not_current(self) -> None:
        """A batch has another version, or the worker another number: others are at work."""
        self._doubted_until = _seconds() + _SHARED_SECONDS
        self.batches = Locked()

    def saw_clock(self, now: Micros) -> None:
        """The server says that it is now this time."""
        self._clock = now, _seconds()

    def servers_clock(self) -> Micros | None:
        """The server's time, reckoned from when it was last seen; never before that. None: that was long ago."""
        if self._clock is None:
            return None
        now, seen = self._clock
        passed = _seconds() - seen
        return now + int(passed * 1_000_000) if passed < _CLOCK_SECONDS else None
