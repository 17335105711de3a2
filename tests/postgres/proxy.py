"""A TCP proxy that fails as networks do: it delays, stalls, cuts, and loses replies.

As a program, for benchmarks: `python -m tests.postgres.proxy --target 5432 --delay 0.0005` prints its port, and
delays every packet by that much in each direction.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Literal, Self

Fate = Literal["pass", "lose", "cut before", "cut after"]
"""Of what a client sends: goes on; is never delivered, and no error seen; the connection is cut before the server has
it, or when the server has had time to act on it, with its reply lost."""

_TIME_TO_ACT: Final = 0.2

_PARSE: Final = re.compile(rb"P.{4}([^\0]+)\0([^\0]+)\0", re.DOTALL)
_BIND: Final = re.compile(rb"B.{4}[^\0]*\0([^\0]+)\0", re.DOTALL)
_AT_ONCE: Final = b"verdict AS MATERIALIZED"
"""Of the statement that is a whole commit."""


class CommitFinder:
    """Finds commits among what a store's connections say: COMMIT, and the statements that are whole commits."""

    def __init__(self) -> None:
        self._names: set[bytes] = set()

    def is_in(self, data: bytes) -> bool:
        """Whether this packet has the server commit something; in the order in which they are sent."""
        if data[:1] == b"P":
            self._names |= {name for name, statement in _PARSE.findall(data) if _AT_ONCE in statement}
        bound = _BIND.match(data)
        return b"COMMIT" in data or (bound is not None and bound[1] in self._names)


class Proxy:
    """Runs on a thread of its own, so that a test that blocks its loop does not block the network.

    Args:
        port: Of the server, on this machine.
        delay: Seconds that each packet takes, in each direction.
    """

    def __init__(self, port: int, *, delay: float = 0.0) -> None:
        self.port: int = 0
        self.connections: int = 0
        """Made so far."""
        self.fate: Callable[[bytes], Fate] = lambda _: "pass"
        """Asked, on the proxy's thread, for each packet of a client."""
        self.target: int = port
        """The server's port, for connections from now on."""
        self._delay = delay
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self._stalled = False

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def through(self, dsn: str) -> str:
        """The server's DSN, by way of this."""
        return dsn.replace(f":{self.target}/", f":{self.port}/")

    def cut(self) -> None:
        """Reset all connections that there are now."""
        self._loop.call_soon_threadsafe(self._cut)

    def stall(self) -> None:
        """From now on nothing is delivered, in either direction, on these connections and new ones."""
        self._loop.call_soon_threadsafe(self._set_stalled, True)

    def resume(self) -> None:
        """Deliver what has been held back, and go on."""
        self._loop.call_soon_threadsafe(self._set_stalled, False)

    def half_open(self) -> None:
        """Forget all connections that there are now: whatever either side sends is lost, and neither is told."""
        self._loop.call_soon_threadsafe(self._half_open)

    async def _listen(self) -> None:
        self._server = await self._loop.create_server(lambda: _Side(self, None), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
        connecting = [pair.connecting for pair in self._pairs if pair.connecting is not None]
        await asyncio.gather(*connecting, return_exceptions=True)
        self._cut()
        for _ in range(3):
            await asyncio.sleep(0)

    def _cut(self) -> None:
        for pair in list(self._pairs):
            pair.cut()

    def _half_open(self) -> None:
        for pair in self._pairs:
            pair.deaf = True

    def _set_stalled(self, stalled: bool) -> None:
        self._stalled = stalled
        if not stalled:
            for pair in self._pairs:
                pair.client.flush()
                pair.server.flush()

    # ---- for its connections -----------------------------------------------------------------------------------

    def accepted(self, client: _Side) -> None:
        """Somebody has connected."""
        self.connections += 1
        pair = _Pair(self, client)
        self._pairs.add(pair)
        client.pair = pair
        task = self._loop.create_task(self._connect(pair))
        pair.connecting = task

    async def _connect(self, pair: _Pair) -> None:
        try:
            await self._loop.create_connection(lambda: pair.server, "127.0.0.1", self.target)
        except OSError:
            pair.cut()

    def ended(self, pair: _Pair) -> None:
        """One of the two sides has closed."""
        self._pairs.discard(pair)

    @property
    def stalled(self) -> bool:
        """Whether nothing is delivered now."""
        return self._stalled

    def later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call back on the proxy's loop."""
        self._loop.call_later(seconds, callback)

    @property
    def delay(self) -> float:
        """Seconds that each packet takes."""
        return self._delay


class _Pair:
    def __init__(self, proxy: Proxy, client: _Side) -> None:
        self.proxy = proxy
        self.client = client
        self.server = _Side(proxy, self)
        self.deaf = False
        self.over = False
        self.connecting: asyncio.Task[None] | None = None

    def other(self, side: _Side) -> _Side:
        return self.server if side is self.client else self.client

    def cut(self) -> None:
        self.over = True
        self.proxy.ended(self)
        for side in (self.client, self.server):
            if side.transport is not None:
                side.transport.abort()


class _Side(asyncio.Protocol):
    """One of the two connections that a client's connection is made of."""

    def __init__(self, proxy: Proxy, pair: _Pair | None) -> None:
        self._proxy = proxy
        self.pair = pair
        self.transport: asyncio.Transport | None = None
        self._held: deque[bytes] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self.pair is None:
            self._proxy.accepted(self)
        elif self.pair.over:
            transport.abort()
        else:
            self.flush()

    def data_received(self, data: bytes) -> None:
        pair = self.pair
        assert pair is not None
        if pair.deaf:
            return
        if self is pair.client:
            match self._proxy.fate(data):
                case "pass":
                    pass
                case "lose":
                    return
                case "cut before":
                    pair.cut()
                    return
                case "cut after":
                    pair.server.send(data)
                    pair.deaf = True
                    self._proxy.later(_TIME_TO_ACT, pair.cut)
                    return
        target = pair.other(self)
        if self._proxy.delay:
            # Not one after the other: each packet takes as long as the way is, however many are on it.
            self._proxy.later(self._proxy.delay, lambda: target.send(data))
        else:
            target.send(data)

    def send(self, data: bytes) -> None:
        """Deliver, or hold back."""
        if self.transport is None or self._proxy.stalled or self._held:
            self._held.append(data)
        else:
            self.transport.write(data)

    def flush(self) -> None:
        """Deliver what was held back."""
        if self.transport is not None and not self._proxy.stalled:
            while self._held:
                self.transport.write(self._held.popleft())

    def connection_lost(self, exc: Exception | None) -> None:
        pair = self.pair
        if pair is not None and not pair.deaf and not self._proxy.stalled:
            pair.over = True
            self._proxy.ended(pair)
            other = pair.other(self)
            if other.transport is not None:
                other.transport.close()


def main() -> None:
    """Serve until the standard input is closed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=int, required=True, help="the server's port")
    parser.add_argument("--delay", type=float, default=0.0005, help="seconds in each direction")
    arguments = parser.parse_args()
    with Proxy(arguments.target, delay=arguments.delay) as proxy:
        print(proxy.port, flush=True)
        input()


if __name__ == "__main__":
    main()
