"""A machine that sleeps: who asked for an expiry before it did expires nobody after it, least of all itself.

The processes of the machine go on in any order, so that an expiry may run before a lease that it finds over was
renewed. All that it can be told apart by is how long ago it was asked for.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.conftest import StoreMaker
from tests.support import PATIENCE, opened, turns, within

from durable_batches import PostgresStore, SQLiteStore, Store
from durable_batches.stores.protocol import Expired
from durable_batches.testing import ManualClock
from durable_batches.testing.conformance.scene import LEASE, Scene

on_databases = pytest.mark.parametrize("open_store", ["sqlite", "postgres"], indirect=True)
"""What is in memory is not waited for: nothing can sleep between a question and its answer."""


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(open_store: StoreMaker, clock: ManualClock) -> Store:
    return open_store(clock)


@asynccontextmanager
async def standing_still(store: Store) -> AsyncGenerator[Callable[[], Awaitable[object]]]:
    """Within: the store does nothing that it is asked for, until the function is called."""
    goes_on = threading.Event()
    if isinstance(store, SQLiteStore):
        assert store._writer is not None
        standing: Awaitable[object] = store._writer.run(lambda connection: goes_on.wait(PATIENCE))
    else:
        assert isinstance(store, PostgresStore)

        async def stand_still() -> None:
            goes_on.wait(PATIENCE)

        standing = asyncio.wrap_future(store._open_store().thread.start(stand_still()))
    task = asyncio.ensure_future(standing)

    async def go_on() -> None:
        goes_on.set()
        await task

    try:
        yield go_on
    finally:
        await go_on()


@on_databases
async def test_an_expiry_that_was_asked_for_before_a_machine_slept_expires_nobody(
    store: Store, clock: ManualClock
) -> None:
    async with opened(store):
        scene = Scene(store, asyncio.sleep)
        short, long = await scene.worker(lease=LEASE), await scene.worker(lease=20 * LEASE)
        dead = await scene.worker(lease=20 * LEASE)
        # Long enough to remember no lock of the time before the file was opened.
        clock.advance(2)
        async with standing_still(store) as go_on:
            expiring = asyncio.create_task(store.expire(dead=[dead.worker_id]))
            await turns(5)
            clock.advance(2 * LEASE)
            await go_on()
        # Of a dead process it is known otherwise.
        assert list((await within(expiring)).workers) == [dead.worker_id]
        # One that is asked for now is none of before.
        assert list((await store.expire()).workers) == [short.worker_id]
        clock.advance(20 * LEASE)
        assert list((await store.expire()).workers) == [long.worker_id]


@on_databases
async def test_a_short_wait_spares_short_leases_only(store: Store, clock: ManualClock) -> None:
    """Who was kept from renewing for a small part of its lease has had its chances."""
    async with opened(store):
        scene = Scene(store, asyncio.sleep)
        short, long = await scene.worker(lease=LEASE), await scene.worker(lease=20 * LEASE)
        clock.advance(30 * LEASE)
        async with standing_still(store) as go_on:
            expiring = asyncio.create_task(store.expire())
            await turns(5)
            clock.advance(LEASE)
            await go_on()
        assert list((await within(expiring)).workers) == [long.worker_id]
        assert list((await store.expire()).workers) == [short.worker_id]


@pytest.mark.parametrize("renewed", [False, True])
async def test_a_machine_that_sleeps_between_the_look_and_the_expiry(
    postgres_dsn: str, migrated_schema: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, renewed: bool
) -> None:
    """Who was past its lease when it looked is expired; who slept along is not, whether or not it renews first."""
    async with opened(PostgresStore(postgres_dsn, schema=migrated_schema, clock=clock)) as store:
        scene = Scene(store, asyncio.sleep)
        dead = await scene.worker(lease=LEASE)
        clock.advance(2 * LEASE)
        asleep = await scene.worker(lease=LEASE)
        expire = store._workers._expire

        async def after_a_sleep(*args: Any, **kwargs: Any) -> Expired:
            clock.advance(3 * LEASE)
            if renewed:
                heart = store.heart(asleep.worker_id)
                assert await asyncio.to_thread(heart.beat)
                await asyncio.to_thread(heart.close)
            return await expire(*args, **kwargs)

        monkeypatch.setattr(store._workers, "_expire", after_a_sleep)
        assert list((await store.expire()).workers) == [dead.worker_id]
        assert [worker.worker_id for worker in await store.workers()] == [asleep.worker_id]
