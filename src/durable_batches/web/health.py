"""What supervisors and load balancers ask: whether the process answers, and whether it may begin work.

They have no token, and are told nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from durable_batches.clock import Deadline
from durable_batches.errors import BatchNotFoundError, DurableBatchesError
from durable_batches.reading.raw_access import RawAccess
from durable_batches.tasks import ReusableLock

__all__ = ["Health", "is_of_health"]

_ALIVE = "/health"
_READY = "/ready"

_PATIENCE_SECONDS: Final = 2.0
"""How long the store has to answer; supervisors wait a few seconds at most."""
_KEPT_SECONDS: Final = 1.0
"""How long its answer stands: requests without a token do not become statements, however many there are."""
_NO_BATCH: Final = "ready"
"""A batch that the store is asked for; nothing is read of it, should there be one."""


def is_of_health(path: str) -> bool:
    """Whether this is the address of one of these routes, which hold nothing to protect."""
    return path in (_ALIVE, _READY)


class Health:
    """The handlers of the routes.

    Args:
        ready: Says whether the process may begin work.
        access: Reads the store.
    """

    def __init__(self, ready: Callable[[], bool], access: RawAccess) -> None:
        self._is_ready = ready
        self._access = access
        self._asking = ReusableLock()
        self._answers = False
        self._asked_at = float("-inf")

    def routes(self) -> Sequence[Route]:
        """Return the routes."""
        return [Route(_ALIVE, self._alive), Route(_READY, self._ready)]

    async def _alive(self, request: Request) -> Response:
        # The store is not asked: to restart a process because its database is away helps nobody.
        return JSONResponse({"alive": True})

    async def _ready(self, request: Request) -> Response:
        ready = self._is_ready() and await self._store_answers()
        return JSONResponse({"ready": ready}, status_code=HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)

    async def _store_answers(self) -> bool:
        """Return whether the store answers, and its schema can be read."""
        clock = self._access.clock
        async with self._asking:
            if clock.boot() - self._asked_at >= _KEPT_SECONDS:
                self._answers = await self._ask()
                self._asked_at = clock.boot()
            return self._answers

    async def _ask(self) -> bool:
        try:
            async with Deadline(self._access.clock, _PATIENCE_SECONDS):
                await self._access.state(_NO_BATCH)
        except BatchNotFoundError:
            return True
        except (DurableBatchesError, TimeoutError):
            return False
        return True
