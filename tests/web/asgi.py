"""A client of an ASGI application in the same event loop: no server, no sockets, no real time.

It fails for an answer that the OpenAPI document does not describe.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from tests.support import within
from tests.web.contract import check_answer


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Message:
    """Of a stream."""

    id: int | None = None
    event: str = ""
    data: str = ""
    comment: str = ""
    retry: int | None = None

    @property
    def json(self) -> Any:
        return json.loads(self.data)


def messages_of(text: str) -> list[Message]:
    found: list[Message] = []
    for block in text.split("\n\n")[:-1]:
        message = Message()
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            match name:
                case "":
                    message.comment = value
                case "id":
                    message.id = int(value)
                case "event":
                    message.event = value
                case "data":
                    message.data += value
                case "retry":
                    message.retry = int(value)
                case _:
                    raise AssertionError(line)
        found.append(message)
    return found


class Stream:
    """A response that is being sent."""

    def __init__(self, app: Any, scope: dict[str, Any], body: bytes) -> None:
        self._sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._left = asyncio.Event()
        self._body: bytes | None = body
        self.reads = asyncio.Event()
        """Cleared: what is sent is not read."""
        self.reads.set()
        self.ended = False
        self.chunks = 0
        self.status = 0
        self.headers: dict[str, str] = {}
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await self.reads.wait()
        self._sent.put_nowait(message)

    async def begin(self) -> None:
        message = await self._next()
        assert message["type"] == "http.response.start", message
        self.status = message["status"]
        self.headers = {name.decode(): value.decode() for name, value in message["headers"]}

    async def _next(self) -> dict[str, Any]:
        getting = asyncio.create_task(self._sent.get())
        await within(asyncio.wait([getting, self.task], return_when=asyncio.FIRST_COMPLETED))
        if not getting.done():
            if not self._sent.empty():
                return await getting
            getting.cancel()
            self.task.result()
            raise AssertionError("it ended before its response did")
        return getting.result()

    async def chunk(self) -> bytes:
        """The next part of the body; empty: it has ended."""
        message = await self._next()
        assert message["type"] == "http.response.body", message
        self.ended = not message.get("more_body", False)
        self.chunks += bool(message.get("body"))
        body: bytes = message.get("body", b"")
        return body

    async def messages(self) -> AsyncIterator[Message]:
        """Events and comments, to the end of the stream."""
        while not self.ended:
            for message in messages_of((await self.chunk()).decode()):
                if message.retry is None:
                    yield message

    def leave(self) -> None:
        """As a client that closes its connection."""
        self._left.set()


class Client:
    """A client.

    Args:
        app: The application.
        headers: Of each request.
        root_path: Where the application is mounted.
        described: Whether each answer is to be one that the OpenAPI document describes.
        server: The address that requests come by.
    """

    def __init__(
        self,
        app: Any,
        *,
        headers: Mapping[str, str] | None = None,
        root_path: str = "",
        described: bool = True,
        server: tuple[str, int] = ("testserver", 80),
    ) -> None:
        self._app = app
        self._server = server
        self._described = described
        self._headers = dict(headers or {})
        self._root_path = root_path

    def begin(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Stream:
        address, _, query = path.partition("?")
        given = {"host": self._server[0], **self._headers, **(headers or {})}
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": self._root_path + unquote(address),
            "raw_path": address.encode(),
            "root_path": self._root_path,
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()],
            "client": ("198.51.100.1", 4711),
            "server": self._server,
            "state": {},
        }
        return Stream(self._app, scope, body)

    async def ask(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Answer:
        stream = self.begin(method, path, headers, body)
        await stream.begin()
        parts: list[bytes] = []
        while not stream.ended:
            parts.append(await stream.chunk())
        await within(stream.task)
        answer = Answer(stream.status, stream.headers, b"".join(parts))
        self._check(method, path, answer.status, answer.headers, answer.body)
        return answer

    def _check(self, method: str, path: str, status: int, headers: Mapping[str, str], body: bytes | None) -> None:
        if self._described:
            check_answer(method, path.partition("?")[0], status, headers, body)

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return await self.ask("GET", path, headers)

    async def post(self, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Answer:
        return await self.ask("POST", path, headers, body)

    @asynccontextmanager
    async def stream(self, path: str, headers: Mapping[str, str] | None = None) -> AsyncGenerator[Stream]:
        """A stream that has begun; afterwards the client has left."""
        stream = self.begin("GET", path, headers)
        try:
            await stream.begin()
            self._check("GET", path, stream.status, stream.headers, None)
            yield stream
        finally:
            stream.leave()
            stream.reads.set()
            await within(stream.task)
