"""What a Postgres store takes its times from: the server's clock, or for simulations another one."""

from __future__ import annotations

from typing import Final

from durable_batches.clock import Clock
from durable_batches.lifecycle.records import Micros
from durable_batches.stores.postgres.connection.connection import Session

__all__ = ["SERVERS_CLOCK", "Times", "given_time"]

SERVERS_CLOCK: Final = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
"""In a statement: microseconds since the epoch. All workers go by it, whatever their machines' clocks say."""


def given_time(argument: int) -> str:
    """In a statement: what `Times` gives, as its argument of this number; the server's clock where that is NULL."""
    return f"coalesce(${argument}::bigint, {SERVERS_CLOCK})"


class Times:
    """The store's clock.

    Args:
        clock: None: the server's.
    """

    def __init__(self, clock: Clock | None) -> None:
        self._clock = clock

    def now(self) -> Micros | None:
        """The wall clock; None: the server says."""
        return None if self._clock is None else self._clock.now()

    def boot(self) -> Micros | None:
        """What leases are measured on; None: the server says."""
        return None if self._clock is None else int(self._clock.boot() * 1_000_000)

    async def moment(self, session: Session) -> Micros:
        """The wall clock, asked for where it is the server's."""
        now = self.now()
        if now is not None:
            return now
        asked: Micros = await session.value(f"SELECT {SERVERS_CLOCK}")
        return asked
