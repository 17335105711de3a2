"""A session that the tests before have left is as a new one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from tests.postgres.sessions import KeptSessions
from tests.support import within


@pytest.fixture
def used(postgres_dsn: str, kept_sessions: KeptSessions) -> Iterator[KeptSessions]:
    with kept_sessions.used():
        yield kept_sessions
    kept_sessions.close()


@asynccontextmanager
async def connected(dsn: str) -> AsyncGenerator[tuple[asyncpg.Connection[asyncpg.Record], int]]:
    """A connection, and the process that serves it."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection, await connection.fetchval("SELECT pg_backend_pid()")
    finally:
        await within(connection.close())


async def test_nothing_is_left_of_what_was_done_in_it(postgres_dsn: str, used: KeptSessions) -> None:
    heard: list[object] = []

    def hear(_connection: object, _process: int, _channel: str, payload: object) -> None:
        heard.append(payload)

    async with connected(postgres_dsn) as (first, its_process):
        await first.execute("SET statement_timeout = '7s'; SET search_path = pg_catalog")
        await first.add_listener("left_behind", hear)
        await first.execute("CREATE TEMP TABLE left_behind (); PREPARE left_behind AS SELECT 1")
        await first.execute("SELECT pg_advisory_lock(4711); BEGIN; CREATE SCHEMA left_behind; NOTIFY left_behind")

    # Its locks are gone when it has been closed, and its transaction has been rolled back.
    async with connected(postgres_dsn) as (second, process), connected(postgres_dsn) as (third, another):
        assert process == its_process != another
        for connection in (second, third):
            left = (
                "(SELECT count(*) FROM pg_prepared_statements WHERE name = 'left_behind')",
                "(SELECT count(*) FROM pg_class WHERE relname = 'left_behind')",
                "(SELECT count(*) FROM pg_namespace WHERE nspname = 'left_behind')",
                "(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')",
                "(SELECT count(*) FROM pg_listening_channels())",
            )
            assert [*map(tuple, await connection.fetch(f"SELECT {', '.join(left)}"))] == [(0,) * len(left)]
            assert await connection.fetchval("SHOW statement_timeout") == "0"
            assert await connection.fetchval("SHOW search_path") == '"$user", public'
            assert not connection.is_in_transaction()
            assert await connection.fetchval("SELECT 42") == 42
    assert not heard


async def test_what_is_cut_off_is_left_to_nobody(postgres_dsn: str, used: KeptSessions) -> None:
    async with connected(postgres_dsn) as (cut, its_process):
        asleep = asyncio.ensure_future(cut.execute("SELECT pg_sleep(1000)"))
        await asyncio.sleep(0)
        cut.terminate()
        with pytest.raises(asyncpg.ConnectionDoesNotExistError):
            await within(asleep)
    async with connected(postgres_dsn) as (killer, process):
        assert process != its_process
        await killer.execute("SELECT pg_terminate_backend($1)", its_process)


async def test_one_that_the_server_has_ended_is_left_to_nobody(postgres_dsn: str, used: KeptSessions) -> None:
    async with connected(postgres_dsn) as (killer, _):
        async with connected(postgres_dsn) as (_, its_process):
            pass
        assert await killer.fetchval("SELECT pg_terminate_backend($1, 60000)", its_process) is True
        async with connected(postgres_dsn) as (_, process):
            assert process != its_process


async def test_a_statement_that_is_cancelled_is_the_sessions_own(postgres_dsn: str, used: KeptSessions) -> None:
    async with connected(postgres_dsn) as (connection, process):
        with pytest.raises(TimeoutError):
            await connection.execute("SELECT pg_sleep(1000)", timeout=0.01)
        assert await connection.fetchval("SELECT 1") == 1
    async with connected(postgres_dsn) as (connection, again):
        assert (await connection.fetchval("SELECT 2"), again) == (2, process)


async def test_what_asks_for_another_kind_has_one_of_its_own(postgres_dsn: str, used: KeptSessions) -> None:
    async with connected(postgres_dsn) as (_, process):
        pass
    async with connected(f"{postgres_dsn}?application_name=another") as (named, another):
        assert another != process
        assert await named.fetchval("SHOW application_name") == "another"
    async with connected(postgres_dsn) as (_, again):
        assert again == process


async def test_without_leave_each_connection_has_a_session_of_its_own(
    postgres_dsn: str, kept_sessions: KeptSessions
) -> None:
    async with connected(postgres_dsn) as (_, process):
        pass
    async with connected(postgres_dsn) as (_, another):
        assert another != process
