"""Rights to read are enough for a client: a role that may only SELECT, a file and a folder that cannot be written."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from tests.postgres.roles import READER, Role
from tests.support import STAGES, everything, unmeasured, within

from durable_batches import BatchClient, BatchOrchestrator, PostgresStore, SQLiteStore, StoreAccessError, workflow
from durable_batches.errors import StoreUnavailableError
from durable_batches.stores.postgres.connection.session import Session


@workflow(STAGES, name="shout")
async def shout(document: str) -> str:
    return document.upper()


# ---- Postgres ------------------------------------------------------------------------------------------------------


@pytest.fixture
def role(postgres_dsn: str, postgres_schema: str) -> Iterator[Role]:
    role = Role(postgres_dsn, postgres_schema)
    yield role
    role.drop()


async def test_a_role_that_may_only_select_follows_a_batch_to_its_end(
    role: Role, postgres_dsn: str, postgres_schema: str
) -> None:
    gate = asyncio.Event()

    @workflow(STAGES, name="held")
    async def held(document: str) -> str:
        await gate.wait()
        return document

    async with BatchOrchestrator(held, store=PostgresStore(postgres_dsn, schema=postgres_schema)) as batches:
        role.grant(*READER)
        batch_id = await batches.submit(["a", "b"])
        store = PostgresStore(role.dsn, schema=postgres_schema)
        async with BatchClient(store, read_only=True) as client:
            with client.signals.waiting.listen() as waiting:
                following = asyncio.create_task(everything(client.progress(batch_id)))
                watching = asyncio.create_task(everything(client.watch(batch_id, interval=timedelta(0))))
                await waiting.next()
            gate.set()
            assert (await within(following))[-1].tag == "batch_completed"
            assert (await within(watching))[-1].counts.succeeded == 2
            assert [batch.batch_id async for batch in client.list_batches()] == [batch_id]
            assert [document.result for document in await everything(client.documents(batch_id))] == ['"a"', '"b"']
            assert await everything(client.events(batch_id)) == await following
        async with BatchClient(PostgresStore(role.dsn, schema=postgres_schema)) as client:
            with pytest.raises(StoreAccessError, match="permission denied"):
                await client.cancel(batch_id)


@pytest.mark.parametrize("rights", [(), READER[:1], READER[1:]])
async def test_a_role_without_rights_is_told(
    role: Role, postgres_dsn: str, postgres_schema: str, rights: tuple[str, ...]
) -> None:
    async with BatchOrchestrator(shout, store=PostgresStore(postgres_dsn, schema=postgres_schema)):
        role.grant(*rights)
    with pytest.raises(StoreAccessError, match="grant the role its rights"):
        async with BatchClient(PostgresStore(role.dsn, schema=postgres_schema), read_only=True):
            pass


async def test_the_connections_that_read_cannot_write(postgres_dsn: str, migrated_schema: str) -> None:
    store = PostgresStore(postgres_dsn, schema=migrated_schema)
    async with BatchClient(store):

        async def delete(session: Session) -> None:
            await session.run("DELETE FROM {s}.batch")

        with pytest.raises(StoreUnavailableError, match="read-only transaction"):
            await store._read(delete)


# ---- SQLite --------------------------------------------------------------------------------------------------------

LOOK = """
import asyncio, os, sys
from durable_batches import BatchClient, DurableBatchesError, SQLiteStore

async def look(path, batch_id, say):
    if batch_id:
        async with BatchClient(SQLiteStore(path)) as client:
            try:
                say(await client.cancel(batch_id))
            except DurableBatchesError as error:
                say(type(error).__name__, error.code, error)
    async with BatchClient(SQLiteStore(path), read_only=True) as client:
        say("seen", [str(batch.batch_id) async for batch in client.list_batches()])
        if batch_id:
            events = [event.tag async for event in client.progress(batch_id)]
            say("ended", events[-1], (await client.snapshot(batch_id)).counts.succeeded)

