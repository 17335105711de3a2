"""Connections to a Postgres server: how they are opened and migrated, and what their errors mean."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from durable_batches.errors import (
    CommitUnknownError,
    ConfigurationError,
    DurableBatchesError,
    FactRejectedError,
    MissingExtraError,
    StoreAccessError,
    StoreCorruptError,
    StoreFullError,
    StoreLockedError,
    StoreReadOnlyError,
    StoreUnavailableError,
)

try:
    import asyncpg
except ModuleNotFoundError as _missing:
    if _missing.name != "asyncpg":
        raise
    raise MissingExtraError("postgres", "asyncpg") from _missing

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = [
    "Database",
    "Session",
    "checked_schema",
    "closed",
    "millis",
    "pooled",
    "quoted_text",
    "transaction",
    "translated",
    "unless_lost",
]

_log = logging.getLogger("durable_batches")

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

CONNECT_SECONDS: Final = 10.0
"""How long opening a connection may take."""

_MARGIN_SECONDS: Final = 2.0
"""How much longer than the server's own limit a statement is waited for; then the connection is taken for dead."""

_LONGEST_NAME: Final = 63
"""Bytes; the server would cut a longer name off without a word."""

_APPLICATION_NAME: Final = "durable_batches"
"""Where the DSN or the engine gives none."""

_SETTINGS: Final = {
    "default_transaction_isolation": "read committed",
    "standard_conforming_strings": "on",
    "client_min_messages": "error",
    "jit": "off",
}

_BY_KEY: Final = {
    # Every statement of a write path finds its rows by a key or along one index. What the planner believes of a
    # table that has grown since it was last analysed must not talk it into reading all of it, so the other ways
    # are closed; and with one way there is nothing to plan anew each time.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}


class Database:
    """Where the batches are, and how to get there.

    Args:
        target: A DSN, or the engine of the host application.
        schema: The schema of the tables, as its user calls it.
        statement_seconds: How long the server may work on one statement.
        lock_seconds: How long it may wait for a lock.
    """

    def __init__(self, target: str | AsyncEngine, schema: str, statement_seconds: float, lock_seconds: float) -> None:
        self.schema: Final = checked_schema(schema)
        self.quoted: Final = quoted(schema)
        self.statement_seconds: Final = statement_seconds
        self.lock_seconds: Final = lock_seconds
        self._open: Callable[[float], Awaitable[Connection]]
        if isinstance(target, str):
            dsn = _checked_dsn(target)
            where = _without_credentials(dsn)
            self._open = lambda seconds: asyncpg.connect(dsn, timeout=seconds)
        elif hasattr(target, "url"):
            from durable_batches.stores.postgres.connection.engine import opener_of

            self._open = opener_of(target)
            where = target.url.render_as_string(hide_password=True).partition("@")[2] or str(target.url.database)
        else:
            raise ConfigurationError(
                "a PostgresStore needs a DSN such as postgresql://user:password@host:5432/database, or an AsyncEngine, "
                f"not {type(target).__name__!r}"
            )
        self.where: Final = where

    @property
    def channel(self) -> str:
        """The channel of its notifications."""
        return "durable_batches_" + hashlib.blake2b(self.schema.encode(), digest_size=8).hexdigest()

    @property
    def answer_seconds(self) -> float:
        """How long an answer to a statement is waited for."""
        return self.statement_seconds + _MARGIN_SECONDS

    async def connect(self, *, by_key: bool, seconds: float = CONNECT_SECONDS) -> Connection:
        """A connection with the store's settings.

        Raises:
            StoreUnavailableError: Or a kin of it.
            ConfigurationError: Nothing that the settings name is there to connect to, or they contradict each other.
        """
        with translated(self.where):
            async with asyncio.timeout(seconds):
                connection = await self._open(seconds)
                try:
                    await self._set_up(connection, by_key=by_key)
                except BaseException:
                    connection.terminate()
                    raise
                return connection

    async def _set_up(self, connection: Connection, *, by_key: bool) -> None:
        given = getattr(connection.get_settings(), "application_name", "")
        settings = {
            **_SETTINGS,
            "application_name": given or _APPLICATION_NAME,
            "search_path": "pg_catalog",
            "statement_timeout": millis(self.statement_seconds),
            "lock_timeout": millis(self.lock_seconds),
            "idle_in_transaction_session_timeout": millis(self.statement_seconds),
            **(_BY_KEY if by_key else {}),
        }
        row = await connection.fetchrow(
            "SELECT count(set_config(name, setting, false)), pg_is_in_recovery() "
            "FROM unnest($1::text[], $2::text[]) AS s(name, setting)",
            list(settings),
            list(settings.values()),
        )
        if row is not None and row[1]:
            # After a failover an address may lead to one for some time; it may also be behind with what can be read.
            raise StoreReadOnlyError(
                f"the database {self.where} is a replica and cannot be written; connect to the primary "
                "(target_session_attrs=read-write in the DSN finds it among several hosts)"
            )
        # What is acknowledged has to be on the disk, however the server's other applications want it.
        await connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false) "
            "WHERE current_setting('synchronous_commit') IN ('off', 'local')"
        )

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[Session]:
        """A connection of its own, for something rare."""
        connection = await self.connect(by_key=False)
        try:
            yield Session(self, connection)
        finally:
            await closed(connection)


