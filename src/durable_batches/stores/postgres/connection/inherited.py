"""Connections that a forked child has inherited: it releases them, and nothing is sent.

The server ends a session, and releases its locks, once nobody holds the other end. Where a worker is killed, a child of
its pool of processes would still hold it, for as long as the child lives: nobody could write what the worker was just
about to write.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

if TYPE_CHECKING:
    from durable_batches.stores.postgres.connection.database import Connection

__all__ = ["left_in_children"]

_connections: Final = WeakSet["Connection"]()


def left_in_children(connection: Connection) -> None:
    """Have children that are forked from now on release the connection."""
    _connections.add(connection)


def _release() -> None:
    sockets = [number for each in list(_connections) if (number := _socket_of(each)) >= 0]
    if not sockets:
        return
    with suppress(OSError):
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in sockets:
            # Not closed: the child's copy of the connection would take for its own what is opened as this number next.
            os.dup2(nothing, number, inheritable=False)
        os.close(nothing)


def _socket_of(connection: Any) -> int:
    """Return the number of its socket; -1: it is closed."""
    # The driver has no public way to it.
    transport = getattr(connection, "_transport", None)
    socket = None if transport is None else transport.get_extra_info("socket")
    return -1 if socket is None else int(socket.fileno())


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_release)