async def main(path, batch_id, somewhere, another):
    # Once with all rights: what is imported late may be where only they lead to.
    await look(somewhere, another, lambda *_: None)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    try:
        await look(path, batch_id, lambda *words: print(*words, flush=True))
    except DurableBatchesError as error:
        print(type(error).__name__, error.code, error, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def elsewhere(tmp_path: Path) -> tuple[str, str]:
    """A file and a batch in it for the first look."""
    return str(tmp_path / "other.db"), await finished(tmp_path / "other.db")


@asynccontextmanager
async def looking_as_nobody(
    path: Path, elsewhere: tuple[str, str], batch_id: str = ""
) -> AsyncGenerator[asyncio.subprocess.Process]:
    """Look as a user with no rights but those of all users (root has every right, whatever the mode says)."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        LOOK,
        str(path),
        batch_id,
        *elsewhere,
        env=unmeasured(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def seen_by_nobody(path: Path, elsewhere: tuple[str, str]) -> str:
    async with looking_as_nobody(path, elsewhere) as process:
        output, errors = await process.communicate()
    assert not errors, errors.decode()
    return output.decode()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that all users may read and enter, but not write; pytest's own they may not even enter."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


async def finished(path: Path) -> str:
    """A batch that has ended, in a file that its owner lets everybody read."""
    async with BatchOrchestrator(shout, store=SQLiteStore(path)) as batches:
        batch_id = (await within(batches.run(["x"]))).batch_id
    # What SQLite keeps beside it gets the same rights.
    path.chmod(0o644)
    return batch_id


@pytest.mark.parametrize("mode", [0o444, 0o644])
@pytest.mark.usefixtures("warm_interpreters")
@pytest.mark.processes
async def test_a_file_that_no_worker_has_open_is_read_where_nothing_can_be_written(
    folder: Path, elsewhere: tuple[str, str], mode: int
) -> None:
    path = folder / "batches.db"
    batch_id = await finished(path)
    path.chmod(mode)
    folder.chmod(0o555)
    try:
        assert await seen_by_nobody(path, elsewhere) == f"seen [{str(batch_id)!r}]\n"
        assert [entry.name for entry in folder.iterdir()] == ["batches.db"]
    finally:
        folder.chmod(0o755)


@pytest.mark.usefixtures("warm_interpreters")
@pytest.mark.processes
@pytest.mark.skipif(os.geteuid() != 0, reason="to be another user than the file's takes root's rights")
async def test_a_batch_is_followed_by_a_user_who_may_only_read(folder: Path, elsewhere: tuple[str, str]) -> None:
    gate = asyncio.Event()

    @workflow(STAGES, name="held")
    async def held(document: str) -> str:
        await gate.wait()
        return document

    path = folder / "batches.db"
    await finished(path)
    async with BatchOrchestrator(held, store=SQLiteStore(path)) as batches:
        batch_id = await batches.submit(["x", "y"])
        async with looking_as_nobody(path, elsewhere, batch_id) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            # A client that would write finds that it cannot.
            assert (await within(process.stdout.readline())).startswith(b"StoreReadOnlyError store-read-only ")
            assert (await within(process.stdout.readline())).startswith(b"seen ")
            gate.set()
            await within(batches.result(batch_id))
            assert await within(process.stdout.readline()) == b"ended batch_completed 2\n"
            assert await within(process.stderr.read()) == b""


@pytest.mark.usefixtures("warm_interpreters")
@pytest.mark.processes
async def test_a_log_without_an_index_is_said_to_be_there(folder: Path, elsewhere: tuple[str, str]) -> None:
    path = folder / "batches.db"
    log = folder / "batches.db-wal"
    await finished(path)
    async with BatchOrchestrator(shout, store=SQLiteStore(path)) as batches:
        await within(batches.run(["x"]))
        content, logged = path.read_bytes(), log.read_bytes()
    assert logged
    path.write_bytes(content)
    log.write_bytes(logged)
    log.chmod(0o644)
    folder.chmod(0o555)
    try:
        answer = await seen_by_nobody(path, elsewhere)
        assert answer.startswith("StoreReadOnlyError store-read-only"), answer
        assert "has commits in its log" in answer
        assert str(path) in answer
    finally:
        folder.chmod(0o755)


@pytest.mark.usefixtures("warm_interpreters")
@pytest.mark.processes
async def test_a_file_that_may_not_be_read_is_said_to_be(folder: Path, elsewhere: tuple[str, str]) -> None:
    path = folder / "batches.db"
    await finished(path)
    path.chmod(0)
    answer = await seen_by_nobody(path, elsewhere)
    assert answer.startswith("StoreUnavailableError store-unavailable"), answer
    assert str(path) in answer
