"""Whether the server of a request still listens: where its process hears of no signal, that is how it shows its end.

A worker of Hypercorn and a server in a thread of its own get no signals, but every server stops to listen before it
waits for its open responses. The socket is found among the open files of the process, where the system shows these
(Linux); elsewhere, and where another process listens, nothing is known, and nothing ends by it.
"""

from __future__ import annotations

import os
import socket
from typing import Final, TypeAlias

__all__ = ["Listeners", "ServerAddress"]

ServerAddress: TypeAlias = tuple[str, int | None]
"""The `server` of a scope: a host and a port, or the path of a socket and None."""

_FILES: Final = "/proc/self/fd"


class Listeners:
    """The listening sockets of the servers of an application."""

    def __init__(self) -> None:
        self._found: dict[str | int, _Listener | None] = {}

    def stopped(self, server: ServerAddress | None) -> bool:
        """Return whether a server that was found to listen does so no more."""
        if server is None:
            return False
        place = server[0] if server[1] is None else server[1]
        if place not in self._found:
            self._found[place] = _listener_at(place)
        known = self._found[place]
        if known is None or known.is_open():
            return False
        # It may listen again, in the same process or on another socket.
        again = _listener_at(place)
        if again is not None:
            self._found[place] = again
        return again is None


class _Listener:
    """An open file that is a listening socket."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._link = os.readlink(name)

    def is_open(self) -> bool:
        try:
            return os.readlink(self._name) == self._link
        except OSError:
            return False


def _listener_at(place: str | int) -> _Listener | None:
    try:
        names = os.listdir(_FILES)
    except OSError:
        return None
    for name in names:
        path = f"{_FILES}/{name}"
        try:
            if not os.readlink(path).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as own:
                if own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and _place_of(own) == place:
                    return _Listener(path)
        except OSError:
            # It was closed meanwhile.
            continue
    return None


def _place_of(listener: socket.socket) -> str | int:
    """Return its port, or its path: of all addresses it listens at, a request has the one that it came by."""
    name: str | tuple[str, int] = listener.getsockname()
    return name if isinstance(name, str) else name[1]