class Session:
    """A connection, speaking of one schema: in its statements, `{s}` is the schema's quoted name."""

    __slots__ = ("_cache", "_seconds", "_where", "connection", "quoted")

    _statements: Final[dict[tuple[str, str], str]] = {}

    def __init__(self, database: Database, connection: Connection, seconds: float | None = None) -> None:
        self.connection: Connection = connection
        self.quoted: str = database.quoted
        self._where = database.where
        self._seconds = database.answer_seconds if seconds is None else seconds
        self._cache = self._statements

    def sql(self, statement: str) -> str:
        """The statement as the server gets it; the same text each time, so that it is prepared once."""
        key = (self.quoted, statement)
        text = self._cache.get(key)
        if text is None:
            text = self._cache[key] = statement.replace("{s}", self.quoted)
        return text

    async def fetch(self, statement: str, *args: object) -> Sequence[Any]:
        """All rows."""
        return await self.connection.fetch(self.sql(statement), *args, timeout=self._seconds)

    async def row(self, statement: str, *args: object) -> Any:
        """The first row, or None."""
        return await self.connection.fetchrow(self.sql(statement), *args, timeout=self._seconds)

    async def value(self, statement: str, *args: object) -> Any:
        """The first value of the first row, or None."""
        return await self.connection.fetchval(self.sql(statement), *args, timeout=self._seconds)

    async def run(self, script: str) -> str:
        """Statements without arguments; the tag of the last one."""
        return await self.connection.execute(self.sql(script), timeout=self._seconds)


@asynccontextmanager
async def transaction(session: Session, where: str, begin: str = "BEGIN") -> AsyncGenerator[None]:
    """One transaction, with errors translated; whether it was made is unknown only where the reply to COMMIT is lost.

    Raises:
        CommitUnknownError: That is so.
        StoreUnavailableError: Or another of the library's errors: nothing was written.
    """
    with translated(where):
        await session.run(begin)
        try:
            yield
        except TimeoutError:
            # Who has not answered will not answer this.
            session.connection.terminate()
            raise
        except BaseException:
            await _rolled_back(session)
            raise
    with unless_lost(session, where):
        if await session.run("COMMIT") != "COMMIT":
            raise StoreUnavailableError(f"the database {where} has rolled a transaction back")


@contextmanager
def unless_lost(session: Session, where: str) -> Generator[None]:
    """Within: what commits. Errors are translated, and one after which it may have been made all the same says so.

    Raises:
        CommitUnknownError: The connection was lost, or whoever waits was cancelled.
    """
    try:
        with translated(where):
            yield
    except (StoreUnavailableError, asyncio.CancelledError) as error:
        if isinstance(error.__cause__, asyncpg.PostgresError) and not _is_lost(error.__cause__):
            # The server's own word that it was not made, as for a disk that is full.
            raise
        session.connection.terminate()
        raise CommitUnknownError(
            f"the connection to the database {where} was lost in the middle of a commit, so whether it was made is "
            "not known; it is repeated under its number, which tells"
        ) from error


async def _rolled_back(session: Session) -> None:
    connection = session.connection
    if connection.is_closed():
        return
    try:
        await session.run("ROLLBACK")
    except Exception:  # noqa: BLE001  (whatever it is, the connection is of no use any more)
        connection.terminate()


async def closed(connection: Connection) -> None:
    """Say goodbye, but do not wait long for an answer."""
    try:
        await connection.close(timeout=1)
    except Exception:  # noqa: BLE001  (it is gone either way)
        connection.terminate()


# ---- errors --------------------------------------------------------------------------------------------------------


@contextmanager
def translated(where: str) -> Generator[None]:
    """Within: the driver's errors become the library's, with what to do about them."""
    try:
        yield
    except DurableBatchesError:
        raise
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise _translate(error, where) from error
    except TimeoutError as error:
        raise StoreUnavailableError(
            f"the database {where} has not answered in time; check the server and the network"
        ) from error
    except OSError as error:
        raise StoreUnavailableError(
            f"the database {where} cannot be reached: {error}; check that the server runs, and its address"
        ) from error
    except (OverflowError, UnicodeEncodeError) as error:
        raise FactRejectedError(f"the database {where} cannot store a value: {type(error).__name__}") from error


_LOST_CLASSES: Final = ("08", "57")
"""Of SQLSTATE: what went wrong with the connection, and what an operator did."""


def _is_lost(error: BaseException) -> bool:
    return (getattr(error, "sqlstate", None) or "08")[:2] in _LOST_CLASSES


