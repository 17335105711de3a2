"""A service as applications have them: a worker in the lifespan, its progress beside a route of the service's own.

`uvicorn tests.web.service:app`, in a folder that has nothing in it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route
from tests.support import STAGES

from durable_batches import BatchOrchestrator, SQLiteStore, Worker, durable_activity, workflow
from durable_batches.web import create_app

FILE = Path("batches.db")
LOG, GO = Path("log"), Path("go")
"""What has begun, a line each; and, once it is there, what was waited for."""


@durable_activity
async def ask(question: str) -> str:
    with LOG.open("a") as log:
        log.write(f"{question}\n")
    while question == "one" and not GO.exists():  # noqa: ASYNC110  (another process makes it)
        await asyncio.sleep(0.01)
    return question.upper()


@workflow(STAGES, name="asked")
async def asked(question: str) -> str:
    return await ask(f"{await ask(question)}?")


worker = Worker(SQLiteStore(FILE), max_in_flight=1, signals=True)
batches = BatchOrchestrator(asked, worker=worker)


async def forever(_: Request) -> Response:
    """A response that ends when its client has gone."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"begun\n"
        await asyncio.Event().wait()

    return StreamingResponse(parts())


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncGenerator[None]:
    async with worker:
        await batches.submit(["one", "two"], batch_id="monday", document_id=str)
        yield
    os.write(2, b"closed\n")


app = Starlette(
    routes=[Mount("/durable", create_app(worker, allow_anonymous=True)), Route("/forever", forever)], lifespan=lifespan
)
