"""Who may do what: asked of the application for each request, and round everything, before any route is looked up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Literal, TypeAlias, get_args

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from durable_batches.clock import Clock
from durable_batches.errors import ConfigurationError
from durable_batches.options import check_choice, check_instance, check_labels, check_text
from durable_batches.web.hosts import is_of_another_site
from durable_batches.web.problems import problem_of

__all__ = [
    "EVERYTHING",
    "LOOK_SECONDS",
    "Access",
    "Action",
    "Authorize",
    "Guard",
    "InTime",
    "Protected",
    "access_of",
    "anyone",
]

_log = logging.getLogger("durable_batches")

LOOK_SECONDS: Final = 10.0
"""How long the application may take to say what the sender of a request may do."""

_RETRY_SECONDS: Final = "5"

Action: TypeAlias = Literal["read", "read-payloads", "control", "signal", "purge"]
"""What a caller may do: look at batches, see documents and results, command batches, answer what documents wait for,
and delete."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """What one caller may do, with the batches that have all of these labels.

    Other batches are not there for the caller: lists leave them out in the store's query, and their addresses are not
    found.
    """

    actions: Collection[Action]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    """The labels; none: all batches."""
    principal: str = ""
    """The name of the caller, for the log."""

    def __post_init__(self) -> None:
        check_instance("actions", self.actions, Collection)
        if isinstance(self.actions, str):
            raise ConfigurationError(f"actions must be a collection, not a str; give a tuple: ({self.actions!r},)")
        for action in self.actions:
            check_choice("each action", action, get_args(Action))
        check_labels("metadata", self.metadata)
        check_text("principal", self.principal)


Authorize: TypeAlias = Callable[[Request], Awaitable[Access | None]]
"""Says what the sender of a request may do; None: nothing, and the answer is 401."""


EVERYTHING: Final = Access(actions=frozenset(get_args(Action)))
"""All actions, with all batches."""


async def anyone(request: Request) -> Access:
    """Allow everybody everything."""
    return EVERYTHING


class _NoAnswerError(HTTPException):
    """The application does not say what the sender of a request may do."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "what the sender may do cannot be looked up now",
            {"Retry-After": _RETRY_SECONDS},
        )


class InTime:
    """Asks `authorize`, and refuses the request where no answer comes in `LOOK_SECONDS`.

    Args:
        authorize: The application's function.
        clock: For the time.
    """

    def __init__(self, authorize: Authorize, clock: Clock) -> None:
        self._authorize = authorize
        self._clock = clock

    async def __call__(self, request: Request) -> Access | None:
        """Return what the sender of a request may do; None: nothing.

        Raises:
            HTTPException: There is no answer; or the application refuses the request itself.
        """
        time_is_up: asyncio.Future[Access | None] = asyncio.get_running_loop().create_future()
        timer = self._clock.call_later(LOOK_SECONDS, time_is_up.cancel, housekeeping=True)
        looking = asyncio.create_task(self._look(request), name="durable-batches authorize")
        try:
            # Not until it has ended: what a function makes of its cancellation is not known.
            await asyncio.wait([looking, time_is_up], return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            if not looking.done():
                looking.cancel()
                looking.add_done_callback(_retrieve)
        # One that was cancelled by its own code has not answered either.
        if looking.done() and not looking.cancelled():
            return looking.result()
        raise _NoAnswerError

    async def _look(self, request: Request) -> Access | None:
        return await self._authorize(request)


def _retrieve(task: asyncio.Task[Access | None]) -> None:
    """Have asyncio not log an error of a look that came too late."""
    if not task.cancelled():
        task.exception()


_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})

_STATE: Final = "durable_batches_access"

_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Protected:
    """Gives every answer of an application the headers that browsers protect it by."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_protected if scope["type"] == "http" else send)


class Guard:
    """Lets only requests through that may be made.

    Args:
        app: What it guards.
        authorize: Says what the sender of a request may do.
        allowed_origins: Origins (`https://example.org`) whose pages may send commands, beside the server's own.
        is_open: Whether the sender of any request may do everything: then this machine's own must name it.
        open_paths: Paths below the application's that hold nothing to protect.
        most_bytes: Of the body of a request.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        authorize: Authorize,
        allowed_origins: Collection[str],
        is_open: bool,
        open_paths: Callable[[str], bool],
        most_bytes: int,
    ) -> None:
        self._app = app
        self._authorize = authorize
        self._allowed = frozenset(allowed_origins)
        self._is_open = is_open
        self._open_paths = open_paths
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            await self._check(request)
        except Exception as error:  # noqa: BLE001  (of the application's function: it must not pass for a permission)
            if isinstance(error, _NoAnswerError):
                _log.warning("%s %s: authorize has not answered", request.method, request.url.path)
            await (await problem_of(request, error))(scope, receive, send)
            return
        await self._app(scope, self._bounded(receive), send)

    async def _check(self, request: Request) -> None:
        """Refuse a request that may not be made.

        Raises:
            HTTPException: Why not.
        """
        if request.method not in _SAFE and not self._is_from_here(request):
            raise HTTPException(HTTPStatus.FORBIDDEN, "pages of this origin may not send commands")
        if self._open_paths(_path_of(request)) and request.method in _SAFE:
            return
        if self._is_open and is_of_another_site(request, self._allowed):
            raise HTTPException(
                HTTPStatus.FORBIDDEN,
                "the request names another host than this machine; for that of a proxy, name its origin in "
                "allowed_origins",
            )
        if _declared_length(request) > self._most_bytes:
            raise self._too_large()
        access = await self._authorize(request)
        if access is None:
            raise HTTPException(HTTPStatus.UNAUTHORIZED, "sign in", {"WWW-Authenticate": "Bearer"})
        setattr(request.state, _STATE, access)

    def _is_from_here(self, request: Request) -> bool:
        """Whether it does not come from a page of another origin; other programs than browsers send neither header."""
        origin = request.headers.get("origin")
        if origin is not None:
            # That of a page without an origin is "null", and a host may be missing.
            host = origin.partition("://")[2]
            return origin in self._allowed or (host != "" and host == request.headers.get("host"))
        return request.headers.get("sec-fetch-site", "none") in ("none", "same-origin")

    def _bounded(self, receive: Receive) -> Receive:
        received = 0

        async def receive_bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._most_bytes:
                raise self._too_large()
            return message

        return receive_bounded

    def _too_large(self) -> HTTPException:
        return HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {self._most_bytes} bytes")


def _declared_length(request: Request) -> float:
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        return 0
    # Of more digits than any length has, Python would refuse to make a number.
    return int(length) if len(length) < 20 else float("inf")


def _path_of(request: Request) -> str:
    """Return the path below the application, wherever that is mounted."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))


def access_of(request: Request) -> Access:
    """Return what the sender of a request may do."""
    access = getattr(request.state, _STATE)
    assert isinstance(access, Access)
    return access
