"""What clients of a batch's progress over HTTP cost the server: processor, memory, latency, and the batch itself.

    python -m benchmarks.sse [--clients 1 1000] [--events 20] [--seconds 20] [--pin]

Four processes on this machine: one runs a batch that makes so many events a second on an SQLite file; `durable-batches
serve` serves that file; one has all clients, of which a tenth never reads and wants a long history; this one measures.
Every client checks that it gets each event once and in order. For each number of clients, after a run without any:

cpu: the share of a core that the server takes, and what an event for one client takes of it
memory: what the server's resident memory grows by from before the clients came
writes: chunks that reach one client in a second
latency: from the time that an event has (`at`) until a client has it; `idle` is that of the run with one client
calls: of the store, by the process that runs the batch, for each event
released: how long after all clients have gone at once the server has closed the last connection

Everything stays on the loopback interface, is bounded in time, and ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from durable_batches import (
    BatchConfig,
    BatchOrchestrator,
    BatchStateMachine,
    SQLiteStore,
    Stage,
    Worker,
    durable_activity,
    workflow,
)

TOKEN: Final = "benchmark"
HISTORY: Final = 4_000
"""Documents of the batch that has ended, whose events the clients that never read ask for."""
EVENTS_A_DOCUMENT: Final = 3
IN_FLIGHT: Final = 10
SAMPLED: Final = 40
"""Clients whose latency is taken."""
PATIENCE: Final = 60.0

_NOTHING: Final[dict[str, Any]] = {"events": 0, "chunks": 0, "p50": 0.0, "p99": 0.0, "faults": []}


class Reading(Stage):
    tag: Literal["reading"] = "reading"


@durable_activity(stage=Reading)
async def read(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "read"


@workflow(BatchStateMachine(Reading), name="followed")
async def followed(seconds: float) -> str:
    return await read(seconds)


# ---- the process that runs the batch -------------------------------------------------------------------------------


class CountingStore(SQLiteStore):
    """Counts the calls of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.calls: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> Any:
        if name in ("commit", "control", "batch", "events", "wait", "workers", "documents", "checkpoints"):
            super().__getattribute__("calls")[name] += 1
        return super().__getattribute__(name)


async def run_batch(path: Path, events_a_second: float, seconds: float) -> None:
    """Run a batch at a pace; say how often the store was called in each span between two lines of the input."""
    store = CountingStore(path)
    pace = events_a_second / EVENTS_A_DOCUMENT
    worker = Worker(store, max_in_flight=64, drain=timedelta(0))
    async with BatchOrchestrator(followed, worker=worker) as batches:
        await batches.submit([0.0] * HISTORY, batch_id="history", config=BatchConfig(concurrency=64))
        await batches.result("history")
        # Of different lengths, always the same ones, so that they do not move in step.
        lengths = (0.5 + index * 0.618 % 1 for index in range(int(pace * seconds)))
        documents = [IN_FLIGHT / pace * length for length in lengths]
        await batches.submit(documents, batch_id="live", config=BatchConfig(concurrency=IN_FLIGHT))
        say("ready")
        async for _ in lines():
            seq = (await batches.snapshot("live")).seq
            say(json.dumps({"seq": seq, "calls": sum(store.calls.values())}))


# ---- the process of the clients ------------------------------------------------------------------------------------


class Client(asyncio.Protocol):
    """Follows the batch, and checks what it gets."""

    def __init__(self, request: bytes, *, sampled: bool) -> None:
        self._request = request
        self._sampled = sampled
        self._rest = b""
        self.transport: asyncio.Transport | None = None
        self.last: int | None = None
        self.events = 0
        self.chunks = 0
        self.latencies: list[float] = []
        self.began = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.time()
        self.chunks += 1
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        for block in blocks:
            start = block.find(b"id: ")
            if start < 0:
                continue
            seq = int(block[start + 4 : block.index(b"\n", start)])
            if self.last is not None and seq != self.last + 1:
                raise AssertionError(f"event {seq} after event {self.last}")
            self.last = seq
            self.events += 1
            self.began.set()
            if self._sampled:
                at = json.loads(block[block.index(b"data: ") + 6 :])["at"]
                self.latencies.append(now - datetime.fromisoformat(at).timestamp())

    def reset(self) -> None:
        """Count from here on."""
        self.events = self.chunks = 0
        self.latencies.clear()


