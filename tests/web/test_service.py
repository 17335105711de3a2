"""A deploy of a service under uvicorn, with a stream open, a response that never ends, and a call that is paid for."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Final

import pytest
from tests.support import eventually, opened, unmeasured, within
from tests.web.service import FILE, GO, LOG

from durable_batches import BatchId, DocumentReleased, SQLiteStore
from durable_batches.lifecycle.events import decode_event

ROOT: Final = Path(__file__).parents[2]

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("warm_interpreters")]


@asynccontextmanager
async def service(folder: Path) -> AsyncGenerator[tuple[asyncio.subprocess.Process, tuple[str, int]]]:
    """A process of the service, and its address."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "uvicorn", "tests.web.service:app"),
            *("--fd", str(listener.fileno()), "--log-level", "warning"),
            cwd=folder,
            env=unmeasured() | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"},
            pass_fds=[listener.fileno()],
            stderr=subprocess.PIPE,
        )
        address = listener.getsockname()
    try:
        yield process, address
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def is_running(process: asyncio.subprocess.Process) -> bool:
    """Whether it has not ended; asked anew each time."""
    return process.returncode is None


@asynccontextmanager
async def response(
    address: tuple[str, int], path: str, begins: bytes
) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A response that has begun."""
    reader, writer = await within(asyncio.open_connection(*address))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    await within(reader.readuntil(begins))
    try:
        yield reader, writer
    finally:
        writer.close()


async def has_released(folder: Path) -> bool:
    """Whether the one document was released, because the worker stops."""
    async with opened(SQLiteStore(folder / FILE)) as store:
        records = await store.events(BatchId("monday"), after=0, limit=1_000)
    reasons = [event.reason for event in map(decode_event, records) if isinstance(event, DocumentReleased)]
    return reasons == ["shutdown"]


async def test_what_runs_finishes_and_nothing_begins_while_uvicorn_waits_for_its_responses(tmp_path: Path) -> None:
    def begun() -> list[str]:
        return (tmp_path / LOG).read_text().splitlines() if (tmp_path / LOG).exists() else []

    async with service(tmp_path) as (process, address):
        async with (
            response(address, "/durable/batches/monday/progress", b"event: document_started") as (stream, _),
            response(address, "/forever", b"begun") as (_, client),
        ):
            await eventually(lambda: begun() == ["one"])
            process.send_signal(signal.SIGTERM)
            # The stream is whole, though the call runs on and the other response never ends.
            assert (await within(stream.read())).endswith(b"0\r\n\r\n")
            (tmp_path / GO).touch()
            await eventually(lambda: has_released(tmp_path))
            assert is_running(process)
            assert begun() == ["one"]
            client.close()
        _, errors = await within(process.communicate())
        assert (process.returncode, errors) == (-signal.SIGTERM, b"closed\n")
    assert begun() == ["one"]
    async with service(tmp_path) as (process, address):
        await eventually(lambda: begun() == ["one", "ONE?", "two", "TWO?"])
        process.send_signal(signal.SIGTERM)
        _, errors = await within(process.communicate())
        assert (process.returncode, errors) == (-signal.SIGTERM, b"closed\n")
