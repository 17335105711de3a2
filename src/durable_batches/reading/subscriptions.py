"""Who watches which batch, and how they learn that it moved.

Commits of this process wake their subscribers at once and hand them the events; what other processes do is
noticed by one poller for all subscribers. A subscriber takes handed events only where they follow its cursor
without a gap, and reads the store otherwise: so a slow one costs no memory and misses nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from durable_batches.clock import Clock
from durable_batches.errors import StoreUnavailableError
from durable_batches.lifecycle.events import LAST_EVENT_TAGS
from durable_batches.lifecycle.records import EventRecord
from durable_batches.lifecycle.states import BatchId
from durable_batches.reading.signals import NewsSignals
from durable_batches.stores.protocol import Store

__all__ = ["Subscription", "Subscriptions"]

_log = logging.getLogger("durable_batches")

_BUFFERED: Final = 1_024
"""Events that are kept for one subscriber; with more behind, it reads the store."""

_POLL_MICROS: Final = 5_000_000
_POLLER: Final = "durable-batches poller"


class Subscription:
    """One subscriber's view of one batch."""

    def __init__(self, *, ends_only: bool) -> None:
        self._ends_only = ends_only
        self._events: deque[EventRecord] = deque(maxlen=_BUFFERED)
        self._moved = asyncio.Event()
        self._announced = False

    def deliver(self, events: Sequence[EventRecord]) -> None:
        """Hand over what was committed here."""
        if self._ends_only:
            if any(event.tag in LAST_EVENT_TAGS for event in events):
                self.wake()
        else:
            self._events.extend(events)
            self._moved.set()

    def wake(self) -> None:
        """The batch may have moved, in a way that only the store can tell."""
        self._announced = True
        self._moved.set()

    def take(self, cursor: int) -> list[EventRecord]:
        """The handed events that follow the cursor; empty where the first is missing (read the store then)."""
        while self._events and self._events[0].seq <= cursor:
            self._events.popleft()
        if not self._events or self._events[0].seq != cursor + 1:
            self._announced = False
            return []
        taken: list[EventRecord] = []
        while self._events and self._events[0].seq == cursor + 1 + len(taken):
            taken.append(self._events.popleft())
        if not self._events and not self._announced:
            self._moved.clear()
        return taken

    async def moved(self) -> None:
        """Wait until the batch may have moved since the last call."""
        await self._moved.wait()
        self._moved.clear()


class Subscriptions:
    """All subscribers of one worker."""

    def __init__(self, store: Store, clock: Clock, signals: NewsSignals) -> None:
        self._store = store
        self._clock = clock
        self._signals = signals
        self._subscriptions: dict[BatchId, list[Subscription]] = {}
        self._latest: dict[BatchId, int] = {}
        self._poller: asyncio.Task[None] | None = None
        self._news: asyncio.Task[None] | None = None

    @contextmanager
    def to(self, batch_id: BatchId, *, ends_only: bool = False) -> Generator[Subscription]:
        """Subscribe for the length of a block."""
        subscription = Subscription(ends_only=ends_only)
        if batch_id not in self._subscriptions and self._news is not None:
            # What is being waited for knows nothing of this batch.
            self._news.cancel()
        self._subscriptions.setdefault(batch_id, []).append(subscription)
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll(), name=_POLLER)
        try:
            yield subscription
        finally:
            remaining = self._subscriptions[batch_id]
            remaining.remove(subscription)
            if not remaining:
                del self._subscriptions[batch_id]
                self._latest.pop(batch_id, None)

    def deliver(self, events: Iterable[EventRecord]) -> None:
        """Hand the events of a commit of this process to whom they concern."""
        if not self._subscriptions:
            return
        by_batch: dict[BatchId, list[EventRecord]] = {}
        for event in events:
            if event.batch_id in self._subscriptions:
                by_batch.setdefault(event.batch_id, []).append(event)
        for batch_id, own in by_batch.items():
            self._latest[batch_id] = max(self._latest.get(batch_id, 0), own[-1].seq)
            for subscription in self._subscriptions[batch_id]:
                subscription.deliver(own)

    async def close(self) -> None:
        """Stop polling, and let everybody who waits see that the worker is not running any more."""
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.wake()
        poller, self._poller = self._poller, None
        if poller is not None:
            poller.cancel()
            await asyncio.wait([poller])

    async def _poll(self) -> None:
        """Notice what other processes commit."""
        while True:
            seen = {batch_id: self._latest.get(batch_id, 0) for batch_id in self._subscriptions}
            try:
                if await self._is_there_news_of(seen):
                    await self._look_at(seen)
            except StoreUnavailableError as error:
                _log.warning("watching batches waits: %s", error)
                await self._clock.sleep(1.0, housekeeping=True)

    async def _is_there_news_of(self, seen: Mapping[BatchId, int]) -> bool:
        """Wait for it; false as soon as somebody subscribes to a batch that is not among these."""
        news = self._news = asyncio.create_task(self._wait_for(seen), name=_POLLER)
        try:
            await asyncio.wait([news])
        finally:
            news.cancel()
            await asyncio.wait([news])
        if news.cancelled():
            return False
        news.result()
        return True

    async def _wait_for(self, seen: Mapping[BatchId, int]) -> None:
        if seen:
            self._signals.waiting.fire(seen)
            await self._store.wait(seen, work=(), timeout=_POLL_MICROS)
        else:
            await asyncio.get_running_loop().create_future()

    async def _look_at(self, seen: Mapping[BatchId, int]) -> None:
        for batch_id in seen.keys() & self._subscriptions.keys():
            record = await self._store.batch(batch_id)
            if record is None or record.seq > seen[batch_id]:
                self._latest[batch_id] = max(self._latest.get(batch_id, 0), record.seq if record is not None else 0)
                for subscription in self._subscriptions.get(batch_id, ()):
                    subscription.wake()
                self._signals.woken.fire(batch_id)
        self._signals.looked.fire(seen)