def request_for(batch: str, after: int) -> bytes:
    """A request for the events of a batch."""
    path = f"/batches/{batch}/progress?after={after}"
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()


async def run_clients(port: int, number: int, after: int) -> None:
    """Open all clients; between two lines of the input, count what they get."""
    loop = asyncio.get_running_loop()
    faults: list[str] = []
    loop.set_exception_handler(lambda _, context: faults.append(str(context.get("exception", context["message"]))))
    never = number // 10
    stuck: list[socket.socket] = []
    clients: list[Client] = []
    with ExitStack() as stack:
        for index in range(number):
            if index < never:
                connection = stack.enter_context(closing(socket.socket()))
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.setblocking(False)
                await loop.sock_connect(connection, ("127.0.0.1", port))
                await loop.sock_sendall(connection, request_for("history", 0))
                stuck.append(connection)
            else:
                client = Client(request_for("live", after), sampled=(index - never) % max(number // SAMPLED, 1) == 0)
                await loop.create_connection(partial(_itself, client), "127.0.0.1", port)
                clients.append(client)
        async with asyncio.timeout(PATIENCE):
            for client in clients:
                await client.began.wait()
        say("ready")
        async for _ in lines():
            latencies = sorted(latency for client in clients for latency in client.latencies)
            say(
                json.dumps(
                    {
                        "readers": len(clients),
                        "events": sum(client.events for client in clients),
                        "chunks": max(client.chunks for client in clients),
                        "p50": quantile(latencies, 0.5),
                        "p99": quantile(latencies, 0.99),
                        "faults": faults,
                    }
                )
            )
            for client in clients:
                client.reset()


def _itself(client: Client) -> Client:
    return client


def quantile(values: Sequence[float], part: float) -> float:
    """Of sorted values; 0 where there are none."""
    return values[min(len(values) - 1, int(len(values) * part))] if values else 0.0


# ---- between processes ---------------------------------------------------------------------------------------------


def say(line: str) -> None:
    """Print a line for the process that measures."""
    print(line, flush=True)


async def lines() -> AsyncGenerator[str]:
    """Lines of the input, until it is closed."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        yield line


class Child:
    """A process that answers to lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ask(self) -> dict[str, Any]:
        """Send a line, and return the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.read())
        return answer

    def read(self) -> str:
        """Read a line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"{self.process.args!r} has ended")
        return line


@contextmanager
def child(*options: str, core: int | None, **environment: str) -> Generator[Child]:
    """A process of this program, or another one, on one core if it is to be."""
    pinned = [] if core is None else ["taskset", "--cpu-list", str(core)]
    process = subprocess.Popen(
        [*pinned, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        yield Child(process)
    finally:
        process.kill()
        process.communicate()


# ---- what the system says of the server ----------------------------------------------------------------------------


class Usage(NamedTuple):
    """What a process has used."""

    cpu_seconds: float
    memory_mb: float
    connections: int


def usage_of(pid: int) -> Usage:
    """Ask the system."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    connections = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            connections += descriptor.readlink().as_posix().startswith("socket:")
        except OSError:
            continue
    return Usage((int(fields[11]) + int(fields[12])) / ticks, pages * resource.getpagesize() / 2**20, connections)


def at_rest(pid: int, port: int) -> Usage:
    """Have the server answer a request, so that it has all that it needs; return what it uses without connections."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Connection": "close"}
    with urlopen(Request(f"http://127.0.0.1:{port}/batches/live", headers=headers), timeout=PATIENCE) as answer:
        answer.read()
    used = usage_of(pid)
    while True:
        time.sleep(0.3)
        before, used = used, usage_of(pid)
        if before.connections == used.connections:
            return used


class Measured(NamedTuple):
    """One run."""

    clients: int
    seconds: float
    events: int
    """Of the batch."""
    received: int
    """By all clients together."""
    cpu_seconds: float
    grew_mb: float
    writes: float
    p50: float
    p99: float
    calls: float
    released: float


def measure(arguments: argparse.Namespace, clients: int) -> Measured:
    """Measure one number of clients; 0: what the batch does without any."""
    own = (sys.executable, "-m", "benchmarks.sse")
    cores = (0, 1) if arguments.pin else (None, None)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "batches.db"
        total = arguments.seconds * 2 + PATIENCE
        pace = ("--events", str(arguments.events), "--seconds", str(total))
        batch = stack.enter_context(child(*own, "--role", "batch", "--path", str(path), *pace, core=cores[1]))
        assert batch.read() == "ready"
        serve = str(Path(sys.executable).with_name("durable-batches"))
        server = stack.enter_context(
            child(*(serve, "serve", "--store", str(path), "--port", "0"), core=cores[0], DURABLE_BATCHES_TOKEN=TOKEN)
        )
        port = urlsplit(server.read().rpartition(" ")[2]).port
        assert port is not None
        before = at_rest(server.process.pid, port)
        with ExitStack() as guests:
            options = ("--role", "clients", "--port", str(port), "--clients", str(clients))
            after = str(batch.ask()["seq"])
            guest = guests.enter_context(child(*own, *options, "--after", after, core=cores[1])) if clients else None
            if guest is not None:
                assert guest.read() == "ready"
                time.sleep(2)  # until what they did not have yet has come
                guest.ask()
            asked, used, began = batch.ask(), usage_of(server.process.pid), time.perf_counter()
            time.sleep(arguments.seconds)
            told, now = batch.ask(), usage_of(server.process.pid)
            found: dict[str, Any] = _NOTHING if guest is None else guest.ask()
            seconds = time.perf_counter() - began
        if found["faults"]:
            raise AssertionError(found["faults"][0])
        gone = time.perf_counter()
        while usage_of(server.process.pid).connections > before.connections:
            if time.perf_counter() - gone > PATIENCE:
                raise AssertionError("the server keeps connections whose clients have gone")
            time.sleep(0.01)
        events = told["seq"] - asked["seq"]
        return Measured(
            clients=clients,
            seconds=seconds,
            events=events,
            received=found["events"],
            cpu_seconds=now.cpu_seconds - used.cpu_seconds,
            grew_mb=now.memory_mb - before.memory_mb,
            writes=found["chunks"] / seconds,
            p50=found["p50"],
            p99=found["p99"],
            calls=(told["calls"] - asked["calls"]) / max(events, 1),
            released=time.perf_counter() - gone,
        )


def report(run: Measured, idle: Measured) -> None:
    """Print one run beside the one without clients."""
    each = (run.cpu_seconds - idle.cpu_seconds) / max(run.received, 1) * 1e6
    print(
        f"{run.clients:>5,} clients ({run.clients // 10} never read), {run.events / run.seconds:5.1f} events/s: "
        f"{run.cpu_seconds / run.seconds:6.1%} of a core, {each:6.1f} us an event and client; "
        f"memory +{run.grew_mb:.1f} MB; {run.writes:.1f} writes/s; "
        f"latency p50 {run.p50 * 1e3:.1f} ms, p99 {run.p99 * 1e3:.1f} ms; "
        f"{run.calls:.2f} calls of the store an event ({idle.calls:.2f} without clients); "
        f"released in {run.released:.2f} s",
        flush=True,
    )


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 1_000])
    parser.add_argument("--events", type=float, default=20.0, help="of the batch, in a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--pin", action="store_true", help="the server on one core, all else on another")
    parser.add_argument("--quick", action="store_true", help="few clients, for a short time")
    for name in ("--role", "--path", "--port", "--after"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.clients, arguments.seconds = [1, 100], 3.0
    # Each client is an open file of two processes.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard < 65_536 else 65_536, hard))
    match arguments.role:
        case "batch":
            asyncio.run(run_batch(Path(arguments.path), arguments.events, arguments.seconds))
        case "clients":
            asyncio.run(run_clients(int(arguments.port), arguments.clients[0], int(arguments.after)))
        case _:
            idle = measure(arguments, 0)
            for clients in arguments.clients:
                report(measure(arguments, clients), idle)


if __name__ == "__main__":
    main()
