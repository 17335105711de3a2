"""Subscriptions to batches, and the events that this process hands over to them.

Commits of this process hand their events to the subscribers. A subscriber takes them only where they follow its cursor
without a gap, and reads the store otherwise: so a slow one costs no memory and misses nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Final

from durable_batches.lifecycle.events import LAST_EVENT_TAGS
from durable_batches.lifecycle.records import EventRecord
from durable_batches.lifecycle.states import BatchId

__all__ = ["Subscription", "Subscriptions"]

_BUFFERED: Final = 1_024
"""Events that are kept for one subscriber; with more behind, it reads the store."""


class Subscription:
    """One subscriber's view of one batch.

    Args:
        ends_only: Wakes the subscriber at the batch's end only, and hands no events over.
    """

    def __init__(self, *, ends_only: bool) -> None:
        self._ends_only = ends_only
        self._events: deque[EventRecord] = deque(maxlen=_BUFFERED)
        self._moved = asyncio.Event()
        self._store_is_ahead = False

    def deliver(self, events: Sequence[EventRecord]) -> None:
        """Hand events over that were committed in this process."""
        if self._ends_only:
            if any(event.tag in LAST_EVENT_TAGS for event in events):
                self.wake()
        else:
            self._events.extend(events)
            self._moved.set()

    def wake(self) -> None:
        """Have the subscriber read the store: the batch may have moved by more than was handed over."""
        self._store_is_ahead = True
        self._moved.set()

    def take(self, cursor: int) -> list[EventRecord]:
        """Take the events that were handed over and follow the cursor.

        Empty where there is none, or one before them is missing: read the store then. After some were taken,
        `moved` waits, but not where `wake` was called since the last empty answer.
        """
        while self._events and self._events[0].seq <= cursor:
            self._events.popleft()
        if not self._events or self._events[0].seq != cursor + 1:
            self._store_is_ahead = False
            return []
        taken: list[EventRecord] = []
        while self._events and self._events[0].seq == cursor + 1 + len(taken):
            taken.append(self._events.popleft())
        if self._events or self._store_is_ahead:
            # Beyond a gap, or announced: an earlier `moved` may have cleared what says so, and nothing else will come.
            self._moved.set()
        else:
            self._moved.clear()
        return taken

    async def moved(self) -> None:
        """Wait until the batch may have moved since the last call."""
        await self._moved.wait()
        self._moved.clear()


class Subscriptions:
    """All subscriptions of one worker, by batch."""

    def __init__(self) -> None:
        self._by_batch: dict[BatchId, list[Subscription]] = {}
        self._latest: dict[BatchId, int] = {}

    def __contains__(self, batch_id: BatchId) -> bool:
        return batch_id in self._by_batch

    @property
    def seen(self) -> dict[BatchId, int]:
        """The batches that have subscribers, each with the last event of which those know."""
        return {batch_id: self._latest.get(batch_id, 0) for batch_id in self._by_batch}

    def latest(self, batch_id: BatchId) -> int | None:
        """Return the last event of which a batch's subscribers know; None: it has no subscribers."""
        return self._latest.get(batch_id, 0) if batch_id in self._by_batch else None

    @contextmanager
    def to(self, batch_id: BatchId, *, ends_only: bool) -> Generator[Subscription]:
        """Subscribe to a batch for the length of a block."""
        subscription = Subscription(ends_only=ends_only)
        self._by_batch.setdefault(batch_id, []).append(subscription)
        try:
            yield subscription
        finally:
            remaining = self._by_batch[batch_id]
            remaining.remove(subscription)
            if not remaining:
                del self._by_batch[batch_id]
                self._latest.pop(batch_id, None)

    def deliver(self, events: Iterable[EventRecord]) -> None:
        """Hand the events of a commit of this process to the subscribers of their batches."""
        if not self._by_batch:
            return
        delivered: dict[BatchId, list[EventRecord]] = {}
        for event in events:
            if event.batch_id in self._by_batch:
                delivered.setdefault(event.batch_id, []).append(event)
        for batch_id, own in delivered.items():
            self._latest[batch_id] = max(self._latest.get(batch_id, 0), own[-1].seq)
            for subscription in self._by_batch[batch_id]:
                subscription.deliver(own)

    def wake(self, batch_id: BatchId, seq: int = 0) -> None:
        """Have the subscribers of a batch read the store, which has this event."""
        if batch_id in self._by_batch:
            self._latest[batch_id] = max(self._latest.get(batch_id, 0), seq)
            for subscription in self._by_batch[batch_id]:
                subscription.wake()

    def wake_all(self) -> None:
        """Have all subscribers read the store."""
        for batch_id in self._by_batch:
            self.wake(batch_id)
