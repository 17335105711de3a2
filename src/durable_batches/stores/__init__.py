"""Where batches are kept: the persistence protocol and its backends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_batches.stores.protocol import BatchQuery, Capabilities, Heart, Store

if TYPE_CHECKING:
    from durable_batches.stores.memory import MemoryStore
    from durable_batches.stores.sqlite import SQLiteStore

__all__ = ["BatchQuery", "Capabilities", "Heart", "MemoryStore", "SQLiteStore", "Store"]


if not TYPE_CHECKING:  # to checkers, it would make every name one of the module's

    def __getattr__(name: str) -> object:
        # A store, and the driver of its database, is imported only where it is used.
        if name == "MemoryStore":
            from durable_batches.stores.memory import MemoryStore

            return MemoryStore
        if name == "SQLiteStore":
            from durable_batches.stores.sqlite import SQLiteStore

            return SQLiteStore
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
