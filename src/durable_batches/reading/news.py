"""News of batches: the one look-out that notices, for all subscribers of a process, what other processes commit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final

from durable_batches.clock import Clock
from durable_batches.errors import StoreUnavailableError, WorkerNotRunningError
from durable_batches.lifecycle.states import BatchId
from durable_batches.outage import Backoff, Outages, ride_out
from durable_batches.reading.feed import Feed
from durable_batches.reading.signals import NewsSignals
from durable_batches.reading.subscriptions import Subscriptions
from durable_batches.stores.protocol import Store
from durable_batches.tasks import running_loop

__all__ = ["News"]

_log = logging.getLogger("durable_batches")

_WAIT_MICROS: Final = 5_000_000
_AWAY_SECONDS: Final = 1.0
"""Between two looks while the store is away."""

_TASK: Final = "durable-batches news"
_OPERATION: Final = "the look-out for news of batches"


class News:
    """Tells subscribers that their batches have moved.

    Args:
        store: Where the batches are.
        clock: For the pauses while the store is away, and those between the wakes of many subscribers.
        outages: Where those are logged.
        signals: Fired for tests.
    """

    def __init__(self, store: Store, clock: Clock, outages: Outages, signals: NewsSignals) -> None:
        self._store = store
        self._clock = clock
        self._outages = outages
        self._signals = signals
        self._subscriptions = Subscriptions(clock)
        self.deliver: Final = self._subscriptions.deliver
        """Hands the events of a commit of this process to the subscribers of their batches."""
        self._is_open = False
        self._loop: asyncio.AbstractEventLoop | None = None
        """In which it was opened last."""
        self._look_out: asyncio.Task[None] | None = None
        self._waiting: asyncio.Task[None] | None = None

    @property
    def watched(self) -> list[BatchId]:
        """The batches that have subscribers."""
        return list(self._subscriptions.seen)

    @contextmanager
    def subscribed(self, batch_id: BatchId) -> Generator[Feed]:
        """Subscribe to a batch for the length of a block; all of its subscribers share one feed.

        Raises:
            WorkerNotRunningError: Not between `open` and `close`.
        """
        if not self._is_open:
            raise WorkerNotRunningError("the worker is not running: use it inside `async with`")
        if batch_id not in self._subscriptions and self._waiting is not None:
            # It waits for news of other batches only.
            self._waiting.cancel()
        with self._subscriptions.to(batch_id) as feed:
            yield feed

    def look_out(self) -> None:
        """Begin to look out for the subscribed batches, unless that goes on: the first of them has been read."""
        if self._is_open and self._look_out is None:
            self._look_out = asyncio.create_task(self._look_out_for_news(), name=_TASK)
            self._look_out.add_done_callback(self._look_out_ended)

    def open(self) -> None:
        """Allow subscriptions; the look-out begins when the first subscriber has read its batch."""
        self._is_open = True
        self._loop = asyncio.get_running_loop()

    def check_loop(self) -> None:
        """Refuse to be used in another event loop than the one that it was opened in, while that runs.

        Raises:
            WorkerNotRunningError: The running event loop is another one.
        """
        opened_in, here = self._loop, running_loop()
        if opened_in is not None and here is not None and opened_in is not here and opened_in.is_running():
            raise WorkerNotRunningError(
                "the worker or client runs in another event loop, on another thread; await it there "
                "(asyncio.run_coroutine_threadsafe), or give this event loop its own over the same store"
            )

    def stop(self) -> None:
        """Wake all subscribers, who then see that the worker is not running any more."""
        self._is_open = False
        self._subscriptions.wake_all()

    def _look_out_ended(self, task: asyncio.Task[None]) -> None:
        """Have the subscribers begin another look-out, where this one was not ended by `close`."""
        if self._look_out is not task or not self._is_open:
            return
        self._look_out = None
        if task.cancelled():
            self._subscriptions.wake_all()
            return
        _log.error("the look-out for news of batches broke down, and is begun again", exc_info=task.exception())
        self._clock.call_later(_AWAY_SECONDS, self._subscriptions.wake_all, housekeeping=True)

    async def close(self) -> None:
        """Stop to look out, and wake all subscribers, who then see that the worker is not running any more."""
        self.stop()
        look_out, self._look_out = self._look_out, None
        if look_out is not None:
            look_out.cancel()
            await asyncio.wait([look_out])

    async def _look_out_for_news(self) -> None:
        sleep = partial(self._clock.sleep, housekeeping=True)
        backoff = partial(Backoff, _AWAY_SECONDS, _AWAY_SECONDS)
        while True:
            if not self._subscriptions.seen:
                await self._is_there_news_of({})
                continue
            with suppress(_NothingToLookFor):
                await ride_out(self._look, self._outages, _OPERATION, sleep, backoff=backoff, passes=self._waits_on)

    def _waits_on(self, error: StoreUnavailableError) -> bool:
        """Wait on, whatever is wrong with the store; the subscribers decide for themselves about what does not pass."""
        if not error.transient:
            self._subscriptions.wake_all()
        return True

    async def _look(self) -> None:
        """Wait for news once, and wake those whom it concerns.

        Raises:
            _NothingToLookFor: There is no subscriber; all may have left in an outage, which ends with this.
        """
        seen = self._subscriptions.seen
        if not seen:
            raise _NothingToLookFor
        if not await self._is_there_news_of(seen):
            return
        for batch_id in seen:
            if self._subscriptions.latest(batch_id) != seen[batch_id]:
                # It has no subscribers any more, or they have received the events meanwhile. If there are more, the
                # next wait ends immediately, or the next delivery has a gap.
                continue
            record = await self._store.batch(batch_id)
            latest = self._subscriptions.latest(batch_id)
            if latest is not None and (record is None or record.seq > latest):
                self._subscriptions.wake(batch_id, record)
                self._signals.woken.fire(batch_id)
        self._signals.looked.fire(seen)

    async def _is_there_news_of(self, seen: Mapping[BatchId, int]) -> bool:
        """Wait for news; return False as soon as there is a subscriber to a batch that is not among these."""
        waiting = self._waiting = asyncio.create_task(self._wait_for(seen), name=_TASK)
        try:
            await asyncio.wait([waiting])
        finally:
            waiting.cancel()
            await asyncio.wait([waiting])
        if waiting.cancelled():
            return False
        waiting.result()
        return True

    async def _wait_for(self, seen: Mapping[BatchId, int]) -> None:
        if seen:
            self._signals.waiting.fire(seen)
            await self._store.wait(seen, work=(), timeout=_WAIT_MICROS)
        else:
            await asyncio.get_running_loop().create_future()


class _NothingToLookFor(Exception):
    """The look-out has no subscribers."""
