"""The end of a server, noticed in time: streams have to end before their server begins to wait for them.

Servers wait for open responses before they tell an application that they stop (uvicorn, gunicorn and granian do, by
default without a limit). So streams end with the signal itself; see `listening` for processes that hear of none.
Nothing is patched: the handler that was there is called as before. What a client never reads cannot be flushed, and no
server has a way to abort a connection: where that is left, its socket is shut down.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Collection

from durable_batches.stop_signals import Precedence, StopListener, StopSignal
from durable_batches.tasks import tell_loop

__all__ = ["Peer", "StopSignals", "shut_down_connections"]

Peer = tuple[str, int]
"""The address of a client."""


class StopSignals:
    """Tells of the signals that end a process, on the event loop that asked first.

    Args:
        stop: Called on the event loop, once for each signal.
    """

    def __init__(self, stop: Callable[[], object]) -> None:
        self._stop = stop
        self._listener = StopListener(self._told, Precedence.BESIDE)
        self._loop: asyncio.AbstractEventLoop | None = None

    def listen(self) -> None:
        """Listen, in front of the handlers that are there; outside of the main thread, do nothing.

        Some servers install their handlers after the start of the application, and all of them before the first
        request. A server in another thread gets no signals: what ends it has to close the streams.
        """
        if self._listener.listen() and self._loop is None:
            self._loop = asyncio.get_running_loop()

    def leave(self) -> None:
        """Put back the handlers that were there, where no others have been installed since."""
        self._listener.leave()
        self._loop = None

    def _told(self, _: StopSignal) -> None:
        if self._loop is not None:
            tell_loop(self._loop, self._stop)


def shut_down_connections(peers: Collection[Peer]) -> int:
    """Shut down the sockets of this process that are connected to these peers; return how many there were.

    They are found among the open files of the process, where the system shows these (Linux); elsewhere none is.
    """
    count = 0
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return 0
    for name in names:
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as own:
                if own.family in (socket.AF_INET, socket.AF_INET6) and own.getpeername()[:2] in peers:
                    own.shutdown(socket.SHUT_RDWR)
                    count += 1
        except OSError:
            # It was closed meanwhile, or is not connected.
            continue
    return count
