"""Who may do what: asked of the application for each request, and round everything, before any route is looked up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Literal, TypeAlias, get_args
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from durable_batches.errors import ConfigurationError
from durable_batches.options import check_choice, check_instance, check_labels, check_text
from durable_batches.web.problems import problem_of

__all__ = ["EVERYTHING", "Access", "Action", "Authorize", "Guard", "access_of", "anyone"]

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


class Guard:
    """Lets only requests through that may be made, and gives every answer the headers that browsers protect it by.

    Args:
        app: What it guards.
        authorize: Says what the sender of a request may do.
        allowed_origins: Origins (`https://example.org`) whose pages may send commands, beside the server's own.
        open_paths: Paths below the application's that hold nothing to protect.
        most_bytes: Of the body of a request.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        authorize: Authorize,
        allowed_origins: Collection[str],
        open_paths: Callable[[str], bool],
        most_bytes: int,
    ) -> None:
        self._app = app
        self._authorize = authorize
        self._allowed = frozenset(allowed_origins)
        self._open_paths = open_paths
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        request = Request(scope, receive)
        try:
            await self._check(request)
        except Exception as error:  # noqa: BLE001  (of the application's function: it must not pass for a permission)
            await (await problem_of(request, error))(scope, receive, send_protected)
            return
        await self._app(scope, self._bounded(receive), send_protected)

    async def _check(self, request: Request) -> None:
        """Refuse a request that may not be made.

        Raises:
            HTTPException: Why not.
        """
        if request.method not in _SAFE and not self._is_from_here(request):
            raise HTTPException(HTTPStatus.FORBIDDEN, "pages of this origin may not send commands")
        if _declared_length(request) > self._most_bytes:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {self._most_bytes} bytes")
        if self._open_paths(_path_of(request)) and request.method in _SAFE:
            return
        access = await self._authorize(request)
        if access is None:
            raise HTTPException(HTTPStatus.UNAUTHORIZED, "sign in", {"WWW-Authenticate": "Bearer"})
        setattr(request.state, _STATE, access)

    def _is_from_here(self, request: Request) -> bool:
        """Whether it does not come from a page of another origin; other programs than browsers send neither header."""
        origin = request.headers.get("origin")
        if origin is not None:
            return origin in self._allowed or urlsplit(origin).netloc == request.headers.get("host", "")
        return request.headers.get("sec-fetch-site", "none") in ("none", "same-origin")

    def _bounded(self, receive: Receive) -> Receive:
        received = 0

        async def receive_bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._most_bytes:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {self._most_bytes} bytes")
            return message

        return receive_bounded


def _declared_length(request: Request) -> int:
    length = request.headers.get("content-length", "0")
    return int(length) if length.isascii() and length.isdigit() else 0


def _path_of(request: Request) -> str:
    """Return the path below the application, wherever that is mounted."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))


def access_of(request: Request) -> Access:
    """Return what the sender of a request may do."""
    access = getattr(request.state, _STATE)
    assert isinstance(access, Access)
    return access
