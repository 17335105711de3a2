"""What supervisors and load balancers ask: whether the process answers, and whether it may begin work.

They have no token, and are told nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

__all__ = ["Health", "is_of_health"]

_ALIVE = "/health"
_READY = "/ready"


def is_of_health(path: str) -> bool:
    """Whether this is the address of one of these routes, which hold nothing to protect."""
    return path in (_ALIVE, _READY)


class Health:
    """The handlers of the routes.

    Args:
        ready: Says whether the process may begin work.
    """

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._is_ready = ready

    def routes(self) -> Sequence[Route]:
        """Return the routes."""
        return [Route(_ALIVE, self._alive), Route(_READY, self._ready)]

    async def _alive(self, request: Request) -> Response:
        # The store is not asked: to restart a process because its database is away helps nobody.
        return JSONResponse({"alive": True})

    async def _ready(self, request: Request) -> Response:
        ready = self._is_ready()
        return JSONResponse({"ready": ready}, status_code=HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)
