"""Progress of calls in other processes: datagrams on this machine, which may get lost and hold nothing up."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeAlias, cast

from durable_batches.executors.messages import ReportAddress

__all__ = ["Reports", "send_begins", "send_report"]

_HOST: Final = "127.0.0.1"

_Report: TypeAlias = Callable[[int, int], None]


class Reports(asyncio.DatagramProtocol):
    """The worker's socket. A datagram counts where it names the token of a running call."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[_Report, Callable[[], None]]] = {}
        self._transport: asyncio.DatagramTransport | None = None
        self._port: int | None = None

    async def open(self) -> None:
        """Open the socket; where the system refuses it, nothing is reported."""
        with suppress(OSError):
            loop = asyncio.get_running_loop()
            self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(_HOST, 0))
            self._port = self._transport.get_extra_info("sockname")[1]

    def close(self) -> None:
        """Close the socket."""
        if self._transport is not None:
            self._transport.close()
            self._transport = self._port = None

    def follow(self, report: _Report, begins: Callable[[], None]) -> ReportAddress | None:
        """Have a call's reports handed on, and that it begins, until `leave`; return where it sends them."""
        if self._port is None:
            return None
        token = secrets.token_urlsafe(12)
        self._running[token] = report, begins
        return _HOST, self._port, token

    def leave(self, address: ReportAddress | None) -> None:
        """Hand on no more reports of a call."""
        if address is not None:
            self._running.pop(address[2], None)

    def datagram_received(self, data: bytes, addr: object) -> None:
        """Hand on a report; anything else is ignored."""
        try:
            token, *amounts = cast("list[object]", json.loads(data))
        except (ValueError, TypeError):
            return
        running = self._running.get(token) if isinstance(token, str) else None
        if running is None:
            return
        report, begins = running
        match amounts:
            case []:
                begins()
            case [int(current), int(total)] if type(current) is int and type(total) is int:
                report(current, total)
            case _:
                pass

    def error_received(self, exc: Exception) -> None:
        """Ignore it: reports may get lost."""


def send_report(address: ReportAddress, current: int, total: int) -> None:
    """Send a report to the worker, without waiting; one that cannot be sent is dropped."""
    _send(address, int(current), int(total))


def send_begins(address: ReportAddress) -> None:
    """Tell the worker that the call begins, without waiting."""
    _send(address)


def _send(address: ReportAddress, *amounts: int) -> None:
    host, port, token = address
    message = json.dumps([token, *amounts]).encode()
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(message, (host, port))
