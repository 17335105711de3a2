"""`durable-batches serve` in a process of its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import httpx
from tests.support import unmeasured, within

TOKEN: Final = "a-token"
BEARER: Final = {"Authorization": f"Bearer {TOKEN}"}


class Server(NamedTuple):
    process: asyncio.subprocess.Process
    address: str

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.address, headers=BEARER, timeout=None)

    @property
    def peer(self) -> tuple[str, int]:
        parts = urlsplit(self.address)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port


@asynccontextmanager
async def serving(path: Path, *options: str, token: str = TOKEN, port: int = 0) -> AsyncGenerator[Server]:
    """A server of a file; it is killed at the end, unless it has ended before."""
    async with served("--store", str(path), "--port", str(port), *options, token=token) as server:
        yield server


@asynccontextmanager
async def served(*options: str, token: str = "", cwd: Path | None = None) -> AsyncGenerator[Server]:
    """A server with these options, in a folder; it is killed at the end, unless it has ended before."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("durable-batches")),
        *("serve", *options),
        cwd=cwd,
        env=unmeasured() | ({"DURABLE_BATCHES_TOKEN": token} if token else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = (await within(process.stdout.readline())).decode()
        assert line.startswith("listening on http://127.0.0.1:"), (line, await process.communicate())
        yield Server(process, line.removeprefix("listening on ").strip())
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
