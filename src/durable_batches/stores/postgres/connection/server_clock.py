"""The clock that a Postgres store goes by: the server's, or for simulations another one."""

from __future__ import annotations

from typing import Final

from durable_batches.clock import Clock
from durable_batches.lifecycle.records import Micros
from durable_batches.stores.postgres.connection.session import Session

__all__ = ["HOLDS_LEASE", "SERVER_TIME", "ServerClock", "given_time"]

SERVER_TIME: Final = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
"""In a statement: microseconds since the epoch. All workers go by it, whatever their machines' clocks say."""

HOLDS_LEASE: Final = "dead IS NULL AND lease_until > c.now AND lease_until <= c.now + 2 * lease"
"""Of a worker's row, beside the time as `c.now`: its lease has not run out, and was not given by a clock that was set
back since."""


def given_time(argument: int) -> str:
    """Write the time in a statement: its argument of this number, or the server's time where that is NULL."""
    return f"coalesce(${argument}::bigint, {SERVER_TIME})"


class ServerClock:
    """The store's clock.

    Args:
        clock: Another one, for simulations; None: the server's.
    """

    def __init__(self, clock: Clock | None) -> None:
        self._clock = clock

    def now(self) -> Micros | None:
        """Read the wall clock; None: the server says."""
        return None if self._clock is None else self._clock.now()

    def boot(self) -> Micros | None:
        """Read the clock that leases are measured on; None: the server says."""
        return None if self._clock is None else int(self._clock.boot() * 1_000_000)

    async def moment(self, session: Session) -> Micros:
        """Read the wall clock; where it is the server's, ask for it."""
        now = self.now()
        if now is not None:
            return now
        asked: Micros = await session.value(f"SELECT {SERVER_TIME}")
        return asked
