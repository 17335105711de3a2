"""The slots of a session: how many executions it may hold, while some of those that it holds only wait."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress

__all__ = ["OpenSlots"]

_log = logging.getLogger("durable_batches")


class OpenSlots:
    """Counts slots that are lent; see `Slots`. The number of executions that do not only wait is bounded.

    Args:
        capacity: How many slots there are.
        held: Returns how many executions the session holds.
        wake: Has the session look for work.
    """

    def __init__(self, capacity: int, held: Callable[[], int], wake: Callable[[], None]) -> None:
        self._capacity = capacity
        self._held = held
        self._wake = wake
        self._lent = 0
        self._wanted: deque[asyncio.Future[None]] = deque()
        self._refused = False
        self.asked: int = 0
        """How many executions are being claimed."""

    @property
    def most(self) -> int:
        """How many executions the session may hold now: one whose slot is wanted back gets the next that is open."""
        return self._capacity + self._lent - len(self._wanted)

    def lend(self, *, in_any_case: bool) -> bool:
        """See `Slots.lend`."""
        if self._lent >= self._capacity and not in_any_case:
            if not self._refused:
                self._refused = True
                _log.warning(
                    "more than %d documents wait for retries of their activities: the others hold their slots "
                    "meanwhile, and less runs; shorter delays (RetryLater) help, and so does a greater max_in_flight",
                    self._lent,
                    extra={"lent": self._lent, "capacity": self._capacity},
                )
            return False
        self._lent += 1
        self.give_back()
        if self._is_any_open:
            self._wake()
        return True

    def keep(self) -> None:
        """See `Slots.keep`."""
        self._lent -= 1
        self._refused = False

    async def take_back(self) -> None:
        """See `Slots.take_back`."""
        wanted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted.append(wanted)
        self.give_back()
        try:
            await wanted
        except asyncio.CancelledError:
            if wanted.cancelled():
                with suppress(ValueError):
                    self._wanted.remove(wanted)
            else:
                # It has it, and is stopped at this moment.
                self._lent += 1
            raise

    def give_back(self) -> None:
        """Let those go on that want their slots back, as far as slots are open, in the order in which they asked."""
        while self._wanted and self._is_any_open:
            wanted = self._wanted.popleft()
            if not wanted.done():
                self._lent -= 1
                self._refused = False
                wanted.set_result(None)

    @property
    def _is_any_open(self) -> bool:
        return self._held() + self.asked - self._lent < self._capacity
