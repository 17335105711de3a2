"""A store that a worker can be cut off from, and time that passes for workers that renew their leases meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

from tests.support import eventually

from durable_batches.errors import StoreUnavailableError
from durable_batches.lifecycle.records import WorkerId
from durable_batches.stores.protocol import Heart, Store
from durable_batches.testing import ManualClock
from durable_batches.testing.virtual.crashable_store import CrashableStore


class Line(CrashableStore):
    """A store as one process sees it, whose line to it can be cut. What is under way then is answered."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.cut = False
        self.on_write: Callable[[str, Literal["before", "after"]], object] = lambda method, moment: None
        """Called before each write, and when it was applied, before its reply."""
        self.error: Callable[[], Exception] = lambda: StoreUnavailableError("nobody answers")

    def check(self, by: WorkerId | None) -> None:
        if self.cut:
            raise self.error()
        super().check(by)

    def before_write(self, number: int, method: str) -> None:
        self.on_write(method, "before")

    def after_write(self, number: int, method: str) -> None:
        self.on_write(method, "after")

    def heart(self, worker: WorkerId) -> Heart:
        return _CutHeart(self, super().heart(worker))


class _CutHeart:
    def __init__(self, line: Line, heart: Heart) -> None:
        self._line = line
        self._heart = heart

    def beat(self) -> bool:
        self._line.check(None)
        return self._heart.beat()

    def close(self) -> None:
        self._heart.close()


class Provider:
    """A paid service, outside of everything: its bill says what was asked, and what it has answered."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.asked: Counter[Any] = Counter()
        self.answered: Counter[Any] = Counter()

    async def ask(self, question: Any, seconds: float) -> None:
        self.asked[question] += 1
        await self.clock.sleep(seconds)
        self.answered[question] += 1

    @property
    def asked_again(self) -> list[Any]:
        """The questions that were paid for more than once."""
        return [question for question, times in self.asked.items() if times > 1]


class Time:
    """Time that passes second by second, each when nothing else happens any more.

    Args:
        clock: That of all workers of this process.
    """

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock

    async def pass_by(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            await self.settle()
            self.clock.advance(1)
        await self.settle()

    async def until(self, task: asyncio.Task[Any], *, most: timedelta = timedelta(minutes=10)) -> None:
        """Let time pass until this is done."""
        for _ in range(round(most.total_seconds())):
            await self.settle()
            if task.done():
                return
            self.clock.advance(1)
        raise AssertionError(f"not done after {most}")

    async def settle(self) -> None:
        """Wait until all leases are renewed that are to be, and the event loop has nothing to do."""
        ready: Any = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]
        while True:
            await eventually(self._all_renewers_wait)
            await asyncio.sleep(0)
            if not ready and self._all_renewers_wait():
                return

    def _all_renewers_wait(self) -> bool:
        renewers = [thread for thread in threading.enumerate() if thread.name == "durable-batches lease"]
        return self.clock.waiting_threads == len(renewers)
