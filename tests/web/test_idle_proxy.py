"""A stream through a proxy that cuts what is idle, as most do after a minute; time passes by a clock of the test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from datetime import timedelta
from typing import Final

import httpx
import pytest
import uvicorn
from httpx_sse import aconnect_sse
from tests.support import NO_DRAIN, STAGES, everything, turns, within
from tests.web.asgi import Message, messages_of

from durable_batches import BatchOrchestrator, DocumentStarted, MemoryStore, Worker, workflow
from durable_batches.clock import Timer
from durable_batches.testing import ManualClock
from durable_batches.web import create_app, event_of

IDLE_SECONDS: Final = 60
DAY: Final = timedelta(days=1)


class IdleProxy:
    """Passes on what comes, and resets a connection on which nothing came, from either side, for a minute."""

    def __init__(self, clock: ManualClock, port: int) -> None:
        self.port: int = 0
        self.cut: int = 0
        """Connections so far that were idle for too long."""
        self._clock = clock
        self._target = port

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[str]:
        """Listen; the address."""
        async with await asyncio.start_server(self._connected, "127.0.0.1", 0) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._target)
        idle: list[Timer] = []

        def cut() -> None:
            self.cut += 1
            writer.transport.abort()
            their_writer.transport.abort()

        def heard() -> None:
            for timer in idle:
                timer.cancel()
            idle[:] = [self._clock.call_later(IDLE_SECONDS, cut)]

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(65_536):
                    heard()
                    target.write(data)
                    await target.drain()
            except ConnectionError:
                pass  # cut, or left by its client
            finally:
                target.close()

        heard()
        await asyncio.gather(pump(reader, their_writer), pump(their_reader, writer))
        for timer in idle:
            timer.cancel()


class Held:
    """A batch whose one document waits, and the server of its progress behind the proxy."""

    def __init__(self, clock: ManualClock, keep_alive: timedelta) -> None:
        self.gate = asyncio.Event()
        gate = self.gate

        @workflow(STAGES, name="held")
        async def run(document: str) -> str:
            await gate.wait()
            return document

        store = MemoryStore(clock=clock)
        worker = Worker(store, lease=DAY, max_stall=DAY, drain=NO_DRAIN, blocked_warning=None, clock=clock)
        self.batches = BatchOrchestrator(run, worker=worker)
        self.app = create_app(self.batches, allow_anonymous=True, keep_alive=keep_alive)
        self._clock = clock

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[tuple[httpx.AsyncClient, IdleProxy]]:
        """Serve it; a client that comes by way of the proxy."""
        with closing(socket.create_server(("127.0.0.1", 0))) as listener:
            async with self.batches:
                await self.batches.submit(["a"], batch_id="monday")
                async for event in self.batches.progress("monday"):
                    if isinstance(event, DocumentStarted):
                        break
                server = uvicorn.Server(uvicorn.Config(self.app, lifespan="off", log_level="warning"))
                serving = asyncio.create_task(server.serve([listener]))
                proxy = IdleProxy(self._clock, listener.getsockname()[1])
                async with proxy.open() as address, httpx.AsyncClient(base_url=address, timeout=None) as client:
                    yield client, proxy
                server.should_exit = True
                await within(serving)

    async def up_to_now(self, messages: AsyncIterator[Message]) -> list[Message]:
        """The events of a stream until the one that the batch is at: it stands still, while its document waits."""
        found: list[Message] = []
        seq = (await self.batches.snapshot("monday")).seq
        while not found or found[-1].id != seq:
            message = await within(anext(messages))
            found += [message] if message.id else []
        return found


async def parts(response: httpx.Response) -> AsyncIterator[Message]:
    """The messages of a stream, comments included."""
    text = ""
    async for part in response.aiter_text():
        whole, _, text = (text + part).rpartition("\n\n")
        for message in messages_of(f"{whole}\n\n" if whole else ""):
            yield message


def progress_after(client: httpx.AsyncClient, seq: int) -> AbstractAsyncContextManager[httpx.Response]:
    return client.stream("GET", "/batches/monday/progress", headers={"Last-Event-ID": str(seq)})


async def test_keep_alives_hold_a_stream_that_has_nothing_to_say() -> None:
    clock = ManualClock()
    held = Held(clock, timedelta(seconds=15))
    async with held.open() as (client, proxy), progress_after(client, 0) as response:
        messages = parts(response)
        found = await held.up_to_now(messages)
        # The first time that it is asked, it has just sent something.
        clock.advance(15)
        await turns(20)
        for _ in range(40):
            clock.advance(15)
            assert (await within(anext(messages))).comment == "still here"
        held.gate.set()
        async for message in messages:
            found += [message] if message.id else []
        assert proxy.cut == 0
        assert [event_of(message.data) for message in found] == await everything(held.batches.progress("monday"))


async def test_a_stream_that_was_cut_goes_on_where_it_was() -> None:
    clock = ManualClock()
    held = Held(clock, timedelta(hours=1))
    async with held.open() as (client, proxy):
        found: list[Message] = []
        for cut in (1, 2, 3):
            async with progress_after(client, found[-1].id or 0 if found else 0) as response:
                assert response.status_code == 200
                messages = parts(response)
                if not found:
                    found = await held.up_to_now(messages)
                else:
                    # It has begun: what says when to come back, and nothing twice.
                    assert (await within(anext(messages))).id is None
                clock.advance(IDLE_SECONDS)
                with pytest.raises(httpx.TransportError):
                    await within(anext(messages))
            assert proxy.cut == cut
        held.gate.set()
        async with progress_after(client, found[-1].id or 0) as response:
            found += [message async for message in parts(response) if message.id]
        assert [event_of(message.data) for message in found] == await everything(held.batches.progress("monday"))


async def test_another_client_reads_progress_exactly() -> None:
    clock = ManualClock()
    held = Held(clock, timedelta(seconds=15))
    async with held.open() as (client, _), aconnect_sse(client, "GET", "/batches/monday/progress") as source:
        held.gate.set()
        # It also yields the time until the next attempt, which is no event: browsers do not.
        found = [each async for each in source.aiter_sse() if each.data]
        events = await everything(held.batches.progress("monday"))
        assert [event_of(each.data) for each in found] == events
        assert [(each.id, each.event) for each in found] == [(str(event.seq), event.tag) for event in events]
