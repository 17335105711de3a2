"""Reading from a replica: a hot standby that follows its primary, and can only be read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import pytest
from tests.cli.commands import Commands, translate
from tests.postgres.server import NEVER_CRASHED, Server
from tests.support import STAGES, eventually, everything, opened, within

from durable_batches import (
    BatchClient,
    BatchNotFoundError,
    BatchOrchestrator,
    PostgresStore,
    StoreNotFoundError,
    StoreReadOnlyError,
    workflow,
)
from durable_batches.cli.exits import Exit


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    """A primary and a replica that follows it."""
    with Server(**NEVER_CRASHED) as primary:
        replica = primary.replica(follows=True)
        try:
            yield primary, replica
        finally:
            replica.__exit__(None, None, None)


@pytest.fixture
def primary(servers: tuple[Server, Server]) -> PostgresStore:
    return PostgresStore(servers[0].dsn())


@pytest.fixture
def replica(servers: tuple[Server, Server]) -> PostgresStore:
    return PostgresStore(servers[1].dsn())


async def arrived(replica: PostgresStore, batch_id: str, *, ended: bool = False) -> None:
    """Wait until the replica has the batch, and its end."""

    async def has_it() -> bool:
        try:
            async with BatchClient(replica) as client:
                return (await client.snapshot(batch_id)).ended_at is not None or not ended
        except (BatchNotFoundError, StoreNotFoundError):
            return False

    await eventually(has_it)


async def test_a_batch_is_followed_to_its_end(primary: PostgresStore, replica: PostgresStore) -> None:
    """Though nobody can listen for notifications there."""
    gate = asyncio.Event()

    @workflow(STAGES, name="held")
    async def held(document: str) -> str:
        await gate.wait()
        return document

    async with BatchOrchestrator(held, store=primary) as batches:
        batch_id = await batches.submit(["a", "b"])
        await arrived(replica, batch_id)
        async with BatchClient(replica, read_only=True) as client:
            with client.signals.waiting.listen() as waiting:
                following = asyncio.create_task(everything(client.progress(batch_id)))
                watching = asyncio.create_task(everything(client.watch(batch_id, interval=timedelta(0))))
                await waiting.next()
                gate.set()
                # Well before the time is up for which each wait asks.
                assert (await within(following, seconds=4))[-1].tag == "batch_completed"
                assert (await within(watching, seconds=4))[-1].counts.succeeded == 2
            assert [document.result for document in await everything(client.documents(batch_id))] == ['"a"', '"b"']
            assert await everything(client.events(batch_id)) == await following
            assert (await client.errors(batch_id)).failed == 0
            assert (await client.explain(batch_id)).reasons[0].tag == "ended"
            assert batch_id in [batch.batch_id async for batch in client.list_batches()]
            assert await client.count_checkpoints(batch_id) == 0


async def test_a_command_says_where_it_can_be_given(primary: PostgresStore, replica: PostgresStore) -> None:
    async with BatchOrchestrator(translate, store=primary) as batches:
        batch_id = (await within(batches.run(["a"]))).batch_id
    await arrived(replica, batch_id)
    async with BatchClient(replica) as client:
        with pytest.raises(StoreReadOnlyError, match="connect to the primary"):
            await client.cancel(batch_id)
        assert (await client.state(batch_id)).tag == "completed"


async def test_a_worker_is_refused_also_beside_a_client(primary: PostgresStore, replica: PostgresStore) -> None:
    async with opened(primary):
        pass
    await eventually(lambda: _can_be_read(replica))
    async with BatchClient(replica) as client:
        with pytest.raises(StoreReadOnlyError, match="connect to the primary"):
            await replica.open()
        await everything(client.list_batches())


async def _can_be_read(replica: PostgresStore) -> bool:
    try:
        async with BatchClient(replica):
            return True
    except StoreNotFoundError:
        return False


def test_every_command_that_reads(
    servers: tuple[Server, Server],
    primary: PostgresStore,
    replica: PostgresStore,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DURABLE_BATCHES_STORE", raising=False)

    async def run() -> str:
        async with BatchOrchestrator(translate, store=primary) as batches:
            batch_id = (await within(batches.run(["a", "bad"]))).batch_id
        await arrived(replica, batch_id, ended=True)
        return batch_id

    batch_id = asyncio.run(run())
    commands = Commands(lambda: replica, ["--store", servers[1].dsn()], capsys)
    assert batch_id in commands("list").out
    for command in ("show", "documents", "events", "errors", "why", "export"):
        ran = commands(command, batch_id)
        assert ran.code == Exit.DONE, (command, ran.err)
        assert ran.out
    assert commands("watch", batch_id).code == Exit.DOCUMENTS_FAILED
    ran = commands("cancel", batch_id)
    assert ran.code == Exit.STORE_UNAVAILABLE
    assert "connect to the primary" in ran.err
