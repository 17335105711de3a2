"""What the store answers to what cannot work: a wrong address, missing rights, tables of another application, locks."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import make_url
from tests.postgres.databases import execute, without_schema
from tests.postgres.pooler import is_pgbouncer_installed, pgbouncer, pooler
from tests.postgres.proxy import Proxy
from tests.postgres.server import Server
from tests.support import STAGES, eventually, everything, opened, turns, within

from durable_batches import (
    BatchConfig,
    BatchOrchestrator,
    ConfigurationError,
    DocumentSucceeded,
    DurableBatchesError,
    PostgresStore,
    SchemaTooNewError,
    StoreAccessError,
    StoreCorruptError,
    StoreLockedError,
    StoreReadOnlyError,
    StoreUnavailableError,
    Worker,
    durable_activity,
    workflow,
)
from durable_batches.errors import FactRejectedError
from durable_batches.lifecycle.commands import Discard
from durable_batches.stores import NewDocument, WorkerId
from durable_batches.stores.columns import TABLES
from durable_batches.testing.conformance.scene import Scene


async def answer_of(store: PostgresStore) -> DurableBatchesError:
    """What opening it raises; it names no password, and leaves nothing open."""
    with pytest.raises(DurableBatchesError) as caught:
        await within(store.open())
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(store)
    with pytest.raises(StoreUnavailableError, match="not open"):
        await store.batches(None, limit=1)  # type: ignore[arg-type]
    return caught.value


def at(dsn: str, *, user: str = "postgres", database: str | None = None, port: int | None = None) -> str:
    parts = urlsplit(dsn)
    return f"postgresql://{user}:secret@{parts.hostname}:{port or parts.port}/{database or parts.path[1:]}"


# ---- where it is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "",
        "batches.db",
        "sqlite:///batches.db",
        "mysql://user:secret@host/database",
        "postgresql+psycopg://secret@host/x",
    ],
)
def test_what_is_no_dsn_is_refused_at_once(target: str) -> None:
    with pytest.raises(ConfigurationError, match="needs a DSN such as postgresql://") as caught:
        PostgresStore(target)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "target",
    [
        "postgresql://app:sec?ret@host/database",
        "postgresql://app:sec#ret@host/database",
        "postgresql://app:sec/ret@host/database",
        "postgresql://app:secret@host:port/database",
        "postgresql://app:secret@host:99999/database",
        "postgresql://app:secret@[::1/database",
    ],
)
def test_a_dsn_that_does_not_come_apart_is_refused_at_once(target: str) -> None:
    with pytest.raises(ConfigurationError, match="percent-encoded") as caught:
        PostgresStore(target)
    assert "sec" not in str(caught.value)


@pytest.mark.parametrize(
    "target",
    [
        "postgresql://",
        "postgres:///database",
        "postgresql://app:sec%3Fret@host/database",
        "postgresql://one:5432,[::1]:5433,three/database?target_session_attrs=read-write",
        "postgresql:///database?host=/var/run/postgresql&user=me@here&password=",
    ],
)
def test_a_dsn_may_have_any_of_its_forms(target: str) -> None:
    assert "sec" not in repr(PostgresStore(target))


def test_a_dsn_that_was_forgotten_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="not 'NoneType'"):
        PostgresStore(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_an_engine_of_another_database_is_refused_at_once() -> None:
    engine = SimpleNamespace(dialect=SimpleNamespace(name="mysql", driver="asyncmy"), url=make_url("mysql://host/x"))
    with pytest.raises(ConfigurationError, match="needs an engine of postgresql"):
        PostgresStore(engine)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_a_server_that_is_not_there(postgres_dsn: str) -> None:
    error = await answer_of(PostgresStore(at(postgres_dsn, port=1)))
    assert isinstance(error, StoreUnavailableError)
    assert "127.0.0.1:1" in str(error)
    assert "cannot be reached" in str(error)


async def test_a_database_that_is_not_there(postgres_dsn: str) -> None:
    error = await answer_of(PostgresStore(at(postgres_dsn, database="nowhere")))
    assert isinstance(error, StoreAccessError)
    assert 'database "nowhere" does not exist' in str(error)


async def test_an_unknown_user(postgres_server: Server) -> None:
    error = await answer_of(PostgresStore(at(postgres_server.dsn(), user="nobody")))
    assert isinstance(error, StoreAccessError)
    assert "check the user and the password" in str(error)


async def test_a_server_that_does_not_answer(postgres_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durable_batches.stores.postgres.connection.database.CONNECT_SECONDS", 0.3)
    with Proxy(urlsplit(postgres_dsn).port or 0) as proxy:
        proxy.stall()
        error = await answer_of(PostgresStore(at(postgres_dsn, port=proxy.port)))
    assert "has not answered in time" in str(error)


@pytest.mark.parametrize("timeouts", [{"statement_timeout": timedelta(0)}, {"lock_timeout": timedelta(seconds=-1)}])
def test_timeouts_are_positive(timeouts: dict[str, timedelta]) -> None:
    with pytest.raises(ConfigurationError, match="must be positive"):
        PostgresStore("postgresql://host/database", **timeouts)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# ---- what it is ------------------------------------------------------------------------------------------------------


async def test_an_opening_that_is_cancelled_leaves_no_connection_open(
    postgres_dsn: str, migrated_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened_both, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    async def check(*_: object) -> None:
        loop.call_soon_threadsafe(opened_both.set)
        await asyncio.to_thread(go_on.wait)

    monkeypatch.setattr("durable_batches.stores.postgres.store.check_server", check)
    opening = asyncio.create_task(
        PostgresStore(f"{postgres_dsn}?application_name=cancelled", schema=migrated_schema).open()
    )
    await within(opened_both.wait())
    opening.cancel()
    await turns(3)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await within(opening)
    observer = await asyncpg.connect(postgres_dsn)

    async def closed() -> bool:
        return not await observer.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cancelled'")

    try:
        await eventually(closed)
    finally:
        await observer.close()


@pytest.mark.parametrize("sessions", [1, 2, 3])
async def test_a_pooler_in_transaction_mode_is_refused_with_the_reason(postgres_dsn: str, sessions: int) -> None:
    async with pooler(urlsplit(postgres_dsn).port or 0, sessions=sessions) as port:
        for _ in range(sessions):
            error = await answer_of(PostgresStore(at(postgres_dsn, port=port)))
            assert isinstance(error, ConfigurationError)
            assert "pooler in transaction mode" in str(error)


@asynccontextmanager
async def used(dsn: str, *, users: int) -> AsyncGenerator[None]:
    """As other applications use the pooler meanwhile: who gets which session is then a matter of chance."""

    async def use() -> None:
        connection = await asyncpg.connect(dsn, statement_cache_size=0)
        try:
            while True:
                try:
                    await connection.execute("SELECT 1")
                except asyncpg.PostgresError:
                    return
        finally:
            connection.terminate()

    using = [asyncio.create_task(use()) for _ in range(users)]
    try:
        await asyncio.sleep(0.1 if users else 0)
        yield
    finally:
        for task in using:
            task.cancel()
        await asyncio.gather(*using, return_exceptions=True)


@pytest.mark.real_time("other applications use the pooler for some time")
@pytest.mark.parametrize("users", [0, 3])
@pytest.mark.parametrize("mode", ["transaction", "statement", "session"])
async def test_pgbouncer_is_of_use_in_session_mode_only(
    postgres_dsn: str, postgres_schema: str, tmp_path: Path, mode: str, users: int
) -> None:
    """Where it is installed."""
    if not is_pgbouncer_installed():
        pytest.skip("PgBouncer is not installed")
    async with pgbouncer(tmp_path, urlsplit(postgres_dsn).port or 0, mode) as port:
        store = PostgresStore(at(postgres_dsn, port=port), schema=postgres_schema)
        async with used(at(postgres_dsn, port=port), users=users):
            if mode == "session":
                async with opened(store):
                    await Scene(store, asyncio.sleep).batch(2)
            else:
                error = await answer_of(store)
                assert "pooler in transaction mode" in str(error) or "in statement pooling mode" in str(error)


async def test_a_replica_is_refused(postgres_server: Server) -> None:
    replica = postgres_server.replica()
    try:
        error = await answer_of(PostgresStore(replica.dsn()))
        assert isinstance(error, StoreReadOnlyError)
        assert "connect to the primary" in str(error)
    finally:
        replica.__exit__(None, None, None)


async def test_a_server_without_fsync_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    with Server(fsync="off") as server:
        store = PostgresStore(server.dsn())
        async with opened(store), opened(store):
            pass
    assert [record.levelno for record in caplog.records if "fsync = off" in record.message] == [logging.WARNING]


async def test_commits_wait_for_the_disk_whatever_the_server_says(postgres_server: Server) -> None:
    with Server(synchronous_commit="off") as server:
        async with opened(PostgresStore(server.dsn())) as store:
            waits = await store._write(lambda session: session.value("SHOW synchronous_commit"))
            assert waits == "on"


# ---- rights and tables -----------------------------------------------------------------------------------------------


@pytest.fixture
def clerk(postgres_dsn: str) -> Iterator[str]:
    """The DSN of a role that may connect, and nothing else."""
    name = f"clerk_{uuid4().hex[:12]}"
    execute(postgres_dsn, f"CREATE ROLE {name} LOGIN")
    yield at(postgres_dsn, user=name)
    execute(postgres_dsn, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


async def test_a_role_that_may_not_make_the_schema(clerk: str, postgres_schema: str) -> None:
    error = await answer_of(PostgresStore(clerk, schema=postgres_schema))
    assert isinstance(error, StoreAccessError)
    assert "permission denied" in str(error)
    assert "durable-batches migrate" in str(error)


async def test_a_role_may_use_a_schema_that_another_role_has_made(
    clerk: str, postgres_dsn: str, postgres_schema: str
) -> None:
    async with opened(PostgresStore(postgres_dsn, schema=postgres_schema)):
        pass
    name = urlsplit(clerk).username
    execute(
        postgres_dsn,
        f"GRANT USAGE ON SCHEMA {postgres_schema} TO {name}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {postgres_schema} TO {name}",
    )
    async with opened(PostgresStore(clerk, schema=postgres_schema)) as store:
        await Scene(store, asyncio.sleep).batch(2)


async def test_a_database_that_is_read_only_for_now(postgres_dsn: str, postgres_schema: str) -> None:
    read_only = f"{postgres_dsn}?default_transaction_read_only=on"
    async with opened(PostgresStore(postgres_dsn, schema=postgres_schema)):
        pass
    async with opened(PostgresStore(read_only, schema=postgres_schema)) as store:
        scene = Scene(store, asyncio.sleep)
        with pytest.raises(StoreReadOnlyError, match="cannot be written"):
            await store.create(scene.record())


@pytest.mark.parametrize(
    "schema",
    ["Größe #1", 'quo"ted', "robert'); DROP TABLE batch; --", "select", "$1", "{s}", "%s", "x" * 63, "a.b", "a\nb"],
)
async def test_a_schema_may_have_any_name(postgres_dsn: str, schema: str) -> None:
    store = PostgresStore(postgres_dsn, schema=schema)
    try:
        async with opened(store):
            scene = Scene(store, asyncio.sleep)
            batch_id = await scene.batch(2)
            hand = await scene.worker()
            await hand.report(*[hand.succeeded(claim) for claim in await hand.claim()])
            assert (await scene.look(batch_id)).state == "completed"
            found = await store._read(
                lambda session: session.value("SELECT count(*) FROM pg_tables WHERE schemaname = $1", schema)
            )
            assert found == len(TABLES)
    finally:
        quoted = schema.replace('"', '""')
        execute(postgres_dsn, f'DROP SCHEMA "{quoted}" CASCADE')


@pytest.mark.parametrize("schema", ["", "a\0b", "\ud800", "x" * 64, "ü" * 32, "pg_mine", "information_schema", 7])
def test_a_schema_has_a_name_that_the_server_takes(schema: str) -> None:
    with pytest.raises(ConfigurationError, match="schema"):
        PostgresStore("postgresql://host/database", schema=schema)


async def test_a_role_needs_no_more_than_a_schema_of_its_own(postgres_dsn: str, postgres_schema: str) -> None:
    role = f"{postgres_schema}_owner"
    execute(postgres_dsn, f"CREATE ROLE {role} LOGIN", f"CREATE SCHEMA {postgres_schema} AUTHORIZATION {role}")
    try:
        async with opened(PostgresStore(at(postgres_dsn, user=role), schema=postgres_schema)) as store:
            await Scene(store, asyncio.sleep).batch(2)
    finally:
        execute(postgres_dsn, f"DROP SCHEMA {postgres_schema} CASCADE", f"DROP ROLE {role}")


async def test_a_batch_may_take_longer_to_remove_than_a_statement_may(postgres_dsn: str, postgres_schema: str) -> None:
    timeout = timedelta(milliseconds=300)
    async with opened(PostgresStore(postgres_dsn, schema=postgres_schema, statement_timeout=timeout)) as store:
        execute(
            postgres_dsn,
            f"CREATE FUNCTION {postgres_schema}.slowly() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM pg_sleep(2.5); RETURN OLD; END'",
            f"CREATE TRIGGER slowly BEFORE DELETE ON {postgres_schema}.batch "
            f"FOR EACH ROW EXECUTE FUNCTION {postgres_schema}.slowly()",
        )
        assert store._database.answer_seconds < 2.5
        record = Scene(store, asyncio.sleep).record()
        await store.create(record)
        assert record.loader is not None
        await store.control(record.batch_id, Discard(record.loader))
        assert await store.create(record) is None


async def test_tables_of_the_application_are_left_alone(postgres_dsn: str, postgres_schema: str) -> None:
    execute(postgres_dsn, f"CREATE SCHEMA {postgres_schema}", f"CREATE TABLE {postgres_schema}.batch (mine text)")
    error = await answer_of(PostgresStore(postgres_dsn, schema=postgres_schema))
    assert isinstance(error, StoreCorruptError)
    assert "tables of another application" in str(error)
    execute(postgres_dsn, f"SELECT mine FROM {postgres_schema}.batch")


async def test_a_newer_schema_is_refused(postgres_dsn: str, postgres_schema: str) -> None:
    store = PostgresStore(postgres_dsn, schema=postgres_schema)
    async with opened(store):
        pass
    execute(postgres_dsn, f"UPDATE {postgres_schema}.schema_version SET version = 99, readable_since = '0.0.9'")
    async with opened(store):
        pass
    execute(postgres_dsn, f"UPDATE {postgres_schema}.schema_version SET readable_since = '99.0.0'")
    assert isinstance(await answer_of(store), SchemaTooNewError)


async def test_tables_that_are_dropped_while_it_works(postgres_dsn: str, postgres_schema: str) -> None:
    async with opened(PostgresStore(postgres_dsn, schema=postgres_schema)) as store:
        scene = Scene(store, asyncio.sleep)
        hand = await scene.worker()
        without_schema(postgres_dsn, postgres_schema)
        with pytest.raises(StoreCorruptError, match="were they dropped"):
            await store.commit(hand.worker_id, 1, [])
    async with opened(PostgresStore(postgres_dsn, schema=postgres_schema)) as store:
        await Scene(store, asyncio.sleep).batch(1)


async def test_values_that_the_server_cannot_hold_are_refused_without_being_shown(
    postgres_dsn: str, postgres_schema: str
) -> None:
    async with opened(PostgresStore(postgres_dsn, schema=postgres_schema)) as store:
        scene = Scene(store, asyncio.sleep)
        batch_id = await scene.load(scene.record(), 1)
        for name in ("sec\0ret", "sec\ud800ret"):
            with pytest.raises(FactRejectedError) as caught:
                await store.add(batch_id, WorkerId("loader"), [NewDocument(1, name, b"")])
            assert "ret" not in str(caught.value).replace("cannot store", "")
        await store.add(batch_id, WorkerId("loader"), [NewDocument(1, "fine", b"\0\xff")])


# ---- others who hold locks -------------------------------------------------------------------------------------------


@durable_activity
async def step(number: int) -> int:
    await turns(3)
    return number


@workflow(STAGES, name="three-steps")
async def three_steps(number: int) -> int:
    return await step(number) + await step(number + 1) + await step(number + 2)


QUICK = timedelta(seconds=0.3)


@pytest.mark.parametrize("table", ["batch", "execution"])
async def test_a_batch_that_is_locked_holds_up_no_other(
    postgres_dsn: str, postgres_schema: str, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Another session has locked its rows, idle in a transaction: other batches go on, and so does it afterwards."""
    store = PostgresStore(postgres_dsn, schema=postgres_schema, lock_timeout=QUICK)
    async with BatchOrchestrator(three_steps, store=store, config=BatchConfig(concurrency=4)) as batches:
        locked = await batches.submit(range(40))
        await eventually(lambda: batches.stats.activities_run > 5)
        session = await asyncpg.connect(postgres_dsn)
        try:
            holding = session.transaction()
            await holding.start()
            await session.execute(f"SELECT 1 FROM {postgres_schema}.{table} FOR UPDATE")
            for _ in range(3):
                other = await within(batches.run(range(20)))
                assert other.counts.succeeded == 20
            assert (await batches.state(locked)).tag not in ("completed", "failed")
            if table == "batch":
                with pytest.raises(StoreLockedError, match="locked by another session") as caught:
                    await within(batches.cancel(locked))
                assert caught.value.batch_ids == (locked,)
            await holding.rollback()
        finally:
            await session.close()
        result = await within(batches.result(locked))
        assert result.counts.succeeded == 40
    assert any(locked in record.message for record in caplog.records)


