"""Named signals in the library's loops, which tests await in place of sleeping.

A loop fires a signal at each moment that a test may wait for. In production nobody listens: firing is then one method
call that iterates over an empty tuple, and the value is an object that is there anyway.

    with worker.signals.scheduler.started.listen() as started:
        batch_id = await batches.submit(["x"])
        assert await started.next() == (batch_id, 0)

A listener hears every value from the moment that it is entered, so a test that listens before it causes something
cannot miss it. Signals may be fired on any thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, Generic, TypeVar

__all__ = ["Listener", "Signal", "until"]

T = TypeVar("T")

_PATIENCE_SECONDS: Final = 60.0
"""After which a test fails that waits for a signal: far longer than it takes."""


class Signal(Generic[T]):
    """One kind of moment in a loop."""

    __slots__ = ("_hearers",)

    def __init__(self) -> None:
        self._hearers: tuple[Callable[[T], None], ...] = ()

    def fire(self, value: T) -> None:
        """Tell all listeners; nothing to do where there is none."""
        for hear in self._hearers:
            hear(value)

    @contextmanager
    def listen(self) -> Generator[Listener[T]]:
        """Hear all values that are fired within the block."""
        listener = Listener[T]()
        with self.heard_by(listener.hear):
            yield listener

    @contextmanager
    def heard_by(self, hear: Callable[[T], None]) -> Generator[None]:
        """Call `hear` with each value fired within the block, on the thread that fires it."""
        self._hearers = (*self._hearers, hear)
        try:
            yield
        finally:
            self._hearers = tuple(other for other in self._hearers if other is not hear)


class Listener(Generic[T]):
    """The values of one signal, in their order."""

    def __init__(self) -> None:
        self._values: deque[T] = deque()
        self._moved = _Moved()

    def hear(self, value: T) -> None:
        """Take a value; called by the signal."""
        self._values.append(value)
        self._moved.set()

    @property
    def heard(self) -> list[T]:
        """The values that were not awaited yet."""
        return list(self._values)

    async def next(self, *, seconds: float = _PATIENCE_SECONDS) -> T:
        """Wait for the next value.

        Raises:
            TimeoutError: It does not come.
        """
        async with asyncio.timeout(seconds):
            while not self._values:
                await self._moved.wait()
        return self._values.popleft()

    async def matching(self, matches: Callable[[T], bool], *, seconds: float = _PATIENCE_SECONDS) -> T:
        """Wait for the next value that matches; those before it are dropped.

        Raises:
            TimeoutError: It does not come.
        """
        async with asyncio.timeout(seconds):
            while not matches(value := await self.next(seconds=seconds)):
                pass
        return value


async def until(holds: Callable[[], bool], *signals: Signal[Any], seconds: float = _PATIENCE_SECONDS) -> None:
    """Wait until a condition holds that changes with these signals; it is looked at after each of them.

    Raises:
        TimeoutError: It does not come to hold.
    """
    moved = _Moved()
    with ExitStack() as stack:
        for signal in signals:
            stack.enter_context(signal.heard_by(lambda _: moved.set()))
        async with asyncio.timeout(seconds):
            while not holds():
                await moved.wait()


class _Moved:
    """An `asyncio.Event`, cleared by waiting, that can be set from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._event = asyncio.Event()

    def set(self) -> None:
        if threading.get_ident() == self._thread:
            self._event.set()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()
