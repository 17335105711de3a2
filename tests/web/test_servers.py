"""The application on a real server, in a process of its own: resumed, and stopped in time whatever its clients do."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from tests.cli.commands import translate
from tests.support import everything, unmeasured, within
from tests.web.asgi import Message, messages_of
from tests.web.servers import TOKEN, Server, served, serving

from durable_batches import BatchConfig, BatchOrchestrator, SQLiteStore
from durable_batches.cli.exits import Exit
from durable_batches.web import event_of

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("warm_interpreters")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "batches.db"


@pytest.fixture
async def waiting(path: Path) -> Path:
    """A file with a batch that nobody runs."""
    async with BatchOrchestrator(translate, store=SQLiteStore(path), max_in_flight=0) as batches:
        await batches.submit(["one", "two"], batch_id="monday", document_id=str)
    return path


async def run_all(path: Path) -> list[str]:
    """Run the batches of a file to their end; return the events of the one."""
    async with BatchOrchestrator(translate, store=SQLiteStore(path)) as batches:
        await within(batches.result("monday"))
        return [event.tag for event in await everything(batches.progress("monday"))]


async def read(server: Server, *, after: int, most: int = 1_000_000) -> list[Message]:
    """So many events of the stream, or all to its end."""
    text = ""
    async with (
        server.client() as client,
        client.stream("GET", "/batches/monday/progress", headers={"Last-Event-ID": str(after)}) as response,
    ):
        assert response.status_code == 200
        async for part in response.aiter_text():
            text += part
            if len([message for message in messages_of(text) if message.id]) >= most:
                break
    return [message for message in messages_of(text) if message.id][:most]


async def test_it_serves_whoever_has_the_token(waiting: Path) -> None:
    async with serving(waiting, token="") as server:
        address, _, token = server.address.partition("#token=")
        assert len(token) > 20
        async with httpx.AsyncClient(base_url=address) as client:
            refused = await client.get("batches")
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            # As somebody with curl needs to be told.
            assert "Authorization: Bearer TOKEN" in refused.json()["detail"]
            assert (await client.get("batches", headers={"Authorization": f"Bearer {token}x"})).status_code == 401
            listed = await client.get("batches", headers={"Authorization": f"Bearer {token}"})
            assert [batch["batch_id"] for batch in listed.json()["batches"]] == ["monday"]
            page = await client.get("")
            assert page.headers["content-type"].startswith("text/html")
            cancelled = await client.post("batches/monday/cancel", headers={"Authorization": f"Bearer {token}"})
            assert cancelled.json() == {"cancelled": True}


OWN = """
from durable_batches import BatchClient, SQLiteStore
from durable_batches.web import Access, create_app


async def authorize(request):
    return Access(actions={"read"}) if request.headers.get("x-user") == "me" else None


def make():
    return create_app(BatchClient(SQLiteStore("batches.db")), authorize=authorize)
"""


async def test_it_serves_an_application_of_the_users_with_its_own_rights(waiting: Path) -> None:
    (waiting.parent / "own.py").write_text(OWN)
    async with served("--app", "own:make", "--port", "0", cwd=waiting.parent) as server:
        assert "#" not in server.address
        async with httpx.AsyncClient(base_url=server.address) as client:
            assert (await client.get("batches", headers={"Authorization": f"Bearer {TOKEN}"})).status_code == 401
            shown = await client.get("batches/monday", headers={"X-User": "me"})
            assert shown.json()["batch_id"] == "monday"
            assert (await client.post("batches/monday/cancel", headers={"X-User": "me"})).status_code == 403
        server.process.send_signal(signal.SIGTERM)
        await within(server.process.communicate())
        assert server.process.returncode == -signal.SIGTERM
    # Without its store, it does not start.
    waiting.unlink()
    async with served("--app", "own:make", "--port", "0", cwd=waiting.parent) as server:
        _, errors = await within(server.process.communicate())
        assert (server.process.returncode, b"StoreNotFoundError" in errors) == (Exit.ERROR, True)


async def test_it_can_refuse_commands(waiting: Path) -> None:
    options = ("--read-only", "--host", "127.0.0.1", "--token", TOKEN, "--schema", "of no file")
    async with serving(waiting, *options, token="") as server, server.client() as client:
        assert (await client.post("/batches/monday/cancel")).status_code == 403
        assert (await client.get("/batches/monday")).json()["state"]["tag"] == "pending"


async def test_a_stream_goes_on_where_it_was_after_server_and_worker_were_killed(waiting: Path) -> None:
    async with serving(waiting) as server:
        found = await within(read(server, after=0, most=1))
        server.process.kill()
        await server.process.wait()
    async with serving(waiting) as server:
        reading = asyncio.create_task(read(server, after=found[-1].id or 0))
        tags = await run_all(waiting)
        found += await within(reading)
    assert [message.event for message in found] == tags
    assert [message.id for message in found] == list(range(1, len(tags) + 1))
    assert [event_of(message.data).seq for message in found] == [message.id for message in found]


async def test_streams_end_well_when_it_is_told_to_stop(waiting: Path) -> None:
    async with serving(waiting) as server:
        readers = [await asyncio.open_connection(*server.peer) for _ in range(20)]
        for number, (_, writer) in enumerate(readers):
            kind = "progress" if number % 2 else "snapshots"
            head = f"GET /batches/monday/{kind} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
            writer.write(head.encode())
        for reader, _ in readers:
            await within(reader.readuntil(b"data: "))
        server.process.send_signal(signal.SIGTERM)
        for reader, writer in readers:
            # The last chunk: the response is whole.
            assert (await within(reader.read())).endswith(b"0\r\n\r\n")
            writer.close()
        _, errors = await within(server.process.communicate())
        assert server.process.returncode == -signal.SIGTERM
        assert b"Traceback" not in errors


async def test_clients_that_never_read_do_not_keep_it_from_stopping(path: Path) -> None:
    async with BatchOrchestrator(translate, store=SQLiteStore(path)) as batches:
        documents = map(str, range(3_000))
        await batches.submit(documents, batch_id="monday", document_id=str, config=BatchConfig(concurrency=200))
        await within(batches.result("monday"))
    async with serving(path) as server:
        with closing(socket.socket()) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(server.peer)
            client.sendall(
                f"GET /batches/monday/progress HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
            )
            assert client.recv(64).startswith(b"HTTP/1.1 200")
            server.process.send_signal(signal.SIGTERM)
            await within(server.process.communicate())
            assert server.process.returncode == -signal.SIGTERM


async def test_an_address_that_is_taken_is_said(waiting: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("durable-batches")),
            *("serve", "--store", str(waiting), "--port", str(port)),
            env=unmeasured(),
            stderr=subprocess.PIPE,
        )
        _, errors = await within(process.communicate())
    assert process.returncode == 1
    assert errors.decode().startswith(f"durable-batches: cannot listen at 127.0.0.1, port {port}: ")
