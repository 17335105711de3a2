"""Rest: an execution that only waits, for a retry or for another batch, lends its slot to others of its worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final

from durable_batches.runtime.resources import Slots

__all__ = ["LEAST_SECONDS", "Loan", "Rest"]

LEAST_SECONDS: Final = 30.0
"""Of a wait for a retry; for a shorter one no slot is lent."""


class Rest:
    """Knows of one execution whether it only waits, and lends its slot meanwhile.

    Args:
        slots: Those of the worker.
        running: Returns the number of its activity calls that go on, those that wait included.
    """

    __slots__ = ("_back", "_calls", "_running", "_slots", "_unlimited", "lent", "waits")

    def __init__(self, slots: Slots, running: Callable[[], int]) -> None:
        self._slots = slots
        self._running = running
        self.waits: int = 0
        """How many of its parts wait: calls, and code of the workflow."""
        self._calls = 0
        self._unlimited = 0
        self.lent: bool = False
        """Whether its slot is lent."""
        self._back: asyncio.Future[None] | None = None

    @asynccontextmanager
    async def waiting(self, *, is_call: bool, for_batch: bool) -> AsyncGenerator[None]:
        """Within the block, one part of it waits. Afterwards it has its slot again.

        Args:
            is_call: Whether that is one of its activity calls.
            for_batch: Whether it waits for a batch, which may need the slot: then it is lent in any case.
        """
        self.begin(is_call=is_call, for_batch=for_batch)
        try:
            self.look()
            yield
            await self.end()
        except BaseException:
            # It is stopped, or the wait has failed: it goes on, with or without an open slot.
            self.end_at_once()
            raise
        finally:
            self.begin(is_call=is_call, for_batch=for_batch, by=-1)

    def begin(self, *, is_call: bool, for_batch: bool, by: int = 1) -> None:
        """Count one part more that waits, or one less."""
        self.waits += by
        self._calls += by * is_call
        self._unlimited += by * for_batch

    def look(self) -> None:
        """Lend the slot if nothing of it runs."""
        if self.waits and not self.lent and self._calls == self._running():
            self.lent = self._slots.lend(in_any_case=self._unlimited > 0)

    async def end(self) -> None:
        """Wait until it has its slot again."""
        while self.lent:
            if self._back is not None:
                # Another part of it wants it back already; where that one is stopped, this one does.
                await asyncio.wait([self._back])
                continue
            self._back = asyncio.get_running_loop().create_future()
            try:
                await self._slots.take_back()
                self.lent = False
            finally:
                self._back.set_result(None)
                self._back = None

    def take_open(self) -> bool:
        """Have its slot again if one is open; return whether it has it."""
        if self.lent and self._back is None and self._slots.take_open():
            self.lent = False
        return not self.lent

    def end_at_once(self) -> None:
        """Have its slot again, also where another execution has it; unless another part of it is having it back."""
        if self.lent and self._back is None:
            self.lent = False
            self._slots.keep()


class Loan:
    """A wait of one call of an execution, which lends its slot meanwhile if nothing else of it runs.

    Args:
        rest: Of the execution; None: it has no slot.
    """

    __slots__ = ("_rest",)

    def __init__(self, rest: Rest | None) -> None:
        self._rest = rest
        """None: it has ended."""
        if rest is not None:
            rest.begin(is_call=True, for_batch=False)
            rest.look()

    def end_if_open(self) -> bool:
        """End it if the execution has its slot, or one is open; return whether it has ended."""
        if self._rest is not None and self._rest.take_open():
            self._end(self._rest)
        return self._rest is None

    async def end(self) -> None:
        """End it once the execution has its slot again."""
        if self._rest is not None:
            await self._rest.end()
            self._end(self._rest)

    def end_at_once(self) -> None:
        """End it, with or without an open slot."""
        rest = self._rest
        if rest is not None:
            self._end(rest)
            rest.end_at_once()

    def _end(self, rest: Rest) -> None:
        self._rest = None
        rest.begin(is_call=True, for_batch=False, by=-1)