async def test_a_worker_whose_batch_is_locked_leaves_all_the_same(postgres_dsn: str, postgres_schema: str) -> None:
    """What it could not give back is given back later, without a crash counted; it is no worker any more."""
    store = PostgresStore(postgres_dsn, schema=postgres_schema, lock_timeout=QUICK)
    async with opened(store):
        scene = Scene(store, asyncio.sleep)
        locked, other = await scene.batch(2), await scene.batch(2)
        hand = await scene.worker()
        assert len(await hand.claim()) == 4
        session = await asyncpg.connect(postgres_dsn)
        async with session.transaction():
            await session.execute(f"SELECT 1 FROM {postgres_schema}.batch WHERE batch_id = $1 FOR UPDATE", locked)
            await store.leave(hand.worker_id)
            assert not await store.workers()
            assert (await scene.look(other)).counts.pending == 2
            assert (await scene.look(locked)).counts.running == 2
            assert not (await store.expire()).workers
            assert (await scene.look(locked)).counts.running == 2
        await session.close()
        assert len((await store.expire()).events) == 2
        await scene.check()
        released = (await scene.document(locked, 0)).execution
        assert (released.status, released.crashes) == ("pending", 0)


# ---- a server that goes away -----------------------------------------------------------------------------------------


@pytest.mark.real_time("a server is away for longer than a lease")
@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.soak)])
async def test_a_server_that_goes_away_is_waited_for(seconds: int) -> None:
    """In the middle of a batch: the work waits, and goes on when it is back; nothing that was recorded runs again."""
    with Server() as server:
        store = PostgresStore(server.dsn())
        worker = Worker(store, lease=timedelta(seconds=2))
        async with BatchOrchestrator(three_steps, worker=worker, config=BatchConfig(concurrency=4)) as batches:
            batch_id = await batches.submit(range(60))
            await eventually(lambda: batches.stats.activities_run > 20)
            await asyncio.to_thread(server.stop)
            await asyncio.sleep(seconds)
            await asyncio.to_thread(server.start)
            result = await within(batches.result(batch_id))
            assert result.counts.succeeded == 60
            # What was in flight when it went away may have run twice, four documents at once.
            assert 180 <= batches.stats.activities_run <= 188
            outcomes = await everything(batches.results(batch_id))
            assert outcomes[1] == DocumentSucceeded(document_id="1", value=6)
