"""The streams of an application: bounded in number and memory, fair to the event loop, and ended in time.

Each stream is one response. Its messages come from one generator; between them, where nothing is sent for a while, it
gets a comment that keeps the connection alive. It ends with its generator, when its client has gone, when its client
may not see the batch any more, or when the server stops.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from durable_batches.clock import Clock
from durable_batches.web.access import LOOK_SECONDS
from durable_batches.web.frames import COMMENT, RETRY
from durable_batches.web.listening import Listeners, ServerAddress
from durable_batches.web.schemas import SCHEMA_HEADER
from durable_batches.web.stopping import Peer, StopSignals, shut_down_connections

__all__ = ["STREAM_HEADERS", "EventStream", "Streams", "server_of"]

_log = logging.getLogger("durable_batches")

_GRACE_SECONDS: Final = 1.0
"""After which clients that do not read are cut off, once the streams are to end."""

_LISTENING_SECONDS: Final = 0.5
"""How often it is looked whether their servers listen."""

_RENEWAL_SECONDS: Final = 60.0
"""How long it takes at most until a stream ends whose client may not see it any more, or cannot be looked up."""

_SPREAD_SECONDS: Final = 5.0
"""In which the looks begin: the application is not asked about all clients in one moment."""
_LOOKS_AT_ONCE: Final = 50

_CHUNK_SECONDS: Final = 0.000_04
"""What sending one chunk takes of the event loop, measured."""

_SHARE: Final = 0.2
"""The share of the event loop that sending may take."""

_SHORTEST_WAIT: Final = 0.01
"""Shorter waits for a turn are not waited for."""

STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
    **SCHEMA_HEADER,
}
"""Of a stream. Without the third one nginx holds back what it compresses."""

_HEADERS: Final = [(name.lower().encode(), value.encode()) for name, value in STREAM_HEADERS.items()]


class Streams:
    """All streams of an application.

    Args:
        clock: For the times between comments and between renewals.
        most: How many streams there are at once.
        keep_alive: The time without a message after which a comment is sent.
    """

    def __init__(self, clock: Clock, most: int, keep_alive: timedelta) -> None:
        self._clock = clock
        self._most = most
        self._keep_alive = keep_alive.total_seconds()
        self._signals = StopSignals(self.close)
        self._listeners = Listeners()
        self._streams: dict[EventStream, None] = {}
        self._reserved = 0
        self._care: dict[str, asyncio.Task[None]] = {}
        self._next_turn = 0.0
        self.closing: bool = False
        """Whether the server stops: no stream begins any more."""

    def __len__(self) -> int:
        return len(self._streams)

    def reserve(self, server: ServerAddress | None) -> bool:
        """Reserve a place for a stream; False: there is none, or the server stops.

        It is taken by `stream`, or given back by `give_back`.
        """
        if self.closing or len(self._streams) + self._reserved >= self._most or self._listeners.stopped(server):
            return False
        self._reserved += 1
        return True

    def give_back(self) -> None:
        """Give back a place that was reserved."""
        self._reserved -= 1

    def close(self) -> None:
        """End all streams: those whose clients read, at once; the others are cut off after a second.

        The host may call it, where a server gets no signals and the system does not show that it stops to listen.
        """
        if self.closing:
            return
        self.closing = True
        self._end(list(self._streams))

    def _end(self, streams: Sequence[EventStream]) -> None:
        # All of them: also what a stream that ended has left in the server's buffer may never be read. Connections
        # that the server could flush are closed by then, and are not found any more.
        peers = {peer for stream in streams if (peer := stream.peer) is not None}
        for stream in streams:
            stream.end()
        asyncio.get_running_loop().call_later(_GRACE_SECONDS, self._cut_off, streams, peers)

    def open(self) -> None:
        """Allow streams, also again, where the application is started once more; listen to signals."""
        self.closing = False
        self.listen()

    def listen(self) -> None:
        """Listen to signals: at each request, since one that begins just before the signal may become a stream."""
        self._signals.listen()

    def leave(self) -> None:
        """Stop to listen to signals: the application has ended."""
        self._signals.leave()

    async def turn(self) -> None:
        """Wait until a chunk may be sent, so that sending takes no more than its share of the event loop.

        What comes meanwhile leaves with the same chunk.
        """
        now = asyncio.get_running_loop().time()
        self._next_turn = max(self._next_turn, now) + _CHUNK_SECONDS / _SHARE
        wait = self._next_turn - now
        if wait > _SHORTEST_WAIT:
            await asyncio.sleep(wait)

    def begun(self, stream: EventStream) -> None:
        """Take note of a stream, in a place that was reserved."""
        self._reserved -= 1
        self._streams[stream] = None
        for name, care in (
            ("keep-alives", self._keep_alive_all),
            ("rights", self._renew_again),
            ("servers", self._end_with_servers),
        ):
            # Also where one has failed, and a stream that it ended has not gone, because its client does not read.
            if name not in self._care:
                task = asyncio.create_task(care(), name=f"durable-batches streams' {name}")
                task.add_done_callback(partial(self._care_ended, name))
                self._care[name] = task

    def _care_ended(self, name: str, task: asyncio.Task[None]) -> None:
        if self._care.get(name) is not task:
            return
        # Not by `ended`: it has failed, or was cancelled by others, and nobody would look whether clients may see more.
        del self._care[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s failed: all streams end", task.get_name(), exc_info=error)
        for stream in self._streams:
            stream.end()

    async def ended(self, stream: EventStream) -> None:
        """Take note of a stream's end."""
        del self._streams[stream]
        if not self._streams and self._care:
            care, self._care = list(self._care.values()), {}
            for task in care:
                task.cancel()
            await asyncio.wait(care)

    async def _keep_alive_all(self) -> None:
        """Keep connections alive that have nothing to say."""
        while True:
            await self._clock.sleep(self._keep_alive, housekeeping=True)
            for stream in list(self._streams):
                stream.comment()

    async def _end_with_servers(self) -> None:
        """End the streams of servers that listen no more; those of others, in the same process, go on."""
        ended: set[ServerAddress | None] = set()
        while True:
            await self._clock.sleep(_LISTENING_SECONDS, housekeeping=True)
            stopped = {
                server for server in {stream.server for stream in self._streams} if self._listeners.stopped(server)
            }
            if stopped - ended:
                self._end([stream for stream in self._streams if stream.server in stopped])
            ended = stopped

    async def _renew_again(self) -> None:
        """Look again and again who may see what they are sent.

        Each look has a time of its own, and none waits for another: clients about whom the application cannot be
        asked hold up nobody, however many they are.
        """
        async with asyncio.TaskGroup() as group:
            while True:
                # The last look of this round is answered no later than a minute after the same one of the round before.
                await self._clock.sleep(_RENEWAL_SECONDS - _SPREAD_SECONDS - LOOK_SECONDS, housekeeping=True)
                group.create_task(self._renew_all())

    async def _renew_all(self) -> None:
        streams = list(self._streams)
        looks: list[asyncio.Task[Exception | None]] = []
        async with asyncio.TaskGroup() as group:
            for start in range(0, len(streams), _LOOKS_AT_ONCE):
                if start:
                    pause = _SPREAD_SECONDS * _LOOKS_AT_ONCE / len(streams)
                    await self._clock.sleep(pause, housekeeping=True)
                looks += [
                    group.create_task(stream.renew())
                    for stream in streams[start : start + _LOOKS_AT_ONCE]
                    if stream in self._streams
                ]
        failures = [error for look in looks if (error := look.result()) is not None]
        if failures:
            # Once for all of them: there may be thousands, for one directory that is away.
            _log.error(
                "%d streams end, because their clients' rights could not be looked up",
                len(failures),
                exc_info=failures[0],
                extra={"streams": len(failures)},
            )

    def _cut_off(self, streams: Sequence[EventStream], peers: set[Peer]) -> None:
        stuck = [stream for stream in streams if stream in self._streams]
        for stream in stuck:
            stream.abort()
        cut = shut_down_connections(peers)
        if stuck or cut:
            _log.info(
                "%d streams whose clients did not read were cut off at the end of the server",
                len(stuck),
                extra={"streams": len(stuck), "connections": cut},
            )


