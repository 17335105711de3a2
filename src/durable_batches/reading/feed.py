"""The feed of a batch: what all of its subscribers in one process share, so that one reads the store for all.

Commits of this process hand their events over. The feed keeps the latest ones, without a gap, each decoded once when
it is first taken. What is missing after them one subscriber reads from the store, and the others wait for it; a
subscriber that is further behind reads the store in blocks of its own. So a slow one costs no memory, misses nothing,
and holds nobody up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Hashable, Sequence
from contextlib import contextmanager
from typing import Final

from durable_batches.clock import Clock, Timer
from durable_batches.lifecycle.events import LAST_EVENT_TAGS, BatchEvent, decode_event
from durable_batches.lifecycle.records import BatchRecord, EventRecord

__all__ = ["BLOCK", "Feed"]

BLOCK: Final = 500
"""Events that are taken, or read from the store, at once."""

_KEPT: Final = 1_024
"""Events that are kept at least, where there are as many; twice as many at most."""

_BLOCKS: Final = 4
"""Blocks of earlier events that are kept, for other subscribers at the same point."""

_UNPACED: Final = 10
"""Subscribers that are woken by each commit. More are woken less often, and receive more events at once."""

_PACE_SECONDS: Final = 0.001
"""For each subscriber woken, the time until they are woken again: it keeps the share of a core that wakes take."""

_LONGEST_PACE_SECONDS: Final = 0.1

_UNPACED_EVENTS: Final = 256
"""Events at which they are woken sooner."""


class Feed:
    """One batch, for its subscribers in this process.

    Args:
        clock: Paces the wakes of many subscribers.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.record: BatchRecord | None = None
        """The batch as it was read last; None: it was not, or is not there."""
        self.known: int = 0
        """The last event that is known to be in the store."""
        self.first: int = 0
        """The event before the first one that is kept."""
        self.last: int = 0
        """The last event that is kept, or `first`."""
        self.wakes: int = 0
        """How often all were told to read the store."""
        self.ends: int = 0
        """How often the batch may have ended."""
        self._doubted = True
        self._events: list[BatchEvent] = []
        self._not_decoded: list[EventRecord] = []
        self._blocks: dict[int, list[BatchEvent]] = {}
        self._followers = 0
        self._reads = 0
        self._record_read = 0
        self._going_on: dict[Hashable, _Waiters] = {}
        self._waiting = _Waiters()
        self._waiting_for_the_end = _Waiters()
        self._pace: Timer | None = None
        self._wake_is_due = False
        self._last_woken = 0

    # ---- what happens to the batch -----------------------------------------------------------------------------

    def deliver(self, events: Sequence[EventRecord]) -> None:
        """Hand events over that were committed in this process."""
        if self._followers:
            self._add(events)
        self._advance(events[-1].seq, may_have_ended=not LAST_EVENT_TAGS.isdisjoint([event.tag for event in events]))

    def wake(self, record: BatchRecord | None = None) -> None:
        """Have the subscribers look at the batch, which is this one now; None: they read it from the store."""
        self.wakes += 1
        if record is None:
            self._doubted = True
            self._advance(self.known, may_have_ended=True)
        else:
            self._note(record)

    def close(self) -> None:
        """End what is timed: there are no subscribers any more."""
        if self._pace is not None:
            self._pace.cancel()
            self._pace = None

    # ---- following its events ----------------------------------------------------------------------------------

    @contextmanager
    def followed(self, cursor: int) -> Generator[None]:
        """Keep events for a subscriber at this point; the batch has been read before."""
        if not self._followers:
            self._keep_from(min(max(cursor, self.known - _KEPT), self.known))
        self._followers += 1
        try:
            yield
        finally:
            self._followers -= 1
            if not self._followers:
                self._keep_from(self.known)

    def take(self, cursor: int) -> Sequence[BatchEvent]:
        """Return events that follow the cursor; empty: none is kept."""
        if cursor < self.first:
            block = self._blocks.get(cursor // BLOCK, ())
            return block[cursor % BLOCK :] if cursor % BLOCK else block
        if cursor >= self.last:
            return ()
        if self._not_decoded:
            self._events += [decode_event(record) for record in self._not_decoded]
            self._not_decoded.clear()
        start = cursor - self.first
        return self._events[start : start + BLOCK]

    @property
    def current(self) -> BatchRecord | None:
        """The batch as of the last event that is known; None: it must be read."""
        record = self.record
        return record if record is not None and not self._doubted and record.seq == self.known else None

    @property
    def is_live(self) -> bool:
        """Whether the batch goes on, as far as is known, and others follow it: all that is new comes here by itself."""
        return self._followers > 0 and not self._doubted and self.record is not None and not self.record.ended

    @property
    def is_doubted(self) -> bool:
        """Whether the batch must be read to know whether it has ended with the last event that is kept."""
        if self._doubted or self.record is None:
            return True
        return self.record.seq < self.last and (self._last_tag is None or self._last_tag in LAST_EVENT_TAGS)

    @property
    def has_ended(self) -> bool:
        """Whether the batch has ended with the last event that is kept."""
        return self.record is not None and self.record.ended and self.record.seq == self.last

    async def read_next(self, read: Callable[[int], Awaitable[Sequence[EventRecord]]]) -> None:
        """Read what follows the events that are kept, or wait for another's read of it."""

        async def add() -> None:
            last = self.last
            records = await read(last)
            self._add(records)
            if not records and self.last == last:
                # There was something: whether there still is, the batch tells.
                self.known, self._doubted = last, True

        await self._once("next", add)

    async def read_earlier(self, cursor: int, read: Callable[[int], Awaitable[Sequence[EventRecord]]]) -> None:
        """Read the block of a cursor from before the events that are kept, or wait for another's read of it.

        Blocks begin at multiples of their size, so that all who are somewhere in one share it, and meet at its end.
        """
        number = cursor // BLOCK

        async def add() -> None:
            block = [decode_event(record) for record in await read(number * BLOCK)]
            if len(block) > cursor % BLOCK:
                self._blocks[number] = block
            else:
                self._doubted = True
            if len(self._blocks) > _BLOCKS:
                del self._blocks[next(iter(self._blocks))]

        await self._once(number, add)

    async def moved(self) -> None:
        """Wait until there may be more than is kept; ask first whether there is."""
        await self._waiting.wait()

    # ---- following its record ----------------------------------------------------------------------------------

    async def read_record(self, read: Callable[[], Awaitable[BatchRecord | None]]) -> BatchRecord | None:
        """Read the batch; those who ask while a read goes on share the next one."""

        async def note() -> None:
            self._reads += 1
            number, self._doubted = self._reads, False
            try:
                record = await read()
            except BaseException:
                self._doubted = True
                raise
            self._record_read = number
            if record is None:
                self.record = None
            else:
                self._note(record)

        asked = self._reads
        while self._record_read <= asked:
            await self._once("record", note)
        return self.record

    async def moved_beyond(self, seq: int, wakes: int) -> None:
        """Wait until the batch has events beyond `seq`, or was said to have since `wakes` was counted."""
        while self.known <= seq and self.wakes == wakes:
            await self._waiting.wait()

    async def ended_since(self, ends: int) -> None:
        """Wait until the batch may have ended since `ends` was counted."""
        while self.ends == ends:
            await self._waiting_for_the_end.wait()

    # ---- inside --------------------------------------------------------------------------------------------------

    @property
    def _last_tag(self) -> str | None:
        if self._not_decoded:
            return self._not_decoded[-1].tag
        return self._events[-1].tag if self._events else None

    def _keep_from(self, seq: int) -> None:
        self.first = self.last = self._last_woken = seq
        self._events.clear()
        self._not_decoded.clear()
        self._blocks.clear()

    def _add(self, records: Sequence[EventRecord]) -> None:
        """Keep those records that follow without a gap."""
        for record in records:
            if record.seq == self.last + 1:
                self._not_decoded.append(record)
                self.last += 1
        self.known = max(self.known, self.last)
        if self.last - self.first > 2 * _KEPT:
            dropped = self.last - self.first - _KEPT
            of_decoded = min(dropped, len(self._events))
            del self._events[:of_decoded]
            del self._not_decoded[: dropped - of_decoded]
            self.first += dropped

    def _note(self, record: BatchRecord) -> None:
        is_new = self.record is None or record.seq > self.record.seq
        if is_new:
            self.record = record
        if record.seq > self.known or (is_new and record.ended):
            self._advance(record.seq, may_have_ended=record.ended)

    def _advance(self, seq: int, *, may_have_ended: bool) -> None:
        self.known = max(self.known, seq)
        if may_have_ended:
            self.ends += 1
            self._waiting_for_the_end.wake()
        if self._pace is None or may_have_ended or self.known - self._last_woken >= _UNPACED_EVENTS:
            self._wake_followers()
        else:
            self._wake_is_due = True

    def _wake_followers(self) -> None:
        self.close()
        self._wake_is_due = False
        self._last_woken = self.known
        woken = self._waiting.wake()
        if woken > _UNPACED:
            pace = min(woken * _PACE_SECONDS, _LONGEST_PACE_SECONDS)
            self._pace = self._clock.call_later(pace, self._end_pace, housekeeping=True)

    def _end_pace(self) -> None:
        self._pace = None
        if self._wake_is_due:
            self._wake_followers()

    async def _once(self, key: Hashable, read: Callable[[], Awaitable[None]]) -> None:
        """Read, or wait for another's read of the same; its outcome, or that it had none, the caller looks up."""
        waiting = self._going_on.get(key)
        if waiting is not None:
            await waiting.wait()
            return
        waiting = self._going_on[key] = _Waiters()
        try:
            await read()
        finally:
            del self._going_on[key]
            waiting.wake()


class _Waiters:
    """Those who wait for the same thing."""

    __slots__ = ("_futures",)

    def __init__(self) -> None:
        self._futures: dict[asyncio.Future[None], None] = {}

    async def wait(self) -> None:
        """Wait for the next wake."""
        future = asyncio.get_running_loop().create_future()
        self._futures[future] = None
        try:
            await future
        finally:
            self._futures.pop(future, None)

    def wake(self) -> int:
        """Wake all in the order in which they came, and return how many there were."""
        futures, self._futures = self._futures, {}
        for future in futures:
            if not future.done():
                future.set_result(None)
        return len(futures)
