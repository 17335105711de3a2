"""A FastAPI service with two workflows, for several tenants, and a page that shows each tenant its batches.

    python examples/service.py --port 8000   (needs: pip install 'durable-batches[web]' fastapi)

    curl -H 'X-Api-Key: acme-key' -H 'Idempotency-Key: monday' http://127.0.0.1:8000/summaries \
         -d '{"documents": [{"id": "a", "text": "It rains. It pours. The old man snores."}]}' \
         -H 'Content-Type: application/json'
    curl -H 'X-Api-Key: acme-key' http://127.0.0.1:8000/summaries/acme:summaries:monday
    curl -H 'X-Api-Key: acme-key' http://127.0.0.1:8000/summaries/acme:summaries:monday/results
    curl -N -H 'X-Api-Key: acme-key' http://127.0.0.1:8000/durable/batches/acme:summaries:monday/progress

The page is at http://127.0.0.1:8000/durable/#token=acme-key. Both workflows share one `Worker`: one lease, one limit on
concurrency, one set of clients. At SIGTERM, it claims nothing more, running activities finish and are recorded, and
streams end, so that the server stops; when it starts again, unfinished batches continue by themselves. A second replica
needs only the same store.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from pydantic_core import to_json

from durable_batches import (
    BatchConfig,
    BatchExistsError,
    BatchNotFoundError,
    BatchOrchestrator,
    BatchSnapshot,
    BatchStateMachine,
    Counts,
    DuplicateDocumentError,
    DurableBatchesError,
    PayloadError,
    PayloadTooLargeError,
    RetryFailed,
    RetryPolicy,
    SQLiteStore,
    Stage,
    StoreUnavailableError,
    SubmissionInProgressError,
    Worker,
    WorkflowMismatchError,
    current_execution,
    dependency,
    durable_activity,
    workflow,
)
from durable_batches.web import Access
from durable_batches.web import create_app as progress_app

# ---- the paid service: your own client goes here --------------------------------------------------------------------


class BusyError(Exception):
    """503; its `retry_after` sets the delay."""

    retry_after = 0.05


class LanguageModel:
    """Summarises and translates by rules; busy for some requests, always the same ones."""

    def __init__(self) -> None:
        self._asked: set[str] = set()

    async def summarise(self, text: str) -> str:
        await self._work(text)
        return text.split(".")[0].strip() + "."

    async def translate(self, text: str, language: str) -> str:
        await self._work(text + language)
        words = {"fr": {"rain": "pluie", "sun": "soleil"}, "de": {"rain": "Regen", "sun": "Sonne"}}
        return " ".join(words[language].get(word, word) for word in text.split())

    async def _work(self, request: str) -> None:
        await asyncio.sleep(0.02)
        if request not in self._asked and hashlib.sha256(request.encode()).digest()[0] < 64:
            self._asked.add(request)
            raise BusyError("503")


async def language_model() -> AsyncIterator[LanguageModel]:
    yield LanguageModel()


# ---- two workflows --------------------------------------------------------------------------------------------------


class Article(BaseModel):
    """Results, events and errors identify a document by its `id`."""

    id: str = Field(min_length=1, max_length=100)
    text: str = Field(max_length=100_000)


class Summary(BaseModel):
    text: str
    shortened_to: float


class Summarising(Stage):
    tag: Literal["summarising"] = "summarising"


class Checking(Stage):
    tag: Literal["checking"] = "checking"


class Translating(Stage):
    tag: Literal["translating"] = "translating"


class EmptyTextError(Exception):
    """There is nothing to summarise."""


RETRY = RetryPolicy(max_attempts=4, initial=timedelta(milliseconds=100), non_retryable=(EmptyTextError,))
TIMEOUT = timedelta(seconds=30)


@durable_activity(stage=Summarising, retry=RETRY, timeout=TIMEOUT)
async def summarise(text: str, model: LanguageModel = dependency(language_model)) -> str:
    if not text.strip():
        raise EmptyTextError("the text is empty")
    return await model.summarise(text)


@durable_activity(stage=Checking)
async def share_of(summary: str, text: str) -> float:
    return round(len(summary) / len(text), 3)


@durable_activity(stage=Translating, retry=RETRY, timeout=TIMEOUT)
async def translate(text: str, language: str, model: LanguageModel = dependency(language_model)) -> str:
    return await model.translate(text, language)


@workflow(BatchStateMachine(Summarising, Checking), name="summaries")
async def summaries(article: Article) -> Summary:
    summary = await summarise(article.text)
    return Summary(text=summary, shortened_to=await share_of(summary, article.text))


LANGUAGES = {"acme": "de", "globex": "fr"}


@workflow(BatchStateMachine(Translating), name="translations")
async def translations(article: Article) -> str:
    # The labels of the batch, not of the request, which no longer exists when the batch is resumed.
    tenant = current_execution().metadata["tenant"]
    return await translate(article.text, LANGUAGES[tenant])


# ---- tenants --------------------------------------------------------------------------------------------------------

API_KEYS = {"acme-key": "acme", "globex-key": "globex"}


async def tenant_of(x_api_key: Annotated[str, Header()]) -> str:
    if x_api_key not in API_KEYS:
        raise HTTPException(401, "unknown API key")
    return API_KEYS[x_api_key]


Tenant = Annotated[str, Depends(tenant_of)]


async def authorize(request: Request) -> Access | None:
    """Say what the sender of a request to the progress may do: a program, by its key; the page, by its token."""
    key = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
    tenant = API_KEYS.get(key)
    if tenant is None:
        return None
    # The batches of other tenants are not there for this one.
    return Access(actions={"read", "read-payloads", "control"}, metadata={"tenant": tenant}, principal=tenant)


# ---- requests -------------------------------------------------------------------------------------------------------


class Submission(BaseModel):
    documents: list[Article]


class Submitted(BaseModel):
    batch_id: str


class StageStatus(BaseModel):
    stage: str
    done: int
    total: int


class Status(BaseModel):
    batch_id: str
    state: str
    percentage: float
    counts: Counts
    stages: list[StageStatus]
    eta: datetime | None
    created_at: datetime


def status_of(snapshot: BatchSnapshot[Stage]) -> Status:
    return Status(
        batch_id=snapshot.batch_id,
        state=snapshot.state.tag,
        percentage=round(snapshot.percentage, 1),
        counts=snapshot.counts,
        stages=[StageStatus(stage=one.stage, done=one.done, total=one.total) for one in snapshot.stages],
        eta=snapshot.eta,
        created_at=snapshot.created_at,
    )


def routes(kind: str, batches: BatchOrchestrator[Article, object, Stage, object]) -> APIRouter:
    """Make the endpoints of any workflow; they need to know only that its results are JSON."""
    router = APIRouter(prefix=f"/{kind}", tags=[kind])

    async def own(batch_id: str, tenant: Tenant) -> str:
        """Look up a batch; one of another tenant counts as not found."""
        snapshot = await batches.snapshot(batch_id)
        if snapshot.metadata.get("tenant") != tenant:
            raise BatchNotFoundError(batch_id)
        return batch_id

    @router.post("", status_code=202)
    async def submit(
        submission: Submission,
        tenant: Tenant,
        idempotency_key: Annotated[str | None, Header(pattern=r"^[\w.-]{1,100}$")] = None,
    ) -> Submitted:
        """Submit a batch; a repeated request with the same key returns the existing batch and costs nothing."""
        batch_id = await batches.submit(
            submission.documents,
            batch_id=f"{tenant}:{kind}:{idempotency_key}" if idempotency_key else None,
            config=BatchConfig(
                concurrency=8,
                failure_policy=RetryFailed(max_attempts=2, backoff=timedelta(milliseconds=100)),
                metadata={"tenant": tenant},
            ),
        )
        return Submitted(batch_id=batch_id)

    @router.get("")
    async def listing(tenant: Tenant, state: str | None = None) -> list[Status]:
        states = [] if state is None else [state]
        return [status_of(found) async for found in batches.list_batches(states=states, metadata={"tenant": tenant})]

    @router.get("/{batch_id}")
    async def status(batch_id: str = Depends(own)) -> Status:
        return status_of(await batches.snapshot(batch_id))

    @router.get("/{batch_id}/results")
    async def results(batch_id: str = Depends(own)) -> StreamingResponse:
        """Stream one line of JSON per finished document, in submission order, for batches of any size."""

        async def lines() -> AsyncGenerator[bytes]:
            async with aclosing(batches.results(batch_id)) as outcomes:
                async for outcome in outcomes:
                    yield to_json(outcome) + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    @router.post("/{batch_id}/cancel")
    async def cancel(batch_id: str = Depends(own), reason: str = "") -> dict[str, bool]:
        """Cancel a batch. True: this request cancelled it. False: it had finished before."""
        return {"cancelled": await batches.cancel(batch_id, reason=reason)}

    return router


# ---- the application ------------------------------------------------------------------------------------------------

# The first match wins, so subclasses come first. Errors that are not listed are bugs: 500.
HTTP_STATUS: list[tuple[type[DurableBatchesError], int]] = [
    (BatchNotFoundError, 404),
    (WorkflowMismatchError, 404),
    (BatchExistsError, 409),
    (SubmissionInProgressError, 409),
    (PayloadTooLargeError, 413),
    (PayloadError, 422),
    (DuplicateDocumentError, 422),
    (StoreUnavailableError, 503),
]


async def problem(_request: Request, error: Exception) -> JSONResponse:
    """Respond with the library's message, which names batches and documents and never contains payloads."""
    assert isinstance(error, DurableBatchesError)
    status = next((status for kind, status in HTTP_STATUS if isinstance(error, kind)), 500)
    message = str(error) if status < 500 else "try again later"
    return JSONResponse({"code": error.code, "message": message}, status_code=status)


def create_app(store: Path) -> FastAPI:
    # It drains from the signal on, and not when the server has waited for its clients.
    worker = Worker(SQLiteStore(store), max_in_flight=50, drain=timedelta(seconds=10), signals=True)
    all_summaries = BatchOrchestrator(summaries, worker=worker)
    all_translations = BatchOrchestrator(translations, worker=worker)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[None]:
        async with worker:
            yield

    app = FastAPI(title="Summaries and translations", lifespan=lifespan)
    app.add_exception_handler(DurableBatchesError, problem)
    app.include_router(routes("summaries", all_summaries))
    app.include_router(routes("translations", all_translations))
    # A page, and the progress of each batch as server-sent events; /durable/ready and /durable/health for a supervisor.
    app.mount("/durable", progress_app(worker, authorize=authorize))
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description="Summaries and translations")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--store", type=Path, default=Path("service.db"))
    arguments = parser.parse_args()
    # Downloads of results that are under way at SIGTERM have five seconds.
    uvicorn.run(create_app(arguments.store), host="127.0.0.1", port=arguments.port, timeout_graceful_shutdown=5)


if __name__ == "__main__":
    main()
