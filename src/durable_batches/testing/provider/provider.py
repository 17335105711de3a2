"""`HostileProvider`: a local HTTP server that behaves like a provider on a bad day; or the same without a network."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from hashlib import blake2b
from types import TracebackType
from typing import Any, Final, Self, cast

from durable_batches.clock import Clock
from durable_batches.errors import ConfigurationError
from durable_batches.options import (
    check_callable,
    check_choice,
    check_duration,
    check_instance,
    check_integer,
    check_number,
)
from durable_batches.runtime.context import current_clock
from durable_batches.testing.provider.answers import (
    FAULTS,
    Answer,
    Fault,
    ProviderError,
    answer_to,
    fault_answer,
    quota_answer,
)
from durable_batches.testing.provider.ledger import Ledger, LedgerEntry

__all__ = ["HostileProvider"]

_MINUTE: Final = 60.0
_LONGEST_BODY: Final = 16 * 1024 * 1024
_ABORTED: Final = struct.pack("ii", 1, 0)


def _echo(request: Mapping[str, Any]) -> object:
    return {"answer": request, "usage": {"total_tokens": request.get("tokens", 0)}}


class HostileProvider:
    """A provider of a paid API that refuses, fails, hangs and cuts its answers, and keeps a ledger of them.

    A request is JSON, posted to any path of `url`; its `tokens` are what it takes, and its header `idempotency-key`, or
    else its text, is the key that the ledger knows it by. `call` is the same without a network, by the clock of the
    worker that runs the activity: in virtual time, too.

    Limits are counted exactly, over the last minute before each request. What they refuse has a `Retry-After` and the
    headers `x-ratelimit-*`.

    Args:
        answer: Makes the answer from the request; by default the request itself, and `usage.total_tokens`.
        faults: How often each fault happens: shares of all requests, which together are at most 1. The same `seed`
            gives the same faults to the same sequence of requests.
        requests_per_minute: Its limit of requests; None: none.
        tokens_per_minute: Its limit of tokens; None: none.
        balance: The tokens that the account has left; None: any number. It may be set later: `provider.balance = 0`.
        retry_after: When to try again, in faults that say so.
        delay: How long each answer takes; and "slow" ones take `slow` more.
        slow: See `delay`.
        seed: Of the faults.

    Attributes:
        ledger: What it was asked and has answered.
        balance: The tokens that the account has left.

    Raises:
        ConfigurationError: An argument is of a wrong type, or makes no sense.

    Example::

        faults = {"429-seconds": 0.1, "cut": 0.05}
        async with HostileProvider(faults=faults) as provider:
            ...  # requests to provider.url
        assert not provider.ledger.paid_again
    """

    def __init__(
        self,
        *,
        answer: Callable[[Mapping[str, Any]], object] = _echo,
        faults: Mapping[Fault, float] | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        balance: int | None = None,
        retry_after: timedelta = timedelta(seconds=1),
        delay: timedelta = timedelta(0),
        slow: timedelta = timedelta(seconds=30),
        seed: int = 0,
    ) -> None:
        check_callable("answer", answer)
        check_instance("faults", faults, Mapping, optional=True)
        shares = dict(faults or {})
        for fault, share in shares.items():
            check_choice("each of faults", fault, FAULTS)
            check_number("each share of faults", share)
        if any(not 0 <= share <= 1 for share in shares.values()) or sum(shares.values()) > 1:
            raise ConfigurationError("each share of faults must be from 0 to 1, and all together at most 1")
        for name, number in (
            ("requests_per_minute", requests_per_minute),
            ("tokens_per_minute", tokens_per_minute),
            ("balance", balance),
        ):
            check_integer(name, number, optional=True)
            if number is not None and number < (0 if name == "balance" else 1):
                raise ConfigurationError(f"{name} is too small")
        for name, duration in (("retry_after", retry_after), ("delay", delay), ("slow", slow)):
            check_duration(name, duration)
            if duration < timedelta(0):
                raise ConfigurationError(f"{name} must not be negative")
        check_integer("seed", seed)
        self.ledger: Final = Ledger()
        self.balance: int | None = balance
        self._answer = answer
        self._shares: Final[Mapping[Fault, float]] = shares
        self._next: deque[Fault | None] = deque()
        self._requests = requests_per_minute
        self._tokens = tokens_per_minute
        self._passed: deque[tuple[float, int]] = deque()
        self._passed_tokens = 0
        self._retry_after = retry_after.total_seconds()
        self._delay = delay.total_seconds()
        self._slow = slow.total_seconds()
        self._random = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<HostileProvider, {len(self.ledger)} requests>"

    def inject(self, *faults: Fault | None) -> None:
        """Give the next requests these faults, in this order; None: a good answer.

        Raises:
            ConfigurationError: A fault is unknown.
        """
        for fault in faults:
            check_choice("each of faults", fault, FAULTS, optional=True)
        self._next.extend(faults)

    async def call(self, request: Mapping[str, Any], *, key: str | None = None) -> Any:
        """Answer a request without a network, like a client of the provider.

        Args:
            request: The request, with its `tokens`.
            key: What the ledger knows it by; by default its text.

        Raises:
            ConfigurationError: `request` is no mapping.
            ProviderError: The answer's status is not 200.
            ConnectionError: The answer does not come, or not all of it.
            ValueError: The answer is no JSON.
        """
        check_instance("request", request, Mapping)
        clock = current_clock()
        text = json.dumps(dict(request), sort_keys=True)
        answer = self._decide(request, key or _digest(text.encode()), clock)
        await clock.sleep(self._seconds_of(answer))
        if answer.delivery in ("cut", "hang-up", "reset"):
            raise ConnectionError(f"the provider has ended the connection ({answer.delivery})")
        if answer.status != 200:
            raise ProviderError(answer.status, answer.headers, json.loads(answer.body))
        return json.loads(answer.body)

    # ---- over HTTP ---------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Its address, `http://127.0.0.1:PORT`, within the `async with` block.

        Raises:
            ConfigurationError: It is not within the block.
        """
        if self._server is None:
            raise ConfigurationError(
                "a HostileProvider has a url within its block: async with HostileProvider() as ..."
            )
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for connection in self._connections:
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._connections.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            # The client has gone, or does not speak HTTP.
            pass
        except asyncio.CancelledError:
            # It is closed; nobody awaits this task but `__aexit__`, and a server logs its cancellation.
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection goes on."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").split("\r\n")
        lines = (line.partition(":") for line in head[1:] if line)
        headers = {name.strip().lower(): value.strip() for name, _, value in lines}
        body = await _body(reader, headers)
        request: object = None
        with suppress(ValueError):
            request = json.loads(body)
        if not isinstance(request, dict):
            _send(writer, Answer(status=400, body=b'{"error": {"message": "no JSON object"}}'))
            await writer.drain()
            return True
        clock = current_clock()
        given = cast("dict[str, Any]", request)
        answer = self._decide(given, headers.get("idempotency-key") or _digest(body), clock)
        await clock.sleep(self._seconds_of(answer))
        if answer.delivery == "reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORTED)
            writer.transport.abort()
            return False
        if answer.delivery == "hang-up":
            return False
        _send(writer, answer)
        await writer.drain()
        return answer.delivery != "cut"

    # ---- what it answers ---------------------------------------------------------------------------------------

    def _seconds_of(self, answer: Answer) -> float:
        return self._delay + (self._slow if answer.delivery == "slow" else 0.0)

    def _decide(self, request: Mapping[str, Any], key: str, clock: Clock) -> Answer:
        boot, now = clock.boot(), clock.now() / 1_000_000
        tokens = request.get("tokens", 0)
        tokens = tokens if isinstance(tokens, int) and tokens > 0 else 0
        room_in = self._room_in(boot, tokens)
        fault: str | None = None
        good = answer_to(self._answer(request))
        if room_in > 0:
            fault, answer = "limit", fault_answer("429-fraction", good, retry_after=room_in, now=now)
        elif self.balance is not None and self.balance < tokens:
            fault, answer = "402", quota_answer()
        else:
            self._passed.append((boot, tokens))
            self._passed_tokens += tokens
            chosen = self._next.popleft() if self._next else self._chosen()
            fault = chosen
            answer = good if chosen is None else fault_answer(chosen, good, retry_after=self._retry_after, now=now)
        is_paid = answer.status == 200
        if is_paid and self.balance is not None:
            self.balance -= tokens
        self.ledger.entries.append(
            LedgerEntry(
                at=boot,
                key=key,
                tokens=tokens,
                status=answer.status,
                fault=fault,
                is_paid=is_paid,
                is_whole=is_paid and fault in (None, "slow"),
            )
        )
        return Answer(
            status=answer.status,
            body=answer.body,
            headers={**self._limits(), **answer.headers},
            delivery=answer.delivery,
        )

    def _chosen(self) -> Fault | None:
        at = self._random.random()
        for fault, share in self._shares.items():
            at -= share
            if at < 0:
                return fault
        return None

    def _room_in(self, now: float, tokens: int) -> float:
        """Return in how many seconds the limits have room; 0: now."""
        while self._passed and self._passed[0][0] <= now - _MINUTE:
            self._passed_tokens -= self._passed.popleft()[1]
        room_in = 0.0
        if self._requests is not None and len(self._passed) >= self._requests:
            room_in = self._passed[len(self._passed) - self._requests][0] + _MINUTE - now
        if self._tokens is not None:
            over = self._passed_tokens + tokens - self._tokens
            for at, amount in self._passed:
                if over <= 0:
                    break
                over -= amount
                room_in = max(room_in, at + _MINUTE - now)
            if over > 0:
                # Larger than the limit itself: never.
                room_in = _MINUTE
        return room_in

    def _limits(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        for name, limit, used in (
            ("requests", self._requests, len(self._passed)),
            ("tokens", self._tokens, self._passed_tokens),
        ):
            if limit is not None:
                headers[f"x-ratelimit-limit-{name}"] = str(limit)
                headers[f"x-ratelimit-remaining-{name}"] = str(max(limit - used, 0))
        return headers


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(_size(headers.get("content-length", "0"), 10))
    parts: list[bytes] = []
    while size := _size((await reader.readline()).decode("latin1").partition(";")[0], 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    await reader.readline()
    return b"".join(parts)


def _size(text: str, base: int) -> int:
    size = int(text.strip(), base)
    if not 0 <= size <= _LONGEST_BODY:
        raise ValueError(text)
    return size


def _send(writer: asyncio.StreamWriter, answer: Answer) -> None:
    lines = [
        f"HTTP/1.1 {answer.status} {'OK' if answer.status == 200 else 'Refused'}",
        "content-type: application/json",
        f"content-length: {len(answer.body)}",
        *(f"{name}: {value}" for name, value in answer.headers.items()),
    ]
    body = answer.body[: max(len(answer.body) // 2, 1)] if answer.delivery == "cut" else answer.body
    writer.write("\r\n".join(lines).encode("latin1") + b"\r\n\r\n" + body)


def _digest(text: bytes) -> str:
    return blake2b(text, digest_size=8).hexdigest()
