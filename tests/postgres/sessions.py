"""Sessions of the server that go from one test to the next, as those of a pool in session mode do.

A store opens a handful of connections, and a new one costs its server more than the statements of most tests: a process
of its own, which reads the catalogue anew before its first statement of each kind. So a connection that is closed as it
should be leaves its session behind, for the next one that asks for the same: rolled back and with everything discarded
that a session may have set, prepared, locked or listened to, before the close returns. What is cut off ends its
session, as ever; a connection through a proxy has one of its own.

The tests of the store's connections themselves (tests/postgres) are left out.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from asyncio import BaseEventLoop
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, Final

import pytest

_MOST_KEPT: Final = 16
"""Of one kind."""

_VERSION: Final = (196608).to_bytes(4, "big")
"""Of the protocol, with which the first message of a session begins; a request to cancel has a number of its own."""

_TERMINATE: Final = b"X\0\0\0\4"
_READY: Final = b"Z\0\0\0\5I"
"""For a statement, outside of a transaction."""

_Buffer = bytes | bytearray | memoryview


def _query(statement: str) -> bytes:
    text = statement.encode() + b"\0"
    return b"Q" + (len(text) + 4).to_bytes(4, "big") + text


_RESET: Final = _query("ROLLBACK") + _query("DISCARD ALL")
_IS_RESET: Final = [b"C\0\0\0\rROLLBACK\0", _READY, b"C\0\0\0\x10DISCARD ALL\0", _READY]


def _answers(data: bytes) -> list[bytes]:
    """What the server says of statements: that one is done, that one has failed, that it is ready for the next.

    It also says which settings are what they were before, and may notify of something.
    """
    found: list[bytes] = []
    while data:
        size = 1 + int.from_bytes(data[1:5], "big")
        if data[:1] in b"CEZ":
            found.append(data[:size])
        data = data[size:]
    return found


class _Session:
    """A session of the server.

    Args:
        sock: Leads to it; never waits.
        said: What the server said when it began.
    """

    def __init__(self, sock: socket.socket, said: bytes) -> None:
        self.sock: Final = sock
        self.said: Final = said

    def is_usable(self) -> bool:
        """Whether the server has not ended it, and has said nothing more."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


class KeptSessions:
    """Those of one server that nothing uses now.

    Args:
        port: The server's.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._kept: dict[bytes, list[_Session]] = defaultdict(list)
        self._lock = threading.Lock()  # a store connects on a thread of its own
        self._in_use = False

    @contextmanager
    def used(self) -> Generator[None]:
        """Within: connections have sessions of others before them, and leave them to others."""
        self._in_use = True
        try:
            yield
        finally:
            self._in_use = False

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have all event loops connect to the server so, where it is wanted."""
        connect = BaseEventLoop.create_connection

        async def create_connection(
            loop: BaseEventLoop,
            factory: Callable[[], asyncio.Protocol],
            host: Any = None,
            port: Any = None,
            **options: Any,
        ) -> Any:
            if not self._in_use or port != self._port or options:
                return await connect(loop, factory, host, port, **options)
            protocol = factory()
            line = Line(self, protocol)
            # What it has to say first says what kind of session it wants.
            protocol.connection_made(line)
            session = self._take(line.begun)
            if session is None:
                await connect(loop, lambda: line.first, host, port)
            else:
                await connect(loop, lambda: line.first, sock=session.sock)
            line.begin(session)
            return line, protocol

        monkeypatch.setattr(BaseEventLoop, "create_connection", create_connection)

    def keep(self, kind: bytes, session: _Session) -> None:
        """Take a session back that nobody uses any more."""
        with self._lock:
            kept = self._kept[kind]
            if self._in_use and len(kept) < _MOST_KEPT:
                kept.append(session)
                return
        session.sock.close()

    def _take(self, kind: bytes) -> _Session | None:
        with self._lock:
            kept = self._kept[kind]
            while kept:
                # The one that was used last knows most of the catalogue.
                session = kept.pop()
                if session.is_usable():
                    return session
                session.sock.close()
        return None

    def close(self) -> None:
        """End those that are left."""
        with self._lock:
            for session in [session for kept in self._kept.values() for session in kept]:
                session.sock.close()
            self._kept.clear()


class Line(asyncio.Transport):
    """What a driver has for its transport: the session behind it outlives it."""

    def __init__(self, kept: KeptSessions, driver: asyncio.Protocol) -> None:
        super().__init__()
        self._kept = kept
        self._driver = driver
        self.begun = b""
        """What the driver has written before there was anybody to write to."""
        self.first: Final = _First(self._heard_first, driver)
        self._said: bytes | None = None
        self._transport: asyncio.Transport | None = None

    # ---- its beginning -------------------------------------------------------------------------------------

    def begin(self, session: _Session | None) -> None:
        """There is a connection: ask for a session, or have the driver hear what the one that is there once said."""
        assert self.first.transport is not None
        self._transport = self.first.transport
        if session is None:
            self._transport.write(self.begun)
            if self.begun[4:8] != _VERSION:
                self._transport.set_protocol(self._driver)
        else:
            self._said = session.said
            self._transport.set_protocol(self._driver)
            self._driver.data_received(session.said)

    def _heard_first(self, data: bytes) -> None:
        """What a new session says of itself ends where it is ready."""
        if data.endswith(_READY):
            self._said = data
            assert self._transport is not None
            self._transport.set_protocol(self._driver)

    # ---- its end -------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        """The driver says that it ends: have the server forget what the session did, and tell the driver then."""
        assert self._transport is not None
        last = _Last(self._left, self._driver)
        self._transport.set_protocol(last)
        self._transport.write(_RESET)

    def _left(self) -> None:
        assert self._transport is not None
        assert self._said is not None
        sock: socket.socket = self._transport.get_extra_info("socket").dup()
        sock.setblocking(False)
        self._transport.abort()  # of this loop's end of it; `_Last` tells the driver
        self._kept.keep(self.begun, _Session(sock, self._said))

    # ---- what a transport does -------------------------------------------------------------------------------

    def write(self, data: _Buffer) -> None:
        if self._transport is None:
            self.begun += bytes(data)
        elif self._said is not None and data == _TERMINATE:
            self._leave()
        else:
            self._transport.write(data)

    def writelines(self, list_of_data: Iterable[_Buffer]) -> None:
        self.write(b"".join(list_of_data))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default if self._transport is None else self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._transport is not None and self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        assert self._transport is not None
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        assert self._transport is not None
        self._transport.resume_reading()


class _First(asyncio.Protocol):
    """Hands on what the server says, and remembers it, until there is a session."""

    def __init__(self, heard: Callable[[bytes], None], driver: asyncio.Protocol) -> None:
        self._heard = heard
        self._driver = driver
        self._data = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        self._heard(self._data)
        self._driver.data_received(data)

    def eof_received(self) -> bool | None:
        return self._driver.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._driver.connection_lost(exc)


class _Last(asyncio.Protocol):
    """Waits until the server has forgotten what the session did."""

    def __init__(self, left: Callable[[], None], driver: asyncio.Protocol) -> None:
        self._left = left
        self._driver = driver
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self._data.endswith(_READY) and _answers(self._data) == _IS_RESET:
            self._left()

    def connection_lost(self, exc: Exception | None) -> None:
        self._driver.connection_lost(None)
