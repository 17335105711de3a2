"""The clock that a Postgres store goes by: the server's, or for simulations another one."""

from __future__ import annotations

import logging
from typing import Final

from durable_batches.clock import Clock, SystemClock
from durable_batches.lifecycle.records import Micros
from durable_batches.stores.postgres.connection.session import Session

__all__ = ["HOLDS_LEASE", "SERVER_TIME", "LeaseTrust", "ServerClock", "given_time"]

_log = logging.getLogger("durable_batches")

_JUMP_SECONDS: Final = 1.0
"""Less is what two clocks differ by between two looks, be one of them corrected gradually."""

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
        self.clock: Final = clock
        """See above."""

    def now(self) -> Micros | None:
        """Read the wall clock; None: the server says."""
        return None if self.clock is None else self.clock.now()

    def boot(self) -> Micros | None:
        """Read the clock that leases are measured on; None: the server says."""
        return None if self.clock is None else int(self.clock.boot() * 1_000_000)

    async def moment(self, session: Session) -> Micros:
        """Read the wall clock; where it is the server's, ask for it."""
        now = self.now()
        if now is not None:
            return now
        asked: Micros = await session.value(f"SELECT {SERVER_TIME}")
        return asked


class LeaseTrust:
    """Notices that the server's clock was set, after which the leases in its rows tell nothing for a while.

    Each worker renews its own by the new time within a lease, by which time those that do not are dead.

    Args:
        clock: This machine's, which never jumps.
    """

    def __init__(self, clock: Clock | None) -> None:
        self._clock: Final = clock or SystemClock()
        self._seen: tuple[float, float, Micros] | None = None
        """Of the last look: when it began and ended on this machine, and the server's time."""
        self._from = float("-inf")

    def asks(self) -> float:
        """Return the moment at which the server is about to be asked for its time, to be handed on to `holds`."""
        return self._clock.boot()

    def holds(self, asked: float, time: Micros, longest_lease: Micros) -> bool:
        """Take note of the server's time; return whether a lease that is over by it has run out.

        Args:
            asked: When it was asked for.
            time: The server's time: what leases are measured on.
            longest_lease: The longest of the workers' leases.
        """
        answered = self._clock.boot()
        if self._seen is not None:
            asked_before, answered_before, time_before = self._seen
            passed = (time - time_before) / 1_000_000
            ahead, behind = passed - (answered - asked_before), (asked - answered_before) - passed
            jump = max(ahead, behind)
            if jump > _JUMP_SECONDS:
                self._from = answered + longest_lease / 1_000_000
                _log.warning(
                    "the clock of the database server was set %s by about %.0f s: no lease expires for %.0f s, in "
                    "which living workers renew theirs",
                    "forward" if ahead > behind else "back",
                    jump,
                    longest_lease / 1_000_000,
                    extra={"jump_seconds": jump, "lease_seconds": longest_lease / 1_000_000},
                )
        self._seen = asked, answered, time
        return answered >= self._from
