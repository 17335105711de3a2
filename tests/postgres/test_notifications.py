"""Notifications from other processes: none waits for the next poll."""

from __future__ import annotations

import asyncio
import threading

import pytest
from tests.support import opened, within

from durable_batches import PostgresStore
from durable_batches.stores.postgres.connection.session import Session
from durable_batches.stores.postgres.notifications import Notifications
from durable_batches.testing.conformance.scene import Scene


@pytest.mark.parametrize("moment", ["while it looks", "while it rests"])
async def test_a_notification_that_comes_at_any_moment_is_heard(
    postgres_dsn: str, migrated_schema: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable_batches.stores.postgres.notifications._POLL_SECONDS", 3600.0)
    look = Notifications._look
    looking, rest = asyncio.Event(), asyncio.Event()
    go_on = threading.Event()
    if moment == "while it rests":
        go_on.set()
    loop = asyncio.get_running_loop()
    slow = False

    async def slow_look(self: Notifications, session: Session) -> None:
        await look(self, session)
        if slow:
            # The rest of a look, on a busy server.
            loop.call_soon_threadsafe(looking.set)
            await asyncio.to_thread(go_on.wait)
            loop.call_soon_threadsafe(rest.set)

    here, there = (PostgresStore(postgres_dsn, schema=migrated_schema) for _ in range(2))
    async with opened(here), opened(there):
        scene = Scene(there, asyncio.sleep)
        batch_id = await scene.batch(1)
        hand = await scene.worker()
        monkeypatch.setattr(Notifications, "_look", slow_look)
        slow = True
        waiting = asyncio.create_task(here.wait({batch_id: 1}, work=(), timeout=3_600_000_000))
        await within((looking if moment == "while it looks" else rest).wait())
        slow = False
        await hand.claim()
        go_on.set()
        await within(waiting)
