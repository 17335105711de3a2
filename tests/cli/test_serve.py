"""The command `serve`: what its connections are like, and what it serves. What it answers is in tests/web."""

from __future__ import annotations

import asyncio
import importlib
import socket
import sys
from pathlib import Path

import pytest
from tests.cli.commands import Commands
from tests.support import within
from tests.web.asgi import Client

from durable_batches import BatchClient, MemoryStore
from durable_batches.cli.exits import Exit
from durable_batches.cli.serve import _app_at, _of_store, listener_at


async def test_small_packets_are_not_held_back() -> None:
    undelayed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        undelayed.set_result(bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
        writer.close()

    with listener_at("127.0.0.1", 0) as listener:
        address, port = listener.getsockname()
        async with await asyncio.start_server(accept, sock=listener):
            _, writer = await asyncio.open_connection(address, port)
            assert await within(undelayed)
            writer.close()


async def test_no_store_takes_commands_where_they_are_refused() -> None:
    """Also one of the user's that cannot be opened for reading only."""
    async with BatchClient(MemoryStore()) as client:
        app = Client(_of_store(client, "token", read_only=True), headers={"authorization": "Bearer token"})
        for command in ("cancel", "pause", "resume", "update"):
            assert (await app.post(f"/batches/monday/{command}")).status == 403
        assert (await app.get("/batches")).status == 200


OWN = """
from durable_batches import BatchClient, MemoryStore
from durable_batches.web import create_app

client = BatchClient(MemoryStore())
app = create_app(client, allow_anonymous=True)
number = 3


def make():
    return app


def fails():
    raise RuntimeError("no settings")


def takes(scope, receive, send): ...


async def makes():
    return app


class Flask:
    def __call__(self, environ, start_response): ...


wsgi = Flask()
"""


def test_what_is_no_application(on_file: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named in one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_app.py").write_text(OWN)
    for target, says in (
        ("app", "'app' names no application; give module:name"),
        ("no_such_module_here:app", "there is no module 'no_such_module_here' for the application"),
        ("own_app:nothing", "the module 'own_app' has no 'nothing'"),
        ("own_app:number", "own_app:number is no application, but of type int"),
        ("own_app:client", "but of type BatchClient; create_app(..., authorize=...) of durable_batches.web makes one"),
        ("own_app:fails", "own_app:fails failed: RuntimeError: no settings"),
        ("own_app:makes", "own_app:makes is an async function"),
        ("own_app:wsgi", "own_app:wsgi is no application of ASGI"),
    ):
        ran = on_file.bare("serve", "--app", target)
        assert (ran.code, ran.out, len(ran.err.splitlines())) == (Exit.USAGE, "", 1), target
        assert says in ran.err, ran.err
    for options in (on_file.target, ("--token", "x"), ("--read-only",), ("--schema", "x")):
        ran = on_file.bare("serve", "--app", "own_app:app", *options)
        assert (ran.code, f"leave out {options[0]}" in ran.err) == (Exit.USAGE, True), ran.err
    module = importlib.import_module("own_app")
    assert [_app_at(f"own_app:{name}") for name in ("app", "make", "takes")] == [module.app, module.app, module.takes]
    del sys.modules["own_app"]
