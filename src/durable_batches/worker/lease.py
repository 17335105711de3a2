"""What a session knows of its lease in the store: whether it may begin work, and how long it spares other workers."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from typing import Final
from weakref import WeakSet

from durable_batches.clock import Clock
from durable_batches.lifecycle.leases import own_seconds
from durable_batches.tasks import tell_loop

__all__ = ["Lease"]


_leases: Final = WeakSet["Lease"]()
"""Those of this process."""


class Lease:
    """The lease of one session. Any thread may renew it, and ask whether it holds; one event loop waits for it.

    Args:
        clock: The worker's.
        length: How long the lease is.
    """

    def __init__(self, clock: Clock, length: timedelta) -> None:
        self._clock = clock
        self._seconds: Final = own_seconds(length.total_seconds())
        self.until: float = float("-inf")
        """See `HeldLease`."""
        self.is_inherited: bool = False
        """See `HeldLease`."""
        self._waiting: list[asyncio.Future[None]] = []
        _leases.add(self)

    def renewed(self, asked: float) -> None:
        """Take note that the store has renewed it.

        Args:
            asked: When the store was asked to, on the boot clock: the lease cannot end before that and its length.
        """
        if self.is_inherited:
            # A child whose event loop goes on after a fork; what its parent runs must not begin there as well.
            return
        self.until = max(self.until, asked + self._seconds)
        waiting = self._waiting[:1]
        if waiting:
            tell_loop(waiting[0].get_loop(), self._wake)

    @property
    def age(self) -> float:
        """The time since the store was asked for the latest renewal, in seconds; infinite before the first one."""
        return self._clock.boot() - self.until + self._seconds

    def holds(self) -> bool:
        """Return whether the lease cannot have run out in the store."""
        return self._clock.boot() < self.until

    async def regained(self) -> None:
        """Wait until it holds."""
        while not self.holds():
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            try:
                # Again, for a renewal on another thread that has seen nobody wait.
                if not self.holds():
                    await waiting
            finally:
                if waiting in self._waiting:
                    self._waiting.remove(waiting)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


def _end_in_child() -> None:
    for lease in list(_leases):
        lease.is_inherited, lease.until = True, float("-inf")


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_end_in_child)
