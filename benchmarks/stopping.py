"""How long servers take from SIGTERM to their end, with streams open, of which some are never read.

    python -m benchmarks.stopping [--servers uvicorn hypercorn] [--readers 20] [--stuck 0 5]

Each server that is installed serves an SQLite file in a process of its own, without options that bound its end. A
reader follows a batch that does nothing; one that is stuck asks for a history of several megabytes and never reads it.
For each server and number of stuck clients:

streams: how long after the signal the last reader's stream has ended, and how many of these are whole
gone: how long after it the process has ended, and its exit code

Everything stays on the loopback interface, is bounded in time, and ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal
from urllib.request import urlopen

from starlette.applications import Starlette
from starlette.routing import Mount

from durable_batches import (
    BatchClient,
    BatchConfig,
    BatchOrchestrator,
    BatchStateMachine,
    SQLiteStore,
    Stage,
    durable_activity,
    workflow,
)
from durable_batches.web import WebApp, create_app

FILE: Final = "BENCHMARK_FILE"
HISTORY: Final = 6_000
"""Documents of the batch whose events those that never read ask for: more than the buffers of a connection hold."""
PATIENCE: Final = 60.0

MODULE: Final = "benchmarks.stopping"
SERVERS: Final = {
    "uvicorn": ("uvicorn", "--port", "PORT", f"{MODULE}:alone", "--factory"),
    "uvicorn-h11": ("uvicorn", "--port", "PORT", f"{MODULE}:alone", "--factory", "--http", "h11", "--loop", "asyncio"),
    "uvicorn-mounted": ("uvicorn", "--port", "PORT", f"{MODULE}:mounted", "--factory"),
    "uvicorn-reload": ("uvicorn", "--port", "PORT", f"{MODULE}:alone", "--factory", "--reload"),
    "uvicorn-workers": ("uvicorn", "--port", "PORT", f"{MODULE}:alone", "--factory", "--workers", "2"),
    "gunicorn-uvicorn": ("gunicorn", "-b", "127.0.0.1:PORT", f"{MODULE}:alone()", "-k", "uvicorn_worker.UvicornWorker"),
    "gunicorn-asgi": ("gunicorn", "-b", "127.0.0.1:PORT", f"{MODULE}:alone()", "-k", "asgi"),
    "hypercorn": ("hypercorn", "-b", "127.0.0.1:PORT", f"{MODULE}:alone()"),
    "hypercorn-single": ("hypercorn", "-b", "127.0.0.1:PORT", f"{MODULE}:alone()", "--workers", "0"),
    "granian": ("granian", "--interface", "asgi", "--port", "PORT", "--factory", f"{MODULE}:alone"),
}
"""Their command lines, as `python -m` takes them."""
OWN: Final = (
    "-c",
    "from durable_batches.cli import main; main()",
    "serve",
    "--port",
    "PORT",
    "--app",
    f"{MODULE}:alone",
)
ALL: Final = [*SERVERS, "serve"]


class Reading(Stage):
    tag: Literal["reading"] = "reading"


@durable_activity(stage=Reading)
async def read(text: str) -> str:
    return text


@workflow(BatchStateMachine(Reading), name="read")
async def reads(text: str) -> str:
    return await read(text)


# ---- what is served --------------------------------------------------------------------------------------------------


def alone() -> WebApp:
    """The application by itself."""
    return create_app(BatchClient(SQLiteStore(os.environ[FILE])), allow_anonymous=True)


def mounted() -> Starlette:
    """The application in another one, which opens the client."""
    client = BatchClient(SQLiteStore(os.environ[FILE]))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        async with client:
            yield

    return Starlette(routes=[Mount("/mounted", create_app(client, allow_anonymous=True))], lifespan=lifespan)


async def fill(path: Path) -> None:
    async with BatchOrchestrator(reads, store=SQLiteStore(path), max_in_flight=200) as batches:
        texts = (f"{'x' * 200}{number}" for number in range(HISTORY))
        await batches.submit(texts, batch_id="history", document_id=str, config=BatchConfig(concurrency=200))
        await batches.result("history")
    async with BatchOrchestrator(reads, store=SQLiteStore(path), max_in_flight=0) as batches:
        await batches.submit(["never run"], batch_id="idle")


# ---- a server, and its clients ---------------------------------------------------------------------------------------


@contextmanager
def serving(server: str, path: Path) -> Generator[tuple[subprocess.Popen[bytes], int]]:
    """A server in a group of processes of its own, which is killed at the end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    command = OWN if server == "serve" else ("-m", *SERVERS[server])
    process = subprocess.Popen(
        [sys.executable, *(word.replace("PORT", str(port)) for word in command)],
        env=os.environ | {FILE: str(path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}{root_of(server)}/ready", process)
        yield process, port
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_installed(server: str) -> bool:
    needed = ["uvicorn"] if server == "serve" else [SERVERS[server][0]]
    if server == "gunicorn-uvicorn":
        needed.append("uvicorn_worker")
    return all(find_spec(module) is not None for module in needed)


def root_of(server: str) -> str:
    return "/mounted" if server.endswith("mounted") else ""


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        try:
            with urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{' '.join(map(str, process.args))} does not answer")  # type: ignore[arg-type]


def connected(port: int, path: str, *, buffer: int | None = None) -> socket.socket:
    client = socket.socket()
    if buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.settimeout(PATIENCE)
    client.connect(("127.0.0.1", port))
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return client


def rest_of(client: socket.socket) -> bytes:
    """What comes to the end of the connection, however it ends."""
    received = b""
    try:
        while part := client.recv(65_536):
            received += part
    except OSError:
        pass
    return received


def measure(server: str, path: Path, readers: int, stuck: int) -> str:
    with ExitStack() as stack:
        process, port = stack.enter_context(serving(server, path))
        root = root_of(server)
        following = [
            stack.enter_context(connected(port, f"{root}/batches/idle/{('progress', 'snapshots')[number % 2]}"))
            for number in range(readers)
        ]
        for client in following:
            received = b""
            while b"data: " not in received:
                received += client.recv(65_536)
        for _ in range(stuck):
            stack.enter_context(connected(port, f"{root}/batches/history/progress", buffer=4_096)).recv(64)
        if stuck:
            time.sleep(1)  # until all buffers are full
        began = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        whole = sum(rest_of(client).endswith(b"0\r\n\r\n") for client in following)
        ended = time.monotonic() - began
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return f"streams {ended:5.2f} s, {whole}/{readers} whole; not gone after {PATIENCE:.0f} s"
        gone = time.monotonic() - began
        return f"streams {ended:5.2f} s, {whole}/{readers} whole; gone {gone:5.2f} s, code {process.returncode}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", nargs="+", choices=ALL, default=ALL)
    parser.add_argument("--readers", type=int, default=20)
    parser.add_argument("--stuck", nargs="+", type=int, default=[0, 5])
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "batches.db")
        asyncio.run(fill(path))
        for server in options.servers:
            if not is_installed(server):
                print(f"{server:17} is not installed")
                continue
            for stuck in options.stuck:
                print(f"{server:17} {stuck} stuck: {measure(server, path, options.readers, stuck)}", flush=True)


if __name__ == "__main__":
    main()