def _translate(error: Exception, where: str) -> DurableBatchesError:
    state = str(getattr(error, "sqlstate", None) or "")
    said = _one_line(error)
    match state:
        case "55P03":
            return StoreLockedError(where)
        case "25006":
            return StoreReadOnlyError(
                f"the database {where} cannot be written ({said}); connect to the primary, not to a replica"
            )
        case "42501":
            return StoreAccessError(
                f"the database {where} refuses: {said}; grant the role its rights, or have somebody who has them "
                "run `durable-batches migrate`"
            )
        case "53100" | "54P01":
            return StoreFullError(
                f"the disk of the database {where} is full ({said}); make room, the work then goes on"
            )
        case "3D000":
            return StoreAccessError(f"{said} (at {where}); create it, or mend the DSN")
        case "3F000" | "42P01":
            return StoreCorruptError(
                f"tables of the store are missing in the database {where} ({said}); were they dropped? Opening the "
                "store anew makes them, empty"
            )
        case "42703":
            return StoreCorruptError(
                f"the tables in the database {where} are not this library's ({said}); give it a schema of its own"
            )
        case "42P07":
            return StoreCorruptError(
                f"the schema in the database {where} has tables of somebody else ({said}); they were left as they "
                "are, so give another schema="
            )
        case "26000" | "42P05":
            # A statement that this connection has prepared is not there, or one that it has not is.
            return pooled(where)
        case "XX001" | "XX002":
            return StoreCorruptError(f"the database {where} is damaged ({said}); restore it from a backup")
        case _:
            pass
    match state[:2]:
        case "28":
            return StoreAccessError(f"the database {where} refuses the login: {said}; check the user and the password")
        case "22" | "23" | "54":
            return FactRejectedError(f"the database {where} refuses a value: {said}")
        case _:
            pass
    return StoreUnavailableError(f"the database {where} cannot be used now: {said}")


def _one_line(error: Exception) -> str:
    """What the server says, without its details: these may hold a user's values, as what the driver says does."""
    said = str(getattr(error, "message", None) or "")
    if not said:
        said = "it does not fit its column" if isinstance(error, asyncpg.DataError) else str(error)
    return " ".join(said.split()) or type(error).__name__


def pooled(where: str) -> ConfigurationError:
    """What there is to say of a pooler that hands sessions out by the transaction."""
    return ConfigurationError(
        f"{where} is a pooler in transaction mode (as PgBouncer with pool_mode = transaction): what one transaction "
        "sets up, prepares or listens to is gone in the next. Connect to the server itself, or to a pool in session "
        "mode"
    )


# ---- names ---------------------------------------------------------------------------------------------------------


def checked_schema(schema: str) -> str:
    """The schema's name, which may be any that the server takes, since it is quoted everywhere.

    Raises:
        ConfigurationError: The server would not take it, or not as it stands.
    """
    if not isinstance(schema, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"schema must be a str, not {type(schema).__name__!r}")
    if not schema or "\0" in schema or any("\ud800" <= character <= "\udfff" for character in schema):
        raise ConfigurationError("schema must not be empty, and must not contain NUL or lone surrogates")
    if len(schema.encode()) > _LONGEST_NAME:
        raise ConfigurationError(f"schema must have at most {_LONGEST_NAME} bytes, not {len(schema.encode())}")
    if schema.startswith("pg_") or schema == "information_schema":
        raise ConfigurationError(f"the schema {schema!r} is the server's own; give another one")
    return schema


def quoted(name: str) -> str:
    """A name as it stands in a statement, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def quoted_text(text: str) -> str:
    """A text as it stands in a statement."""
    return "'" + text.replace("'", "''") + "'"


def _checked_dsn(dsn: str) -> str:
    scheme, separator, rest = dsn.partition("://")
    plain = scheme.lower().removesuffix("+asyncpg")
    if not separator or plain not in ("postgresql", "postgres"):
        raise ConfigurationError(
            "a PostgresStore needs a DSN such as postgresql://user:password@host:5432/database, or an AsyncEngine; "
            f"this one begins with {scheme[:20]!r}"
            if separator
            else "a PostgresStore needs a DSN such as postgresql://user:password@host:5432/database, or an AsyncEngine"
        )
    if not _is_understood(f"{plain}://{rest}"):
        raise ConfigurationError(
            "the DSN cannot be understood; if its user or password holds characters such as : / ? # [ ] @, write them "
            "percent-encoded (urllib.parse.quote does it)"
        )
    return f"{plain}://{rest}"


_HOST: Final = re.compile(r"(\[[^\]]*\]|[^:]*)(:(?P<port>\d*))?")


def _is_understood(dsn: str) -> bool:
    """Whether it comes apart as it was meant to: a password with a `?` in it ends before that, and becomes a port."""
    try:
        parts = urlsplit(dsn)
        parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        return False
    hosts = [_HOST.fullmatch(host) for host in parts.netloc.rpartition("@")[2].split(",")]
    ports = [int(host["port"]) for host in hosts if host is not None and host["port"]]
    return None not in hosts and all(0 < port < 1 << 16 for port in ports) and not parts.fragment


def _without_credentials(dsn: str) -> str:
    """Host, port and database: what messages may say."""
    rest = dsn.partition("://")[2].partition("?")[0]
    return rest.rpartition("@")[2] or "at the default address"


def millis(seconds: float) -> str:
    """As the server takes a duration: at least a millisecond, and at most what fits (24 days)."""
    return str(min(max(int(seconds * 1000), 1), _LONGEST_MILLIS))


_LONGEST_MILLIS: Final = 2**31 - 1
