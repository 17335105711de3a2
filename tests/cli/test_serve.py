"""The command `serve`: what its connections are like. What it answers is in tests/web."""

from __future__ import annotations

import asyncio
import socket

from tests.support import within

from durable_batches.cli.serve import listener_at


async def test_small_packets_are_not_held_back() -> None:
    undelayed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        undelayed.set_result(bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
        writer.close()

    with listener_at("127.0.0.1", 0) as listener:
        address, port = listener.getsockname()
        async with await asyncio.start_server(accept, sock=listener):
            _, writer = await asyncio.open_connection(address, port)
            assert await within(undelayed)
            writer.close()
