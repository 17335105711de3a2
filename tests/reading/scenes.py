"""A store in a scene that stands still, and a client that looks at it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime

from tests.conftest import StoreMaker
from tests.support import opened

from durable_batches import BatchClient
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.testing import ManualClock
from durable_batches.testing.conformance.scene import Scene


@asynccontextmanager
async def scene_of(make: StoreMaker) -> AsyncGenerator[tuple[Scene, BatchClient, ManualClock]]:
    """A store on a clock that stands still, a client of it, and hands that do what workers do."""
    clock = ManualClock()

    async def pass_time(seconds: float) -> None:
        clock.advance(seconds)

    async with opened(make(clock)) as store, BatchClient(make(clock), clock=clock) as client:
        yield Scene(store, pass_time), client, clock


def now(clock: ManualClock) -> datetime:
    return from_micros(clock.now())
