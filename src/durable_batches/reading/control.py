"""Commands to batches: given to the store, and given again where the reply was lost."""

from __future__ import annotations

from collections.abc import Callable

from durable_batches.clock import Clock
from durable_batches.lifecycle.commands import Command
from durable_batches.lifecycle.records import Committed
from durable_batches.lifecycle.states import BatchId
from durable_batches.outage import Outages, repeat_unknown
from durable_batches.stores.protocol import Store

__all__ = ["Control"]


class Control:
    """Gives commands to batches.

    Args:
        store: Where the batches are.
        clock: For the pauses before a command is given again.
        outages: Where lost replies are logged.
        committed: Called with what came of each command, also where it was not applied.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        outages: Outages,
        committed: Callable[[BatchId, Command, Committed], object],
    ) -> None:
        self._store = store
        self._clock = clock
        self._outages = outages
        self._committed = committed

    async def give(self, batch_id: BatchId, command: Command) -> Committed:
        """Give a command; where the reply is lost, again: the store knows it by its id, and answers as it did."""
        committed = await repeat_unknown(
            lambda: self._store.control(batch_id, command),
            self._outages,
            f"a command to batch {batch_id!r}",
            self._clock,
        )
        self._committed(batch_id, command, committed)
        return committed
