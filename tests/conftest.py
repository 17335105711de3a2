"""Fixtures for what is shown on every store."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from shutil import copy2
from typing import Final, TypeAlias
from uuid import uuid4

import pytest
from tests.lanes.plugin import lane_of, lane_of_folder
from tests.postgres.databases import MigratedSchemas, scratch_database, without_schema
from tests.postgres.server import NEVER_CRASHED, Server
from tests.postgres.sessions import KeptSessions
from tests.postgres.types import remember_types
from tests.warm import warm

from durable_batches import MemoryStore, PostgresStore, SQLiteStore, Store, exit_watch, stop_signals
from durable_batches.clock import Clock
from durable_batches.stores.sqlite.connection import connect, migrate
from durable_batches.testing import ManualClock

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # In the background of a shell Ctrl-C is ignored, also by all children; those of the tests are sent it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

_ELSEWHERE: Final = "DURABLE_BATCHES_TEST_POSTGRES"
"""Names another server than one of the test process's own."""

StoreMaker: TypeAlias = Callable[[Clock | None], Store]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A Postgres of this test process's own; started when the first test asks for it; no test crashes it."""
    with Server(**NEVER_CRASHED) as server, pytest.MonkeyPatch.context() as monkeypatch:
        remember_types(monkeypatch)
        # It has no TLS; to ask each time takes as long as the rest of connecting.
        monkeypatch.setenv("PGSSLMODE", "disable")
        yield server


@pytest.fixture(scope="session")
def kept_sessions(postgres_server: Server) -> Iterator[KeptSessions]:
    """The sessions that tests on the server of this test process leave to the next ones."""
    kept = KeptSessions(postgres_server.port)
    with pytest.MonkeyPatch.context() as monkeypatch:
        kept.patch(monkeypatch)
        yield kept
    kept.close()


@pytest.fixture(scope="session")
def postgres_dsn(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database for this test process: of its own server, or of the one that the environment names."""
    elsewhere = os.environ.get(_ELSEWHERE)
    if elsewhere:
        with scratch_database(elsewhere) as dsn:
            yield dsn
    else:
        server: Server = request.getfixturevalue("postgres_server")
        yield server.dsn()


@pytest.fixture
def postgres_schema(request: pytest.FixtureRequest, postgres_dsn: str) -> Iterator[str]:
    """A name that nothing in the database has; what is made under it is removed after the test."""
    _check_lane(request)
    schema = f"test_{uuid4().hex}"
    yield schema
    without_schema(postgres_dsn, schema)


@pytest.fixture(scope="session")
def migrated_schemas(postgres_dsn: str) -> Iterator[MigratedSchemas]:
    schemas = MigratedSchemas(postgres_dsn)
    yield schemas
    schemas.close()


@pytest.fixture
def migrated_schema(request: pytest.FixtureRequest, migrated_schemas: MigratedSchemas) -> Iterator[str]:
    """A schema of the store's newest version, with nothing in it. What changes its tables wants one of its own."""
    _check_lane(request)
    with migrated_schemas.one() as schema, _sessions_for(request):
        yield schema


def _sessions_for(request: pytest.FixtureRequest) -> AbstractContextManager[None]:
    """Sessions of the tests before it, on the server of this process; a test of connections has its own."""
    root = request.config.rootpath
    is_of_connections = lane_of_folder(request.path, root) == "stores"
    if os.environ.get(_ELSEWHERE) or is_of_connections or lane_of(request.node, root) != "stores":
        return nullcontext()
    kept: KeptSessions = request.getfixturevalue("kept_sessions")
    return kept.used()


def _check_lane(request: pytest.FixtureRequest) -> None:
    """Refuse a test on Postgres that is in no lane for it: a fixture that asks for one by name has to be marked."""
    if lane_of(request.node, request.config.rootpath) == "unit":
        raise pytest.UsageError(f"{request.node.nodeid} runs on Postgres: mark it for the lane `stores`")


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file of the store's newest version, with nothing in it, to be copied: migrating takes far longer."""
    path = tmp_path_factory.mktemp("migrated") / "batches.db"
    with closing(connect(path)) as connection:
        migrate(connection, path, 0)
    return path


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> StoreMaker:
    """Opens the test's one database. Called again, it is opened as the next process would open it."""
    if request.param == "sqlite":
        path = copy2(request.getfixturevalue("migrated_file"), tmp_path / "batches.db")
        return lambda clock: SQLiteStore(path, clock=clock)
    if request.param == "postgres":
        dsn: str = request.getfixturevalue("postgres_dsn")
        schema: str = request.getfixturevalue("migrated_schema")
        return lambda clock: PostgresStore(dsn, schema=schema, clock=clock)
    kept: list[MemoryStore] = []

    def remembered(clock: Clock | None) -> Store:
        # What is in memory is gone with its object.
        if not kept:
            kept.append(MemoryStore(clock=clock))
        return kept[0]

    return remembered


@pytest.fixture
def store(open_store: StoreMaker) -> Store:
    return open_store(None)


def _leave_unwatched(code: int, loop: object) -> None:
    """In place of the exit watch."""


@pytest.fixture
def warm_interpreters() -> Iterator[None]:
    """The test's Python programs are forked, where it shows nothing of their start and of what they import."""
    with warm():
        yield


@pytest.fixture(scope="session", autouse=True)
def _unwatched() -> Iterator[None]:
    """No signal that a test sends has the exit watch begin here: it would end the process of all tests."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(exit_watch._watch, "begin", _leave_unwatched)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, object, object]:
    """Have nobody listen to the signals of later tests: an application without a lifespan would go on."""
    result = yield
    for listener in list(stop_signals._switchboard._listeners):
        listener.leave()
    return result


@pytest.fixture
def signal_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[ManualClock]:
    """The clock that signals are told from their echoes by. Nobody listens to them, and Python's handlers are there."""
    clock = ManualClock()
    monkeypatch.setattr(stop_signals, "_switchboard", stop_signals._Switchboard(clock))
    term = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield clock
    assert signal.signal(signal.SIGTERM, term) is signal.SIG_DFL, "put back"
    assert signal.signal(signal.SIGINT, interrupt) is signal.default_int_handler, "put back"
