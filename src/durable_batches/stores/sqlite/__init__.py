"""The SQLite store."""

from durable_batches.stores.sqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]
