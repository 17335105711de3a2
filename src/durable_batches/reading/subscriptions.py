"""The subscriptions of one process, by batch: each batch with subscribers has one feed, which they share."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager

from durable_batches.clock import Clock
from durable_batches.lifecycle.records import BatchRecord, EventRecord
from durable_batches.lifecycle.states import BatchId
from durable_batches.reading.feed import Feed

__all__ = ["Subscriptions"]


class Subscriptions:
    """All subscriptions of one worker or client, by batch.

    Args:
        clock: Paces the wakes of many subscribers.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._feeds: dict[BatchId, Feed] = {}
        self._subscribers: dict[BatchId, int] = {}

    def __contains__(self, batch_id: BatchId) -> bool:
        return batch_id in self._feeds

    @property
    def seen(self) -> dict[BatchId, int]:
        """The batches that have subscribers, each with the last event of which those know."""
        return {batch_id: feed.known for batch_id, feed in self._feeds.items()}

    def latest(self, batch_id: BatchId) -> int | None:
        """Return the last event of which a batch's subscribers know; None: it has no subscribers."""
        feed = self._feeds.get(batch_id)
        return None if feed is None else feed.known

    @contextmanager
    def to(self, batch_id: BatchId) -> Generator[Feed]:
        """Subscribe to a batch for the length of a block."""
        feed = self._feeds.get(batch_id)
        if feed is None:
            feed = self._feeds[batch_id] = Feed(self._clock)
        self._subscribers[batch_id] = self._subscribers.get(batch_id, 0) + 1
        try:
            yield feed
        finally:
            self._subscribers[batch_id] -= 1
            if not self._subscribers[batch_id]:
                del self._subscribers[batch_id], self._feeds[batch_id]
                feed.close()

    def deliver(self, events: Iterable[EventRecord]) -> None:
        """Hand the events of a commit of this process to the subscribers of their batches."""
        if not self._feeds:
            return
        delivered: dict[BatchId, list[EventRecord]] = {}
        for event in events:
            if event.batch_id in self._feeds:
                delivered.setdefault(event.batch_id, []).append(event)
        for batch_id, own in delivered.items():
            self._feeds[batch_id].deliver(own)

    def wake(self, batch_id: BatchId, record: BatchRecord | None = None) -> None:
        """Have the subscribers of a batch look at it, which is this one now; None: they read it from the store."""
        feed = self._feeds.get(batch_id)
        if feed is not None:
            feed.wake(record)

    def wake_all(self) -> None:
        """Have all subscribers read the store."""
        for feed in self._feeds.values():
            feed.wake()
