"""Batches submitted in transactions of the application that are open yet: to wait for one within it is in vain."""

from __future__ import annotations

import weakref
from typing import Any, Final

from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.protocol import HostTransaction

__all__ = ["OpenTransactions"]

_IN_TRANSACTION: Final = (2, 3)
"""Of psycopg's `TransactionStatus`: in a transaction, and in one that has failed."""


class OpenTransactions:
    """Knows the batches that this process has submitted in transactions, until these have ended."""

    def __init__(self) -> None:
        self._connections: dict[BatchId, weakref.ref[Any]] = {}

    def add(self, batch_id: BatchId, connection: HostTransaction) -> None:
        """Take note of a batch and its transaction."""
        for other, found in list(self._connections.items()):
            if not _is_open(found()):
                del self._connections[other]
        self._connections[batch_id] = weakref.ref(connection)

    def has(self, batch_id: BatchId) -> bool:
        """Whether the batch's connection is in a transaction; one that nobody sees may be in it."""
        found = self._connections.get(batch_id)
        return found is not None and _is_open(found())


def _is_open(connection: Any) -> bool:
    if connection is None:
        return False
    try:
        for name in ("in_transaction", "is_in_transaction"):
            asked = getattr(connection, name, None)
            if asked is not None:
                return bool(asked() if callable(asked) else asked)
        return connection.info.transaction_status in _IN_TRANSACTION
    except Exception:  # noqa: BLE001  (each driver has errors of its own for one that is closed)
        return False
