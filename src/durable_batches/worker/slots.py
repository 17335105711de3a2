"""The slots of a session: how many executions it may hold, while some of those that it holds only wait."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

__all__ = ["OpenSlots"]

_log = logging.getLogger("durable_batches")

_MOST_LENT: Final = 16
"""Times the slots there are. What waits holds memory."""


class OpenSlots:
    """Counts slots that are lent; see `Slots`. The number of executions that do not only wait is bounded.

    Args:
        capacity: How many slots there are.
        lends_more: Whether more slots are lent than there are: to batches few of whose documents have lent theirs.
        held: Returns how many executions the session holds.
        wake: Has the session look for work.
    """

    def __init__(
        self, capacity: int, held: Callable[[], int], wake: Callable[[], None], *, lends_more: bool = False
    ) -> None:
        self._capacity = capacity
        self._most_lent = capacity * (_MOST_LENT if lends_more else 1)
        self._held = held
        self._wake = wake
        self._lent = 0
        self._surplus = 0
        """How many of those that are lent are beyond as many as there are."""
        self._wanted: deque[asyncio.Future[None]] = deque()
        self._refused = False
        self.asked: int = 0
        """How many executions are being claimed."""

    @property
    def most(self) -> int:
        """How many executions the session may hold now: one whose slot is wanted back gets the next that is open."""
        return self._capacity + self._lent - self._surplus - len(self._wanted)

    @property
    def most_with_others(self) -> int:
        """How many it may hold now, if it takes the rest from batches few of whose documents have lent their slots."""
        return self._capacity + self._lent - len(self._wanted)

    def lend(self, *, in_any_case: bool) -> bool:
        """See `Slots.lend`."""
        if self._lent >= self._most_lent and not in_any_case:
            if not self._refused:
                self._refused = True
                _log.warning(
                    "more than %d documents wait, for permits or for retries of their activities: the others hold "
                    "their slots meanwhile, and less runs; shorter delays (RetryLater) help, and so does a greater "
                    "max_in_flight",
                    self._lent,
                    extra={"lent": self._lent, "capacity": self._capacity},
                )
            return False
        if self._lent >= self._capacity and not in_any_case:
            self._surplus += 1
        self._lent += 1
        self.give_back()
        if self._is_any_open:
            self._wake()
        return True

    def take_open(self) -> bool:
        """See `Slots.take_open`."""
        if self._wanted or not self._is_any_open:
            return False
        self._has_back()
        return True

    def keep(self) -> None:
        """See `Slots.keep`."""
        self._has_back()

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
                # It has it, and is stopped at this moment. Lent again, until `keep` counts it a second time.
                self._lent += 1
                self._surplus += 1
            raise

    def give_back(self) -> None:
        """Let those go on that want their slots back, as far as slots are open, in the order in which they asked."""
        while self._wanted and self._is_any_open:
            wanted = self._wanted.popleft()
            if not wanted.done():
                self._has_back()
                wanted.set_result(None)

    def _has_back(self) -> None:
        self._lent -= 1
        self._surplus = max(self._surplus - 1, 0)
        self._refused = False

    @property
    def _is_any_open(self) -> bool:
        return self._held() + self.asked - self._lent < self._capacity
