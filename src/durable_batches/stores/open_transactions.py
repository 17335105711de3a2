"""Batches submitted in transactions of the application that are open yet: to wait for one within it is in vain."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Final

from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.protocol import HostTransaction

__all__ = ["OpenTransactions"]

_IN_TRANSACTION: Final = (2, 3)
"""Of psycopg's `TransactionStatus`: in a transaction, and in one that has failed."""


class OpenTransactions:
    """Knows the batches that this process has submitted in transactions, as long as these may be open."""

    def __init__(self) -> None:
        # Replaced as a whole, and never changed: it is read by other threads.
        self._submitted: tuple[tuple[BatchId, weakref.ref[Any]], ...] = ()

    def add(self, batch_id: BatchId, connection: HostTransaction) -> None:
        """Take note of a batch and its transaction."""
        self._submitted = (*self._still_open(), (batch_id, weakref.ref(connection)))

    def batches(self) -> Sequence[BatchId]:
        """List the batches whose connections are in a transaction, which may be a later one. For any thread."""
        return [batch_id for batch_id, _ in self._still_open()]

    def _still_open(self) -> Sequence[tuple[BatchId, weakref.ref[Any]]]:
        return [(batch_id, connection) for batch_id, connection in self._submitted if _is_open(connection())]


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
