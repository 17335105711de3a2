"""The Postgres store. Needs the extra `postgres`."""

from durable_batches.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
