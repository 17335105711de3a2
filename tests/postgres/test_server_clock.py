"""The database server's clock is set while workers go on: nobody loses a lease, and what is due is met."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from tests.postgres.databases import execute
from tests.support import STAGES, opened, within

from durable_batches import BatchConfig, BatchOrchestrator, RetryFailed, workflow
from durable_batches.stores import PostgresStore
from durable_batches.stores.postgres.connection.database import _SETTINGS
from durable_batches.stores.postgres.connection.server_clock import ServerClock
from durable_batches.testing import ManualClock
from durable_batches.testing.conformance.scene import Scene

LEASE = 30.0
AN_HOUR = 3_600.0


class SetClock(ManualClock):
    """What leases are measured on: a clock that is set, beside the machine's, which is not."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = ManualClock()
        self.shift = 0.0

    def boot(self) -> float:
        return self.machine.boot() + self.shift


@pytest.mark.parametrize(("shift", "way"), [(AN_HOUR, "forward"), (-AN_HOUR, "back")], ids=["forward", "back"])
async def test_a_clock_that_is_set_takes_no_lease_from_the_living(
    shift: float,
    way: str,
    postgres_dsn: str,
    migrated_schema: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For a lease nobody is expired; then those are that have not renewed theirs by the new time."""
    clock = SetClock()
    clock.machine.advance(2 * AN_HOUR)
    async with opened(PostgresStore(postgres_dsn, schema=migrated_schema, clock=clock)) as store:
        monkeypatch.setattr(store._workers._trust, "_clock", clock.machine)
        scene = Scene(store, asyncio.sleep)
        living, dead, other = [await scene.worker(lease=LEASE) for _ in range(3)]

        async def expired() -> list[str]:
            return list((await store.expire()).workers)

        async def pass_by(seconds: float) -> None:
            clock.machine.advance(seconds)
            heart = store.heart(living.worker_id)
            assert await asyncio.to_thread(heart.beat), "a living worker has lost its lease"
            await asyncio.to_thread(heart.close)

        assert await expired() == []
        clock.machine.advance(1)
        clock.shift = shift
        assert await expired() == []
        # Who is known to be dead is not spared.
        assert list((await store.expire(dead=[other.worker_id])).workers) == [other.worker_id]
        await pass_by(LEASE / 3)
        assert await expired() == []
        await pass_by(LEASE / 3)
        await pass_by(LEASE / 3)
        assert await expired() == [dead.worker_id]
        await pass_by(LEASE / 3)
        assert await expired() == []
    (told,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert told.message.startswith(f"the clock of the database server was set {way} by about 3600 s: no lease expires")


async def test_time_that_passes_is_no_jump(
    postgres_dsn: str, migrated_schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does a lease that runs out meanwhile get any more of it, however long nobody has looked."""
    clock = ManualClock()
    async with opened(PostgresStore(postgres_dsn, schema=migrated_schema, clock=clock)) as store:
        worker = await Scene(store, asyncio.sleep).worker(lease=LEASE)
        assert list((await store.expire()).workers) == []
        clock.advance(AN_HOUR)
        assert list((await store.expire()).workers) == [worker.worker_id]
    assert caplog.text == ""


# ---- due times -----------------------------------------------------------------------------------------------------


@pytest.fixture
def shift_server(
    postgres_dsn: str, migrated_schema: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[float], None]]:
    """Sets the server's clock, by seconds, for the connections that a store opens meanwhile."""
    other = f"{migrated_schema}_clock"
    monkeypatch.setitem(_SETTINGS, "search_path", f"{other}, pg_catalog")
    execute(
        postgres_dsn,
        f"CREATE SCHEMA {other}",
        f"CREATE TABLE {other}.shift (by interval)",
        f"INSERT INTO {other}.shift VALUES ('0')",
        f"CREATE FUNCTION {other}.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS "
        f"'SELECT pg_catalog.clock_timestamp() + (SELECT by FROM {other}.shift)'",
    )

    def shift(seconds: float) -> None:
        execute(postgres_dsn, f"UPDATE {other}.shift SET by = make_interval(secs => {seconds})")

    yield shift
    execute(postgres_dsn, f"DROP SCHEMA {other} CASCADE")


async def test_a_retry_and_a_deadline_are_met_though_the_servers_clock_is_set(
    postgres_dsn: str, migrated_schema: str, shift_server: Callable[[float], None]
) -> None:
    """Set back by an hour, what waits for a fifth of a second waits no hour; set forward, no deadline fires at once."""
    failed: set[str] = set()
    failing, started, gate = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @workflow(STAGES)
    async def run(document: str) -> str:
        if document == "late":
            started.set()
            await gate.wait()
        elif document not in failed:
            failed.add(document)
            failing.set()
            raise ConnectionError
        return document

    store = PostgresStore(postgres_dsn, schema=migrated_schema)
    async with BatchOrchestrator(run, store=store) as batches:
        policy = RetryFailed(backoff=timedelta(milliseconds=200))
        retried = await batches.submit(["x"], config=BatchConfig(failure_policy=policy))
        await within(failing.wait())
        await asyncio.to_thread(shift_server, -AN_HOUR)
        assert (await within(batches.result(retried))).counts.succeeded == 1
        late = await batches.submit(["late"], config=BatchConfig(deadline=timedelta(minutes=30)))
        await within(started.wait())
        await asyncio.to_thread(shift_server, AN_HOUR)
        # Claimed by then.
        assert (await within(batches.run(["x"]))).counts.succeeded == 1
        gate.set()
        assert (await within(batches.result(late))).counts.succeeded == 1


def test_the_time_goes_on_and_makes_up_for_the_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ServerClock(None)
    boot, server = 1_000.0, 5_000_000_000
    monkeypatch.setattr("durable_batches.clock._boot_clock", lambda: boot)

    def look(latency: float = 0.0) -> float:
        """Ask the server; return the time that the store goes by, ahead of the server's."""
        nonlocal boot, server
        asked = clock.asks()
        boot += latency
        clock.note(asked, server)
        now = clock.now()
        return 0.0 if now is None else (now - server) / 1_000_000

    def pass_by(seconds: float) -> None:
        nonlocal boot, server
        boot += seconds
        server += int(seconds * 1_000_000)

    assert look() == 0
    pass_by(60)
    server -= 1_000
    assert look(latency=30) == 0, "an answer that takes long is no jump"
    server += 30_000_000
    for jump in (-AN_HOUR, AN_HOUR):
        pass_by(1)
        server += int(jump * 1_000_000)
        assert look() == pytest.approx(-jump, abs=31)
        pass_by(AN_HOUR)
        assert look() == pytest.approx(-jump * 0.9, abs=31)
        pass_by(10 * AN_HOUR)
        assert look() == 0
