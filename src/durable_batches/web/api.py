"""The routes: batches and everything about them as JSON, their progress as server-sent events, and commands."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from typing import Any, Final, TypeVar, cast, get_args

from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from durable_batches.errors import BatchNotFoundError
from durable_batches.lifecycle.config import changes_in
from durable_batches.lifecycle.events import PauseScope
from durable_batches.lifecycle.progress import BatchSnapshot
from durable_batches.lifecycle.records import ExecutionStatus
from durable_batches.lifecycle.states import ENDED_TAGS, BatchId, Stage
from durable_batches.reading.documents import RawDocument
from durable_batches.reading.raw_access import RawAccess
from durable_batches.web.access import Access, Action, Authorize, access_of
from durable_batches.web.frames import Chunks, chunks_of, frame
from durable_batches.web.models import (
    BATCH,
    BATCHES,
    CANCELLATION,
    CONFIG,
    DOCUMENTS,
    ERRORS,
    EXPLANATION,
    PAUSING,
    RESUMPTION,
    SPENDING,
    TIMELINE,
    BatchPage,
    Cancellation,
    DocumentPage,
    Pausing,
    Resumption,
    batch_of,
    document_of,
    explanation_of,
)
from durable_batches.web.schemas import (
    EXAMPLES,
    LARGEST,
    MOST_EXAMPLES,
    MOST_ON_A_PAGE,
    ON_A_PAGE,
    SCHEMA_HEADER,
    event_schema,
    openapi,
    snapshot_schema,
)
from durable_batches.web.streams import STREAM_HEADERS, EventStream, Streams, server_of
from durable_batches.web.timelines import Timelines
from durable_batches.web.urls import id_of

__all__ = ["MOST_PAYLOAD_CHARACTERS", "Api"]

_SNAPSHOT_INTERVAL: Final = timedelta(milliseconds=250)

MOST_PAYLOAD_CHARACTERS: Final = 16 * 1024 * 1024
"""Of the documents and results on a page, which are all in memory at once; a larger one is alone on its page."""
_LARGE_AT_ONCE: Final = 8
"""Documents that are read from the store at once with their payloads, as each may be large."""

T = TypeVar("T")


class Api:
    """The handlers of the routes.

    Args:
        batches: The batches.
        streams: Those of the application.
        authorize: Says again, each minute of a stream, what its client may do.
    """

    def __init__(self, batches: RawAccess, streams: Streams, authorize: Authorize) -> None:
        self._batches = batches
        self._streams = streams
        self._authorize = authorize
        self._chunks = Chunks()
        self._timelines = Timelines(batches)

    def routes(self) -> list[Route]:
        """Return the routes."""
        batch = "/batches/{batch}"
        return [
            Route("/batches", self._list),
            Route(batch, self._show),
            Route(f"{batch}/documents", self._documents),
            Route(f"{batch}/errors", self._errors),
            Route(f"{batch}/explain", self._explain),
            Route(f"{batch}/spent", self._spent),
            Route(f"{batch}/timeline", self._timeline),
            Route(f"{batch}/config", self._config),
            Route(f"{batch}/progress", self._progress),
            Route(f"{batch}/snapshots", self._snapshots),
            Route(f"{batch}/cancel", self._cancel, methods=["POST"]),
            Route(f"{batch}/pause", self._pause, methods=["POST"]),
            Route(f"{batch}/resume", self._resume, methods=["POST"]),
            Route(f"{batch}/update", self._update, methods=["POST"]),
            Route("/openapi.json", self._openapi),
            Route("/schemas/events/1", self._event_schema),
            Route("/schemas/snapshot/1", self._snapshot_schema),
        ]

    # ---- JSON ------------------------------------------------------------------------------------------------

    async def _list(self, request: Request) -> Response:
        access = _allowed(request, "read")
        limit = _number(request, "limit", ON_A_PAGE, least=1, most=MOST_ON_A_PAGE)
        labels = _labels(request)
        after = request.query_params.get("after")
        if any(labels.setdefault(name, value) != value for name, value in access.metadata.items()) or not (
            after is None or await self._is_there(after, access)
        ):
            return _json(BATCHES, BatchPage(batches=[], next=None))
        listed = self._batches.list_batches(
            workflow=request.query_params.get("workflow"),
            states=request.query_params.getlist("state"),
            metadata=labels,
            after=after,
        )
        shown, has_more = await _first(listed, limit)
        more = shown[-1].batch_id if has_more else None
        return _json(BATCHES, BatchPage(batches=[batch_of(batch) for batch in shown], next=more))

    async def _show(self, request: Request) -> Response:
        return _json(BATCH, batch_of(await self._seen(request, "read")))

    async def _documents(self, request: Request) -> Response:
        batch_id = (await self._seen(request, "read")).batch_id
        payloads = request.query_params.get("payloads", "false")
        if payloads not in ("true", "false"):
            raise _bad("payloads is true or false")
        if payloads == "true":
            _allowed(request, "read-payloads")
        status = request.query_params.get("status")
        if status is not None and status not in get_args(ExecutionStatus):
            raise _bad(f"status is one of {', '.join(get_args(ExecutionStatus))}")
        fingerprint = request.query_params.get("fingerprint")
        if fingerprint is not None and status not in (None, "failed"):
            raise _bad("only failed documents have a fingerprint")
        limit = _number(request, "limit", ON_A_PAGE, least=1, most=MOST_ON_A_PAGE)
        listed = self._batches.documents_in_pages(
            batch_id,
            fingerprint=fingerprint,
            status=cast("ExecutionStatus | None", status),
            payloads=payloads == "true",
            after=_number(request, "after", -1, least=-1),
            # One more than is shown tells whether there are more.
            size=min(limit + 1, _LARGE_AT_ONCE) if payloads == "true" else limit + 1,
        )
        shown, has_more = await _first(listed, limit, _characters)
        more = shown[-1].position if has_more else None
        return _json(DOCUMENTS, DocumentPage(documents=[document_of(document) for document in shown], next=more))

    async def _errors(self, request: Request) -> Response:
        batch_id = (await self._seen(request, "read")).batch_id
        examples = _number(request, "examples", EXAMPLES, least=0, most=MOST_EXAMPLES)
        return _json(ERRORS, await self._batches.errors(batch_id, examples=examples))

    async def _explain(self, request: Request) -> Response:
        batch_id = (await self._seen(request, "read")).batch_id
        return _json(EXPLANATION, explanation_of(await self._batches.explain(batch_id)))

    async def _spent(self, request: Request) -> Response:
        batch_id = (await self._seen(request, "read")).batch_id
        return _json(SPENDING, await self._batches.spent(batch_id))

    async def _timeline(self, request: Request) -> Response:
        snapshot = await self._seen(request, "read")
        return _json(TIMELINE, await self._timelines.timeline(snapshot))

    async def _config(self, request: Request) -> Response:
        batch_id = (await self._seen(request, "read")).batch_id
        return _json(CONFIG, await self._batches.config(batch_id))

    async def _cancel(self, request: Request) -> Response:
        batch_id = await self._commanded(request)
        reason = request.query_params.get("reason", "")
        return _json(CANCELLATION, Cancellation(cancelled=await self._batches.cancel(batch_id, reason=reason)))

    async def _pause(self, request: Request) -> Response:
        batch_id = await self._commanded(request)
        note = request.query_params.get("note", "")
        running = request.query_params.get("running", "calls")
        if running not in get_args(PauseScope):
            raise _bad(f"running is one of {', '.join(get_args(PauseScope))}")
        paused = await self._batches.pause(batch_id, note=note, running=cast("PauseScope", running))
        return _json(PAUSING, Pausing(paused=paused))

    async def _resume(self, request: Request) -> Response:
        batch_id = await self._commanded(request)
        return _json(RESUMPTION, Resumption(pauses=await self._batches.resume(batch_id)))

    async def _update(self, request: Request) -> Response:
        batch_id = (await self._seen(request, "read", "control")).batch_id
        try:
            changes = changes_in(await _json_body(request))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(map(str, problem["loc"]))
            raise _bad(f"{where}: {problem['msg']}" if where else problem["msg"]) from None
        return _json(CONFIG, await self._batches.update(batch_id, **changes))

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(openapi())

    async def _event_schema(self, request: Request) -> Response:
        return JSONResponse(event_schema())

    async def _snapshot_schema(self, request: Request) -> Response:
        return JSONResponse(snapshot_schema())

    # ---- streams ---------------------------------------------------------------------------------------------

    async def _progress(self, request: Request) -> Response | EventStream:
        # A browser that connects again sends both: the address as it was, and the last event that it has seen.
        after = max(_number(request, "after", 0), _last_event_id(request))

        def begin(snapshot: BatchSnapshot[Stage]) -> AsyncGenerator[bytes, None] | None:
            if snapshot.state.tag in ENDED_TAGS and after >= snapshot.seq:
                return None
            return self._event_chunks(snapshot.batch_id, after)

        return await self._stream(request, begin)

    async def _snapshots(self, request: Request) -> Response | EventStream:
        seen = _last_event_id(request)

        def begin(snapshot: BatchSnapshot[Stage]) -> AsyncGenerator[bytes, None] | None:
            if snapshot.state.tag in ENDED_TAGS and seen >= snapshot.seq:
                return None
            return self._snapshot_chunks(snapshot.batch_id)

        return await self._stream(request, begin)

    async def _stream(
        self,
        request: Request,
        begin: Callable[[BatchSnapshot[Stage]], AsyncGenerator[bytes, None] | None],
    ) -> Response | EventStream:
        # Before anything is awaited: a burst of clients must not pass by the limit.
        if not self._streams.reserve(server_of(request)):
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "there are too many streams", {"Retry-After": "5"})
        response: EventStream | None = None
        try:
            snapshot = await self._seen(request, "read")
            chunks = begin(snapshot)
            if chunks is None:
                return Response(status_code=HTTPStatus.NO_CONTENT)
            if request.method == "HEAD":
                # Only the head: a stream would last until its batch ends.
                return StreamingResponse(_nothing(), headers=STREAM_HEADERS)
            response = EventStream(self._streams, request, chunks, self._renewal(request, snapshot))
            return response
        finally:
            if response is None:
                self._streams.give_back()

    async def _event_chunks(self, batch_id: str, after: int) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._batches.event_blocks(batch_id, after)) as blocks:
            async for block in blocks:
                for chunk in chunks_of(block, self._chunks):
                    await self._streams.turn()
                    yield chunk

    async def _snapshot_chunks(self, batch_id: str) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._batches.watch(batch_id, interval=_SNAPSHOT_INTERVAL)) as snapshots:
            async for snapshot in snapshots:
                await self._streams.turn()
                yield self._chunks.get(
                    (batch_id, "snapshot", snapshot.seq, snapshot.created_at), partial(_snapshot_frame, snapshot)
                )

    def _renewal(self, request: Request, snapshot: BatchSnapshot[Stage]) -> Callable[[], Awaitable[bool]]:
        async def may_go_on() -> bool:
            access = await self._authorize(request)
            return access is not None and "read" in access.actions and _sees(access, snapshot)

        return may_go_on

    # ---- inside ----------------------------------------------------------------------------------------------

    async def _commanded(self, request: Request) -> BatchId:
        """Return the batch of a command, if the sender may give it."""
        snapshot = await self._seen(request, "read", "control")
        await _bodiless(request)
        return snapshot.batch_id

    async def _is_there(self, after: str, access: Access) -> bool:
        """Whether a list may go on behind a batch: what follows it would tell of one that the sender may not see."""
        if not access.metadata:
            return True
        try:
            return _sees(access, await self._batches.snapshot(after))
        except BatchNotFoundError:
            return False

    async def _seen(self, request: Request, *actions: Action) -> BatchSnapshot[Stage]:
        """Read the batch of a request, if the sender may do this with it.

        Raises:
            BatchNotFoundError: There is no such batch for the sender.
            HTTPException: The sender may not do this with any.
        """
        for action in actions:
            _allowed(request, action)
        batch_id = id_of(request.path_params["batch"])
        if batch_id is None:
            raise BatchNotFoundError(request.path_params["batch"])
        snapshot = await self._batches.snapshot(batch_id)
        if not _sees(access_of(request), snapshot):
            raise BatchNotFoundError(batch_id)
        return snapshot


async def _nothing() -> AsyncGenerator[bytes, None]:
    return
    yield


async def _bodiless(request: Request) -> None:
    """Refuse a command with a body: what is in it would be ignored.

    Raises:
        HTTPException: It has one.
    """
    try:
        async for part in request.stream():
            if part:
                raise HTTPException(
                    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                    "commands have no body; what they take is in the address: ?reason=...",
                )
    except ClientDisconnect:
        raise _bad("the client has left before all of its request was there") from None


async def _json_body(request: Request) -> bytes:
    """Read the body of an update; the guard bounds it.

    Raises:
        HTTPException: It is said to be no JSON, or did not arrive.
    """
    media_type, _, _ = request.headers.get("content-type", "").partition(";")
    if media_type.strip().lower() != "application/json":
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "an update has a body of application/json")
    try:
        return await request.body()
    except ClientDisconnect:
        raise _bad("the client has left before all of its request was there") from None


async def _first(
    items: AsyncGenerator[T, None], most: int, size_of: Callable[[T], int] | None = None
) -> tuple[list[T], bool]:
    """Return the first items, and whether there are more than these.

    Args:
        items: All items.
        most: Their number.
        size_of: Returns how many characters of payload an item has; None: none has many.
    """
    found: list[T] = []
    characters = 0
    async with aclosing(items):
        async for item in items:
            characters += 0 if size_of is None else size_of(item)
            if len(found) == most or (found and characters > MOST_PAYLOAD_CHARACTERS):
                return found, True
            found.append(item)
    return found, False


def _characters(document: RawDocument) -> int:
    """Return how long a document and its result are, as JSON."""
    return len(document.document or "") + len(document.result or "")


def _snapshot_frame(snapshot: BatchSnapshot[Stage]) -> bytes:
    return frame(BATCH.dump_json(batch_of(snapshot)), event="snapshot", id=snapshot.seq)


def _allowed(request: Request, action: Action) -> Access:
    access = access_of(request)
    if action not in access.actions:
        raise HTTPException(HTTPStatus.FORBIDDEN, f"this needs the right to {action}")
    return access


def _sees(access: Access, snapshot: BatchSnapshot[Stage]) -> bool:
    return all(snapshot.metadata.get(name) == value for name, value in access.metadata.items())


def _labels(request: Request) -> dict[str, str]:
    labels: dict[str, str] = {}
    for label in request.query_params.getlist("label"):
        name, equals, value = label.partition("=")
        if not equals:
            raise _bad("label is NAME=VALUE")
        labels[name] = value
    return labels


def _number(request: Request, name: str, default: int, *, least: int = 0, most: int = LARGEST) -> int:
    return _checked(request.query_params.get(name), name, default, least, most)


def _last_event_id(request: Request) -> int:
    return _checked(request.headers.get("last-event-id"), "Last-Event-ID", 0, 0, LARGEST)


def _checked(text: str | None, name: str, default: int, least: int, most: int) -> int:
    if text is None:
        return default
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdigit() and len(digits) <= len(str(LARGEST)) and least <= int(text) <= most:
        return int(text)
    raise _bad(f"{name} is a number from {least} to {most}")


def _bad(detail: str) -> HTTPException:
    return HTTPException(HTTPStatus.BAD_REQUEST, detail)


def _json(adapter: TypeAdapter[Any], value: object) -> Response:
    return Response(adapter.dump_json(value), headers=SCHEMA_HEADER, media_type="application/json")
