"""The Postgres store. Needs the extra `postgres`."""

from importlib.util import find_spec

from durable_batches.errors import MissingExtraError

if find_spec("asyncpg") is None:  # before the rest of this package imports it
    raise MissingExtraError("postgres", "asyncpg")

from durable_batches.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
