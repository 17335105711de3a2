"""Streams: bounded, kept alive, looked at again, and ended in time; in virtual time, without a server."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path

import pytest
from starlette.requests import Request
from tests.support import STAGES, Reading, Thinking, Writing, eventually, everything, turns, within
from tests.web.asgi import Client, Stream, messages_of

from durable_batches import (
    BatchConfig,
    BatchEvent,
    BatchId,
    BatchOrchestrator,
    DocumentStarted,
    MemoryStore,
    Worker,
    workflow,
)
from durable_batches.testing import ManualClock
from durable_batches.web import Access, create_app
from durable_batches.web.event_json import event_bytes

MANY = 125
"""Clients: more than are looked up at once."""

Batches = BatchOrchestrator[str, str, Reading | Thinking | Writing, None]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def gate() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
async def batches(clock: ManualClock, gate: asyncio.Event) -> AsyncGenerator[Batches]:
    @workflow(STAGES, name="held")
    async def run(document: str) -> str:
        await gate.wait()
        return document

    async with BatchOrchestrator(run, worker=Worker(MemoryStore(clock=clock), clock=clock)) as batches:
        await batches.submit(["a"], batch_id="batch")
        async for event in batches.progress("batch"):
            if isinstance(event, DocumentStarted):
                break
        yield batches
        gate.set()


async def read_until(stream: Stream, tag: str) -> None:
    async for message in stream.messages():
        if message.event == tag:
            return


async def test_an_idle_stream_is_kept_alive(clock: ManualClock, batches: Batches) -> None:
    client = Client(create_app(batches, allow_anonymous=True, keep_alive=timedelta(seconds=15)))
    async with client.stream("/batches/batch/progress") as stream:
        await read_until(stream, "document_started")
        for _ in range(3):
            # Asked twice, since it was sent something before the first time.
            for _ in range(2):
                await turns(20)
                clock.advance(15)
                await turns(20)
            assert messages_of((await stream.chunk()).decode())[0].comment == "still here"


async def test_streams_are_bounded_also_in_a_burst(batches: Batches) -> None:
    app = create_app(batches, allow_anonymous=True, max_clients=3)
    client = Client(app)
    streams = [client.begin("GET", "/batches/batch/progress") for _ in range(10)]
    await asyncio.gather(*(stream.begin() for stream in streams))
    assert sorted(stream.status for stream in streams) == [200] * 3 + [503] * 7
    refused = next(stream for stream in streams if stream.status == 503)
    assert refused.headers["retry-after"] == "5"
    for stream in streams:
        stream.leave()
    await asyncio.gather(*(within(stream.task) for stream in streams))
    assert len(app._streams) + app._streams._reserved == 0
    async with client.stream("/batches/batch/progress") as stream:
        assert stream.status == 200


async def test_a_disconnect_releases_everything(batches: Batches) -> None:
    app = create_app(batches, allow_anonymous=True)
    client = Client(app)
    before = asyncio.all_tasks()
    streams = [client.begin("GET", f"/batches/batch/{kind}") for kind in ("progress", "snapshots") for _ in range(50)]
    await asyncio.gather(*(stream.begin() for stream in streams))
    for stream in streams:
        stream.leave()
    await asyncio.gather(*(within(stream.task) for stream in streams))
    assert len(app._streams) == 0
    await eventually(lambda: not {t.get_name() for t in asyncio.all_tasks() - before if "stream" in t.get_name()})
    assert not batches.worker.news.watched


async def test_streams_end_well_when_the_server_stops(batches: Batches) -> None:
    app = create_app(batches, allow_anonymous=True)
    client = Client(app)
    async with client.stream("/batches/batch/progress") as waiting, client.stream("/batches/batch/snapshots") as other:
        await read_until(waiting, "document_started")
        app.close_streams()
        assert await everything(waiting.messages()) == []
        await everything(other.messages())
        await within(waiting.task)
        await within(other.task)
        assert waiting.ended
        assert other.ended
        assert (await client.get("/batches/batch/progress")).status == 503


@pytest.mark.usefixtures("signal_clock")
@pytest.mark.parametrize("first", ["start", "/batches"])
async def test_a_stream_that_begins_after_the_signal_is_refused(batches: Batches, first: str) -> None:
    """Its request came before, or its connection: the server waits for it, and it would be told of nothing."""
    app = create_app(batches, allow_anonymous=True)
    handled: list[int] = []
    found = signal.signal(signal.SIGTERM, lambda number, _: handled.append(number))
    client = Client(app)
    if first == "start":
        app._streams.open()
    else:
        assert (await client.get(first)).status == 200
    signal.raise_signal(signal.SIGTERM)
    await turns(2)
    assert (await client.get("/batches/batch/progress")).status == 503
    assert (await client.get("/ready")).status == 503
    app._streams.leave()
    assert handled == [signal.SIGTERM]
    signal.signal(signal.SIGTERM, found)


@pytest.mark.real_time("the grace is of the server's own loop, as its signals are")
async def test_clients_that_do_not_read_are_cut_off(batches: Batches) -> None:
    app = create_app(batches, allow_anonymous=True)
    stream = Client(app).begin("GET", "/batches/batch/progress")
    stream.reads.clear()
    await eventually(lambda: len(app._streams) == 1)
    app.close_streams()
    await within(stream.task)
    assert not stream.ended
    assert len(app._streams) == 0


def listener_at(port: int) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not show the open files of a process")
async def test_streams_end_with_the_server_that_listens_no_more(clock: ManualClock, batches: Batches) -> None:
    """Its process has heard of no signal: a worker of Hypercorn, or a server in a thread."""
    app = create_app(batches, allow_anonymous=True)
    with listener_at(0) as stops, listener_at(0) as goes_on:
        port: int = stops.getsockname()[1]
        client = Client(app, server=("127.0.0.1", port))
        other = Client(app, server=goes_on.getsockname())
        async with (
            client.stream("/batches/batch/progress") as ending,
            other.stream("/batches/batch/progress") as staying,
            Client(app).stream("/batches/batch/progress") as unknown,
        ):
            for stream in (ending, staying, unknown):
                await read_until(stream, "document_started")
            clock.advance(5)
            await turns(20)
            stops.close()
            # A connection that is open still: its server would wait for it.
            assert (await client.get("/batches/batch/progress")).status == 503
            await turns(20)
            clock.advance(0.5)
            assert await within(everything(ending.messages())) == []
            assert ending.ended
            await turns(20)
            assert not staying.task.done()
            assert not unknown.task.done()
            assert (await client.get("/batches/batch")).status == 200
            with listener_at(port):
                # Another server of the same application.
                async with client.stream("/batches/batch/progress") as again:
                    await read_until(again, "document_started")
                    await turns(20)
                    clock.advance(5)
                    await turns(20)
                    assert not again.task.done()


async def test_rights_are_looked_at_again_every_minute(clock: ManualClock, batches: Batches) -> None:
    access: Access | None = Access(actions={"read"})
    asked = 0

    async def authorize(request: Request) -> Access | None:
        nonlocal asked
        asked += 1
        return access

    client = Client(create_app(batches, authorize=authorize, keep_alive=timedelta(seconds=15)))
    async with client.stream("/batches/batch/progress") as stream:
        await read_until(stream, "document_started")
        for _ in range(8):
            await turns(20)
            clock.advance(15)
            await turns(20)
        assert asked == 3
        access = Access(actions={"read"}, metadata={"tenant": "other"})
        for _ in range(4):
            await turns(20)
            clock.advance(15)
            await turns(20)
        async for message in stream.messages():
            assert message.comment
        assert stream.ended


async def test_who_cannot_be_asked_again_sees_nothing_more(clock: ManualClock, batches: Batches) -> None:
    away = False

    async def authorize(request: Request) -> Access | None:
        if away:
            raise RuntimeError("the directory is away")
        return Access(actions={"read"})

    client = Client(create_app(batches, authorize=authorize, keep_alive=timedelta(seconds=60)))
    async with client.stream("/batches/batch/progress") as stream:
        away = True
        await turns(20)
        clock.advance(60)
        await everything(stream.messages())
        assert stream.ended


async def test_an_answer_that_never_comes_is_a_refusal_and_holds_up_no_other_stream(
    clock: ManualClock, batches: Batches
) -> None:
    hangs = False

    async def authorize(request: Request) -> Access | None:
        if hangs and "hangs" in request.query_params:
            await asyncio.Event().wait()
        return Access(actions={"read"})

    client = Client(create_app(batches, authorize=authorize, keep_alive=timedelta(seconds=15)))
    async with (
        client.stream("/batches/batch/progress?hangs=yes") as hung,
        client.stream("/batches/batch/progress") as other,
    ):
        for stream in (hung, other):
            await read_until(stream, "document_started")
        hangs = True
        for _ in range(6):
            await turns(20)
            clock.advance(15)
            await turns(20)
        await within(everything(hung.messages()))
        assert hung.ended
        comments = [(await within(anext(aiter(other.messages())))).comment for _ in range(5)]
        assert comments == ["still here"] * 5
        assert not other.ended


async def test_clients_about_whom_nobody_answers_end_within_a_minute_and_hold_up_no_others(
    clock: ManualClock, batches: Batches, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where they are hundreds, and come first."""
    hangs = False
    asked: list[int] = []
    since = 0.0

    async def authorize(request: Request) -> Access | None:
        asked.append(int(clock.boot() - since))
        if hangs and "hangs" in request.query_params:
            await asyncio.Event().wait()
        return Access(actions={"read"})

    app = create_app(batches, authorize=authorize)
    client = Client(app)
    hung = [client.begin("GET", "/batches/batch/progress?hangs=yes") for _ in range(MANY)]
    await asyncio.gather(*(stream.begin() for stream in hung))
    others = [client.begin("GET", "/batches/batch/progress") for _ in range(MANY)]
    await asyncio.gather(*(stream.begin() for stream in others))
    asked.clear()
    hangs, since = True, clock.boot()
    for _ in range(60):
        await turns(10)
        clock.advance(1)
        await turns(10)
    await asyncio.gather(*(within(everything(stream.messages())) for stream in hung))
    # Fifty looks began in each moment, and none waited for another.
    assert (len(asked), min(asked), max(asked)) == (2 * MANY, 45, 49)
    assert len(app._streams) == MANY
    (record,) = caplog.records
    assert f"{MANY} streams end, because their clients' rights could not be looked up" in record.getMessage()
    # The others are looked at again, at least each minute.
    asked.clear()
    for _ in range(60):
        await turns(10)
        clock.advance(1)
        await turns(10)
    assert len(asked) >= MANY
    assert len(app._streams) == MANY
    for stream in others:
        stream.leave()
    await asyncio.gather(*(within(stream.task) for stream in others))


