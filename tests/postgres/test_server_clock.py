"""The database server's clock is set while workers go on: nobody loses a lease for it, and the dead are found."""

from __future__ import annotations

import asyncio
import logging

import pytest
from tests.support import opened

from durable_batches.stores import PostgresStore
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
    postgres_schema: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For a lease nobody is expired; then those are that have not renewed theirs by the new time."""
    clock = SetClock()
    clock.machine.advance(2 * AN_HOUR)
    async with opened(PostgresStore(postgres_dsn, schema=postgres_schema, clock=clock)) as store:
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
    postgres_dsn: str, postgres_schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does a lease that runs out meanwhile get any more of it, however long nobody has looked."""
    clock = ManualClock()
    async with opened(PostgresStore(postgres_dsn, schema=postgres_schema, clock=clock)) as store:
        worker = await Scene(store, asyncio.sleep).worker(lease=LEASE)
        assert list((await store.expire()).workers) == []
        clock.advance(AN_HOUR)
        assert list((await store.expire()).workers) == [worker.worker_id]
    assert caplog.text == ""
