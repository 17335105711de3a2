"""The application on a server in the test's own event loop: there at once, and without a process to end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, get_args

import uvicorn
from starlette.requests import Request
from tests.browser.batches import Shop
from tests.support import within
from tests.web.servers import BEARER

from durable_batches.cli.serve import listener_at
from durable_batches.web import Access, Action, WebApp, create_app

EVERYTHING: Final[Collection[Action]] = get_args(Action)


class Here(NamedTuple):
    address: str
    """With a slash at its end."""


@asynccontextmanager
async def served(app: WebApp) -> AsyncGenerator[Here]:
    """Serve an application until the end of the block."""
    with listener_at("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning"))
        serving = asyncio.create_task(server.serve([listener]))
        try:
            yield Here(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        finally:
            app.close_streams()
            server.should_exit = True
            await within(serving)


@asynccontextmanager
async def serving_here(found: Shop, actions: Collection[Action] = EVERYTHING) -> AsyncGenerator[Here]:
    """Serve the batches of a shop to those who have the token."""

    async def authorize(request: Request) -> Access | None:
        allowed = request.headers.get("authorization") == BEARER["Authorization"]
        return Access(actions=actions) if allowed else None

    async with served(create_app(found.batches, authorize=authorize)) as here:
        yield here
