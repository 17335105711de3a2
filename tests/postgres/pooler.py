"""Poolers: a stand-in for one in transaction mode, whose clients share a few sessions of the server, and PgBouncer.

The stand-in speaks as much of the protocol as that takes: each client's start goes to a connection of its own, and all
that it says afterwards to the one of the shared sessions that was used longest ago, which it holds until the server is
ready outside of a transaction.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

_READY = b"Z"
_KEY = b"K"
_IDLE = b"I"
_TERMINATE = b"X"


@asynccontextmanager
async def pooler(port: int, *, sessions: int = 1) -> AsyncGenerator[int]:
    """Before the server on this port of this machine; the port to connect to."""
    shared = 0
    idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    writers: list[asyncio.StreamWriter] = []
    tasks: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal shared
        own = await asyncio.open_connection("127.0.0.1", port)
        writers.extend([writer, own[1]])
        try:
            await _pass_the_start(reader, writer, *own)
            if shared < sessions:
                shared += 1
                idle.put_nowait(own)
            said: asyncio.Queue[bytes] = asyncio.Queue()
            listening = asyncio.create_task(_listen(reader, said))
            tasks.append(listening)
            while (message := await said.get())[:1] != _TERMINATE:
                session = await idle.get()
                session[1].write(message)
                await _pass_a_transaction(said, writer, *session)
                idle.put_nowait(session)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pass_the_start(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    server_reader: asyncio.StreamReader,
    server_writer: asyncio.StreamWriter,
) -> None:
    while True:
        (length,) = struct.unpack("!i", header := await reader.readexactly(4))
        body = await reader.readexactly(length - 4)
        if length == 8:  # it asks for TLS
            writer.write(b"N")
            continue
        server_writer.write(header + body)
        break
    # No password is asked for here.
    while True:
        message = await _message(server_reader)
        # Poolers make up what a client may cancel its statements with.
        writer.write(message[:5] + bytes(len(message) - 5) if message[:1] == _KEY else message)
        if message[:1] == _READY:
            return


async def _pass_a_transaction(
    said: asyncio.Queue[bytes],
    writer: asyncio.StreamWriter,
    server_reader: asyncio.StreamReader,
    server_writer: asyncio.StreamWriter,
) -> None:
    async def pass_on() -> None:
        while True:
            server_writer.write(await said.get())

    passing = asyncio.create_task(pass_on())
    try:
        while True:
            answer = await _message(server_reader)
            writer.write(answer)
            if answer[:1] == _READY and answer[5:6] == _IDLE:
                return
    finally:
        passing.cancel()


async def _listen(reader: asyncio.StreamReader, said: asyncio.Queue[bytes]) -> None:
    while True:
        await said.put(await _message(reader))


async def _message(reader: asyncio.StreamReader) -> bytes:
    header = await reader.readexactly(5)
    (length,) = struct.unpack("!i", header[1:])
    return header + await reader.readexactly(length - 4)


def is_pgbouncer_installed() -> bool:
    return _pgbouncer() is not None


def _pgbouncer() -> str | None:
    # Debian has it among the programs of the system's.
    return shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")


@asynccontextmanager
async def pgbouncer(folder: Path, port: int, mode: str) -> AsyncGenerator[int]:
    """The real one, before the server on this port of this machine; the port to connect to."""
    program = _pgbouncer()
    assert program is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own_port: int = free.getsockname()[1]
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host=127.0.0.1 port={port} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {own_port}\nunix_socket_dir =\nauth_type = any\npool_mode = {mode}\n"
    )
    # Root is what it refuses to run as, and nobody may look into the folder; what stands in /dev/stdin it has open.
    user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
    with settings.open() as given:
        process = await asyncio.create_subprocess_exec(program, "-q", "/dev/fd/0", stdin=given, user=user)
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", own_port)
                except ConnectionError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    break
        yield own_port
    finally:
        process.kill()
        await process.wait()