async def test_rights_are_looked_at_each_minute_however_seldom_comments_are(
    clock: ManualClock, batches: Batches
) -> None:
    access: Access | None = Access(actions={"read"})

    async def authorize(request: Request) -> Access | None:
        return access

    client = Client(create_app(batches, authorize=authorize, keep_alive=timedelta(hours=1)))
    async with client.stream("/batches/batch/progress") as stream:
        await read_until(stream, "document_started")
        access = None
        await turns(20)
        clock.advance(60)
        await within(everything(stream.messages()))
        assert stream.ended


async def test_streams_that_nobody_looks_after_end(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(batches, allow_anonymous=True)
    client = Client(app)

    async def broken(self: object) -> None:
        raise RuntimeError("a fault of the library's own")

    async with client.stream("/batches/batch/progress") as waiting:
        await read_until(waiting, "document_started")
        monkeypatch.setattr("durable_batches.web.streams.Streams._renew_again", broken)
        waiting.reads.clear()
        app._streams._care["rights"].cancel()
        await turns(4)
        # One whose client does not read has not gone yet: those that begin now are looked after all the same.
        async with client.stream("/batches/batch/progress") as stream:
            await within(everything(stream.messages()))
            assert stream.ended
        assert not waiting.task.done()
        waiting.reads.set()
        await within(everything(waiting.messages()))
        assert waiting.ended


async def test_one_event_is_encoded_once_however_many_follow(
    batches: Batches, gate: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []

    def counted(event: BatchEvent) -> bytes:
        encoded.append(event.seq)
        return event_bytes(event)

    monkeypatch.setattr("durable_batches.web.frames.event_bytes", counted)
    client = Client(create_app(batches, allow_anonymous=True))
    streams = [client.begin("GET", "/batches/batch/progress") for _ in range(100)]
    await asyncio.gather(*(stream.begin() for stream in streams))
    gate.set()
    found = await asyncio.gather(*(everything(stream.messages()) for stream in streams))
    assert len({tuple(message.id for message in messages) for messages in found}) == 1
    assert len(encoded) <= 2 * len(found[0])
    for stream in streams:
        await within(stream.task)


async def test_many_events_leave_in_few_chunks(clock: ManualClock) -> None:
    @workflow(STAGES, name="quick")
    async def run(document: int) -> int:
        return document

    store = MemoryStore(clock=clock)
    async with BatchOrchestrator(run, worker=Worker(store, clock=clock)) as batches:
        await batches.submit(range(1_000), batch_id="batch", config=BatchConfig(concurrency=100))
        events = await everything(batches.progress("batch"))
        async with Client(create_app(batches, allow_anonymous=True)).stream("/batches/batch/progress") as stream:
            found = await everything(stream.messages())
            assert [message.id for message in found] == [event.seq for event in events]
            assert stream.chunks <= len(events) / 200 + 3


async def test_another_batch_may_have_the_id_of_one_that_was_deleted(clock: ManualClock) -> None:
    @workflow(STAGES, name="quick")
    async def run(document: str) -> str:
        return document

    store = MemoryStore(clock=clock)
    async with BatchOrchestrator(run, worker=Worker(store, clock=clock)) as batches:
        client = Client(create_app(batches, allow_anonymous=True))
        for document in ("monday", "friday"):
            await batches.submit([document], batch_id="nightly", document_id=str)
            await batches.result("nightly")
            created = (await batches.snapshot("nightly")).created_at
            async with client.stream("/batches/nightly/progress") as stream:
                messages = await everything(stream.messages())
            shown = {message.json.get("document_id", document) for message in messages if message.data}
            assert shown == {document}
            async with client.stream("/batches/nightly/snapshots") as stream:
                *_, last = await everything(stream.messages())
            assert last.json["created_at"] == created.isoformat().replace("+00:00", "Z")
            del store._batches[BatchId("nightly")]
            clock.advance(1)
