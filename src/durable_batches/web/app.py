"""The application: mounted in a framework's, or served alone."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any, Final, Literal, TypeAlias, overload

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from durable_batches.errors import ConfigurationError, DurableBatchesError
from durable_batches.options import check_callable, check_duration, check_flag, check_integer, check_names
from durable_batches.orchestrator.orchestrator import BatchOrchestrator
from durable_batches.reading.client import BatchClient
from durable_batches.reading.raw_access import RawAccess
from durable_batches.web.access import Authorize, Guard, InTime, Protected, anyone
from durable_batches.web.api import Api
from durable_batches.web.health import Health, is_of_health
from durable_batches.web.page import is_of_the_page, page_routes
from durable_batches.web.problems import problem_of
from durable_batches.web.streams import Streams
from durable_batches.worker.worker import Worker

__all__ = ["WebApp", "create_app"]

Batches: TypeAlias = BatchClient | Worker | BatchOrchestrator[Any, Any, Any, Any]

_MOST_BYTES: Final = 65_536
"""Of the body of a request: commands are short."""

_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^A-Z/?#@*\s]+")
"""As browsers send it; neither a pattern nor `null`, which is the origin of pages of anybody."""


class WebApp:
    """An ASGI application, as `create_app` makes it."""

    def __init__(self, app: ASGIApp, streams: Streams) -> None:
        self._app = app
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or take part in the start and end of the server."""
        if scope["type"] == "http":
            self._streams.listen()
        await self._app(scope, receive, send)

    def close_streams(self) -> None:
        """End all streams, on the event loop: before a server stops that gets no signals, on systems without /proc."""
        self._streams.close()


@overload
def create_app(
    batches: Batches,
    *,
    authorize: Authorize,
    allowed_origins: Collection[str] = (),
    max_clients: int = 1_000,
    keep_alive: timedelta = timedelta(seconds=15),
    page: bool = True,
) -> WebApp: ...
@overload
def create_app(
    batches: Batches,
    *,
    allow_anonymous: Literal[True],
    allowed_origins: Collection[str] = (),
    max_clients: int = 1_000,
    keep_alive: timedelta = timedelta(seconds=15),
    page: bool = True,
) -> WebApp: ...
def create_app(
    batches: Batches,
    *,
    authorize: Authorize | None = None,
    allow_anonymous: bool = False,
    allowed_origins: Collection[str] = (),
    max_clients: int = 1_000,
    keep_alive: timedelta = timedelta(seconds=15),
    page: bool = True,
) -> WebApp:
    """Make an ASGI application that shows batches and their progress, and takes commands.

    Mounted in another application, it needs `batches` to be open: enter it where that one starts. Served alone, it
    opens `batches` itself.

    Args:
        batches: A client; or a worker or orchestrator, of which the batches of all workflows are shown.
        authorize: Says what the sender of a request may do; None: nothing. Asked again at least every minute of a
            stream. Where it raises an error, or does not answer in 10 s, the sender may do nothing.
        allow_anonymous: Everybody who reaches the server may do everything. Requests from the same machine must name
            `localhost`, an address, or the host of an allowed origin, as otherwise any web site could send them.
        allowed_origins: Origins (`https://example.org`) of other pages that may read and command from a browser.
        max_clients: Streams at once; more are refused with 503.
        keep_alive: Without a message for this time, a stream gets a comment: less than the limits of proxies.
        page: Serve the page, too.

    Raises:
        ConfigurationError: Neither `authorize` nor `allow_anonymous` is given, or an option cannot be used.
    """
    check_callable("authorize", authorize, optional=True)
    check_flag("allow_anonymous", allow_anonymous)
    check_names("allowed_origins", allowed_origins)
    for origin in allowed_origins:
        if not _ORIGIN.fullmatch(origin):
            raise ConfigurationError(f"allowed_origins: {origin!r} is no origin; give each as https://example.org")
    check_integer("max_clients", max_clients)
    check_duration("keep_alive", keep_alive)
    check_flag("page", page)
    if (authorize is None) != allow_anonymous:
        raise ConfigurationError("give authorize=, which says who may do what, or allow_anonymous=True")
    if max_clients < 1 or keep_alive <= timedelta():
        raise ConfigurationError("max_clients and keep_alive must be positive")
    access = _access_to(batches)
    allow = anyone if authorize is None else InTime(authorize, access.clock)
    streams = Streams(access.clock, max_clients, keep_alive)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        streams.open()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(batches)
            stack.callback(streams.leave)
            yield

    health = Health(_readiness_of(batches, streams), access)
    routes: list[BaseRoute] = [
        *Api(access, streams, allow).routes(),
        *health.routes(),
        *(page_routes() if page else ()),
    ]
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={HTTPException: problem_of, DurableBatchesError: problem_of, Exception: problem_of},
    )
    # What it would redirect to is made of headers that a proxy may not have told it right.
    app.router.redirect_slashes = False
    guarded: ASGIApp = Guard(
        app,
        authorize=allow,
        allowed_origins=allowed_origins,
        is_open=allow_anonymous,
        open_paths=lambda path: is_of_health(path) or (page and is_of_the_page(path)),
        most_bytes=_MOST_BYTES,
    )
    if allowed_origins:
        # Before the guard: what a browser asks first, it asks without the token; and a page is to read a refusal.
        guarded = CORSMiddleware(
            guarded,
            allow_origins=list(allowed_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID"],
            expose_headers=["Durable-Batches-Schema", "Retry-After"],
        )
    return WebApp(Protected(guarded), streams)


def _readiness_of(batches: Batches, streams: Streams) -> Callable[[], bool]:
    """Return what says whether requests are to come here: not while it stops, nor where a worker can begin nothing."""
    match batches:
        case Worker():
            worker = batches
        case BatchOrchestrator():
            worker = batches.worker
        case BatchClient():
            return lambda: not streams.closing
    return lambda: not streams.closing and worker.health().ready


def _access_to(batches: Batches) -> RawAccess:
    match batches:
        case BatchClient():
            return batches
        case Worker():
            return batches.raw_access()
        case BatchOrchestrator():
            return batches.worker.raw_access()
        case _:
            raise ConfigurationError(f"batches must be a BatchClient, Worker or BatchOrchestrator, not {batches!r}")
