"""Transactions of the application that are open yet, and the batches submitted in them: to wait within one is in vain.

What is submitted in it, nobody runs before its commit. On SQLite it also keeps all others from writing, so that no
batch goes on for which the task waits that has it open.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.protocol import HostTransaction

__all__ = ["LocksOut", "OpenTransactions"]

_IN_TRANSACTION: Final = (2, 3)
"""Of psycopg's `TransactionStatus`: in a transaction, and in one that has failed."""


@runtime_checkable
class LocksOut(Protocol):
    """Loading within a transaction of the application that keeps everybody else from writing until its end."""

    @property
    def locks_out_everybody(self) -> bool:
        """Whether it does."""
        ...


_Connections: TypeAlias = tuple[weakref.ref[Any], ...]


class OpenTransactions:
    """Knows the batches that this process has submitted in transactions, as long as these may be open."""

    def __init__(self) -> None:
        # Replaced as a whole, and never changed: it is read by other threads.
        self._submitted: tuple[tuple[BatchId, weakref.ref[Any]], ...] = ()
        self._locking: ContextVar[_Connections] = ContextVar("locking", default=())

    def add(self, batch_id: BatchId, connection: HostTransaction) -> None:
        """Take note of a batch and its transaction."""
        self._submitted = (*self._still_open(), (batch_id, weakref.ref(connection)))

    def batches(self) -> Sequence[BatchId]:
        """List the batches whose connections are in a transaction, which may be a later one. For any thread."""
        return [batch_id for batch_id, _ in self._still_open()]

    def locks(self, connection: HostTransaction) -> None:
        """Take note that the running task, and what it begins, is in a transaction that keeps others from writing."""
        others = (other for other in self._locking.get() if _is_open(other()))
        # Nothing can refer to a connection of sqlite3 without keeping it alive.
        with suppress(TypeError):
            self._locking.set((*others, weakref.ref(connection)))

    @property
    def are_locking(self) -> bool:
        """Whether the running task is in such a transaction, which is open yet."""
        return any(_is_open(connection()) for connection in self._locking.get())

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
