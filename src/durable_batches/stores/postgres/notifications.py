"""Notifications: a hint that another process has changed something, beside a poll now and then.

All that a process waits for is asked for in one query. A notification says only that something has changed; one that
is lost costs time and nothing else. It is sent by itself, after the commit and not within it, and a few times a second
at most: committing one takes a lock that all notifying transactions of the server share. A replica has none of them,
and is polled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Final

from durable_batches.errors import StoreUnavailableError
from durable_batches.lifecycle.records import ClaimRequest, EventRecord
from durable_batches.lifecycle.states import BatchId
from durable_batches.outage import Backoff
from durable_batches.stores.postgres import queries
from durable_batches.stores.postgres.commit.claim import claimable
from durable_batches.stores.postgres.connection.database import Database
from durable_batches.stores.postgres.connection.errors import translated
from durable_batches.stores.postgres.connection.server_clock import ServerClock
from durable_batches.stores.postgres.connection.session import Session, closed

__all__ = ["Notifications"]

_log = logging.getLogger("durable_batches")

_POLL_SECONDS: Final = 0.5
_LEAST_SECONDS: Final = 0.1
"""Between two queries, however much happens."""
_NOTIFY_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 1.0
"""After the connection was lost, until another is tried."""


class _Waiter:
    __slots__ = ("done", "looked", "request", "seen")

    def __init__(self, seen: Mapping[BatchId, int], request: ClaimRequest) -> None:
        self.seen = seen
        self.request = request
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.looked = False

    def wake(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class Notifications:
    """Used on the store's loop.

    Args:
        database: Where the batches are.
        server_clock: What things fall due by.
        takes_replicas: See `Database.connect`.
    """

    def __init__(self, database: Database, server_clock: ServerClock, *, takes_replicas: bool = False) -> None:
        self._database = database
        self._server_clock = server_clock
        self._takes_replicas = takes_replicas
        self._waiters: set[_Waiter] = set()
        self._wake = asyncio.Event()
        self._changed = False
        self._notified_at = 0.0
        self._own_pid = 0
        self._backoff = Backoff(longest=_LONGEST_PAUSE_SECONDS)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task, which connects once it is needed."""
        self._task = asyncio.create_task(self._run(), name="durable-batches notifications")

    def refuse_replicas(self) -> None:
        """Connect to the primary only from here on."""
        self._takes_replicas = False

    async def stop(self) -> None:
        """End the task, close its connection, and wake all who wait."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for waiter in list(self._waiters):
            waiter.wake()

    async def wait(self, seen: Mapping[BatchId, int], request: ClaimRequest) -> None:
        """Wait until one of `seen` has events beyond its number, or there is something to claim for the request."""
        waiter = _Waiter(seen, request)
        self._waiters.add(waiter)
        self._wake.set()
        try:
            await waiter.done
        finally:
            self._waiters.discard(waiter)

    def changed(self, events: Sequence[EventRecord]) -> None:
        """Note the events that this process has committed."""
        if not events:
            return
        for waiter in list(self._waiters):
            if waiter.request.workflows or any(
                event.seq > waiter.seen.get(event.batch_id, event.seq) for event in events
            ):
                waiter.looked = False
        self._changed = True
        self._wake.set()

    async def _run(self) -> None:
        while True:
            if not self._waiters and not self._changed:
                # A connection would serve nobody yet.
                self._wake.clear()
                await self._wake.wait()
            try:
                await self._listen()
            except StoreUnavailableError as error:
                pause = self._backoff.pause()
                _log.debug(
                    "listening for notifications was interrupted, next try in %g s: %s",
                    pause,
                    error,
                    extra={"database": self._database.where, "error_code": error.code, "retry_seconds": pause},
                )
            except Exception:  # noqa: BLE001  (without this task, all who wait would go by their timeouts alone)
                pause = self._backoff.pause()
                _log.exception(
                    "listening for notifications was interrupted, next try in %g s",
                    pause,
                    extra={"database": self._database.where, "retry_seconds": pause},
                )
            else:
                pause = self._backoff.pause()
            await asyncio.sleep(pause)

    async def _listen(self) -> None:
        connection = await self._database.connect(by_key=True, takes_replica=self._takes_replicas)
        try:
            with translated(self._database.where):
                self._own_pid = connection.get_server_pid()
                session = Session(self._database, connection)
                if not (self._takes_replicas and await session.value("SELECT pg_is_in_recovery()")):
                    await session.listen(self._database.channel, self._heard)
                connection.add_termination_listener(self._lost)
                for waiter in self._waiters:
                    waiter.looked = False
                while not connection.is_closed():
                    # What comes while it looks is looked at next.
                    self._wake.clear()
                    await self._look(session)
                    await self._notify(session)
                    self._backoff.reset()
                    await self._pause_until_change()
        finally:
            await closed(connection)

    def _heard(self, _connection: object, pid: int, _channel: str, _payload: object) -> None:
        if pid == self._own_pid:
            # This process's own; of those the waiters know.
            return
        for waiter in self._waiters:
            waiter.looked = False
        self._wake.set()

    def _lost(self, _connection: object) -> None:
        self._wake.set()

    async def _pause_until_change(self) -> None:
        """Wait until something has changed, or it is time to poll."""
        await asyncio.sleep(_LEAST_SECONDS)
        left = self._notified_at + _NOTIFY_SECONDS - asyncio.get_running_loop().time()
        seconds = max(left, 0) if self._changed else _POLL_SECONDS
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            for waiter in self._waiters:
                waiter.looked = False

    async def _look(self, session: Session) -> None:
        waiting = [waiter for waiter in self._waiters if not waiter.looked]
        for waiter in waiting:
            waiter.looked = True
        seen = {batch_id for waiter in waiting for batch_id in waiter.seen}
        work = {pair for waiter in waiting if waiter.request.takes_from_all for pair in waiter.request.workflows}
        numbers = await queries.load_numbers(session, seen) if seen else {}
        ready = await self._claimable(session, ClaimRequest.of_workflows(work))
        for waiter in waiting:
            request = waiter.request
            moved = any(numbers.get(batch_id, 0) > number for batch_id, number in waiter.seen.items())
            # Those who take from some batches only ask for themselves.
            if moved or request.workflows & (
                ready if request.takes_from_all else await self._claimable(session, request)
            ):
                waiter.wake()

    async def _claimable(self, session: Session, request: ClaimRequest) -> set[tuple[str, str]]:
        return await claimable(session, self._server_clock.now(), request) if request.workflows else set()

    async def _notify(self, session: Session) -> None:
        """Notify other processes that something has changed, but not too often."""
        now = asyncio.get_running_loop().time()
        if self._changed and now >= self._notified_at + _NOTIFY_SECONDS:
            self._changed, self._notified_at = False, now
            await session.value("SELECT pg_notify($1, '')", self._database.channel)
