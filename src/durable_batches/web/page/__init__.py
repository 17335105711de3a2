"""The page: files that a browser is served as they are, without a build."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus
from importlib.resources import files
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["is_of_the_page", "page_routes"]

_TYPES: Final = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_STATIC: Final = (
    "page.css",
    *(
        f"{name}.js"
        for name in ("attention", "batch", "elements", "list", "options", "page", "pictures", "server", "stream")
    ),
)
_START: Final = "index.html"


def is_of_the_page(path: str) -> bool:
    """Whether this is the address of a file of the page, which holds nothing to protect."""
    return path in ("/", *(f"/static/{name}" for name in _STATIC))


def page_routes() -> Sequence[Route]:
    """Return the routes of the page."""
    return [Route("/", _serve), Route("/static/{name}", _serve)]


async def _serve(request: Request) -> Response:
    name = request.path_params.get("name", _START)
    if name not in (_START, *_STATIC):
        raise HTTPException(HTTPStatus.NOT_FOUND)
    content, tag = _file(name)
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=_TYPES[name.rpartition(".")[2]])


@lru_cache
def _file(name: str) -> tuple[bytes, str]:
    content = files(__name__).joinpath(name).read_bytes()
    return content, f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