class EventStream:
    """A response of server-sent events.

    Args:
        streams: All streams; a place has been reserved.
        chunks: Yields messages, encoded; it is closed with the stream.
        may_go_on: Looks whether the client may still see this.
    """

    def __init__(
        self,
        streams: Streams,
        request: Request,
        chunks: AsyncGenerator[bytes, None],
        may_go_on: Callable[[], Awaitable[bool]],
    ) -> None:
        self._streams = streams
        self._chunks = chunks
        self._may_go_on = may_go_on
        self._send: Send | None = None
        self._sending: asyncio.Task[None] | None = None
        self._commenting: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()
        self._waits = False
        self._waited = False
        self._ends = False
        client = request.client
        self.peer: Peer | None = None if client is None else (client.host, int(client.port))  # text, from one server
        """The address of its client."""
        self.server: ServerAddress | None = server_of(request)
        """The address that it came by."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what there is, until it ends or its client has gone."""
        self._send = send
        self._streams.begun(self)
        sending = self._sending = asyncio.create_task(self._send_all(send), name="durable-batches stream")
        gone = asyncio.create_task(_gone(receive), name="durable-batches stream's client")
        try:
            # Every server is listened to for the end of the connection, whatever it says that it can.
            await asyncio.wait([sending, gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.abort()
            gone.cancel()
            await asyncio.wait([task for task in (sending, gone, self._commenting) if task is not None])
            await self._chunks.aclose()
            await self._streams.ended(self)
        if not sending.cancelled() and (error := sending.exception()) is not None:
            _log.error("a stream ended with an error", exc_info=error)

    def end(self) -> None:
        """Have it end well: at once where it waits for something to send, otherwise with what it sends."""
        self._ends = True
        if self._waits and self._sending is not None:
            self._sending.cancel()

    def abort(self) -> None:
        """End it at once, whatever it sends."""
        self._ends = False
        for task in (self._sending, self._commenting):
            if task is not None:
                task.cancel()

    def comment(self) -> None:
        """Send a comment, where it has waited for something to send since it was asked the last time."""
        is_sending = self._commenting is not None and not self._commenting.done()
        if self._waited and self._waits and self._send is not None and not is_sending:
            self._commenting = asyncio.create_task(self._send_part(self._send, COMMENT))
        self._waited = self._waits

    async def renew(self) -> Exception | None:
        """End it where its client may not see it any more; return the error where that cannot be looked up."""
        failure: Exception | None = None
        try:
            if await self._may_go_on():
                return None
        except Exception as error:  # noqa: BLE001  (of the application: one who cannot be asked does not allow it)
            failure = error
        self.end()
        return failure

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": HTTPStatus.OK.value, "headers": _HEADERS})
        await self._send_part(send, RETRY)
        try:
            await self._send_chunks(send)
        except asyncio.CancelledError:
            if not self._ends:
                raise
            # Asked to end while it waited; the response is to be whole.
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            self._waits = False
        await self._send_part(send, b"", more=False)

    async def _send_chunks(self, send: Send) -> None:
        while not self._ends:
            self._waits = True
            chunk = await anext(self._chunks, None)
            self._waits = self._waited = False
            if chunk is None:
                return
            await self._send_part(send, chunk)

    async def _send_part(self, send: Send, part: bytes, *, more: bool = True) -> None:
        async with self._one_at_a_time:
            await send({"type": "http.response.body", "body": part, "more_body": more})


def server_of(request: Request) -> ServerAddress | None:
    """Return the address that a request came by, where its server knows it."""
    server = request.scope.get("server")
    return None if server is None else (server[0], server[1])


async def _gone(receive: Receive) -> None:
    """Wait until the client has closed the connection, or sends a body that is too large."""
    with suppress(HTTPException):
        while (await receive())["type"] != "http.disconnect":
            pass
