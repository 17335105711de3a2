"""Refusals as problem details (RFC 9457), and the library's errors as such."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from durable_batches.errors import (
    BatchEndedError,
    BatchNotFoundError,
    ConfigurationError,
    DurableBatchesError,
    ReadOnlyClientError,
    StoreUnavailableError,
    WorkerNotRunningError,
)

__all__ = ["MEDIA_TYPE", "problem", "problem_of"]

_log = logging.getLogger("durable_batches")

MEDIA_TYPE = "application/problem+json"

_RETRY_SECONDS = "5"

_STATUSES = frozenset(HTTPStatus)


def problem(
    status: int,
    detail: str = "",
    *,
    code: str = "",
    help_page: str = "about:blank",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a refusal.

    Args:
        status: Of HTTP.
        detail: One sentence, without secrets.
        code: The stable code of an error of the library.
        help_page: The address of its page.
        headers: Of the response.
    """
    title = HTTPStatus(status).phrase if status in _STATUSES else ""
    body = {"type": help_page, "title": title, "status": int(status), "detail": detail, "code": code}
    return Response(json.dumps(body), status, headers, media_type=MEDIA_TYPE)


async def problem_of(request: Request, error: Exception) -> Response:
    """Return the refusal that an error means. One that is no refusal is logged, and tells the client nothing."""
    match error:
        case HTTPException():
            # Also one of the application's, which may have any status, and in some frameworks any detail.
            return problem(error.status_code, str(error.detail), headers=error.headers)
        case ConfigurationError():
            # Of what the client asks for: the application itself was configured when it was made.
            return _of(error, HTTPStatus.BAD_REQUEST)
        case BatchNotFoundError():
            return _of(error, HTTPStatus.NOT_FOUND)
        case BatchEndedError():
            return _of(error, HTTPStatus.CONFLICT)
        case ReadOnlyClientError():
            return _of(error, HTTPStatus.FORBIDDEN)
        case StoreUnavailableError() | WorkerNotRunningError():
            # Its message may name hosts and files, which are for the log.
            _log.warning("%s %s: %s", request.method, request.url.path, error)
            return problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "the store cannot be read now",
                code=error.code,
                help_page=error.help_page,
                headers={"Retry-After": _RETRY_SECONDS},
            )
        case _:
            _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
            return problem(HTTPStatus.INTERNAL_SERVER_ERROR)


def _of(error: DurableBatchesError, status: HTTPStatus) -> Response:
    return problem(status, str(error), code=error.code, help_page=error.help_page)
