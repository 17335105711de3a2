"""The clock that a Postgres store goes by: the server's without its jumps, or for simulations another one."""

from __future__ import annotations

import logging
from typing import Final

from durable_batches.clock import CATCH_UP, RUNS_WHILE_SUSPENDED, Clock, SystemClock
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


class _Jumps:
    """Tells that the server's clock was set, by what it says and by this machine's boot clock, which never jumps.

    A time that the server says is one at which it was being asked: so long an answer takes, it is no jump.
    """

    def __init__(self) -> None:
        self.seen: tuple[float, float, Micros] | None = None
        """Of the last look: when it began and ended on this machine, and the server's time."""

    def since(self, asked: float, answered: float, time: Micros) -> float:
        """Take note of the server's time; return by how many seconds it was set forward (+) or back (-).

        Args:
            asked: When it was asked for, on the boot clock.
            answered: When it was there.
            time: The server's time.
        """
        ahead = behind = 0.0
        if self.seen is not None:
            asked_before, answered_before, time_before = self.seen
            passed = (time - time_before) / 1_000_000
            ahead, behind = passed - (answered - asked_before), (asked - answered_before) - passed
        self.seen = asked, answered, time
        jump = max(ahead, behind)
        return 0.0 if jump <= _JUMP_SECONDS else ahead if ahead > behind else -behind


class ServerClock:
    """The store's clock: the server's, without its jumps.

    Where the server's clock was set, a process that has seen it before goes on by the time as it was, and makes up for
    the difference gradually: due times and deadlines are hardly met earlier or later for it.

    Args:
        clock: Another one, for simulations; None: the server's.
    """

    def __init__(self, clock: Clock | None) -> None:
        self.clock: Final = clock
        """See above."""
        self._machine: Final = SystemClock()
        self._jumps = _Jumps()
        self._off: tuple[float, float] | None = None
        """By how many seconds the server's clock was off, and when on the boot clock; None: it was not set."""

    def now(self) -> Micros | None:
        """Read the wall clock; None: the server says."""
        return self._steady() if self.clock is None else self.clock.now()

    def asks(self) -> float:
        """Return the moment at which the server is about to be asked for its time, to be handed on to `note`."""
        return self._machine.boot()

    def note(self, asked: float, time: Micros) -> None:
        """Take note of the server's time, as it has just said.

        Args:
            asked: When it was asked for.
            time: The server's time.
        """
        if self.clock is not None:
            return
        boot = self._machine.boot()
        jump = self._jumps.since(asked, boot, time)
        if jump < 0 or (jump and RUNS_WHILE_SUSPENDED):
            self._off = self._still_off(boot) + jump, boot

    def _still_off(self, boot: float) -> float:
        """Return by how many seconds the server's clock is off the time as it was."""
        if self._off is None:
            return 0.0
        off, since = self._off
        left = abs(off) - (boot - since) / CATCH_UP
        if left <= 0:
            self._off = None
            return 0.0
        return left if off > 0 else -left

    def _steady(self) -> Micros | None:
        """Compute the time as it was; None: it is what the server says."""
        if self._off is None or self._jumps.seen is None:
            return None
        boot = self._machine.boot()
        _, answered, time = self._jumps.seen
        return time + int((boot - answered - self._still_off(boot)) * 1_000_000)

    def boot(self) -> Micros | None:
        """Read the clock that leases are measured on; None: the server says."""
        return None if self.clock is None else int(self.clock.boot() * 1_000_000)

    async def moment(self, session: Session) -> Micros:
        """Read the wall clock; where it is the server's, ask for it."""
        now = self.now()
        if now is not None:
            return now
        asked = self.asks()
        time: Micros = await session.value(f"SELECT {SERVER_TIME}")
        self.note(asked, time)
        return self.now() or time


class LeaseTrust:
    """Notices that the server's clock was set, after which the leases in its rows tell nothing for a while.

    Each worker renews its own by the new time within a lease, by which time those that do not are dead.

    Args:
        clock: This machine's, which never jumps.
    """

    def __init__(self, clock: Clock | None) -> None:
        self._clock: Final = clock or SystemClock()
        self._jumps = _Jumps()
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
        jump = self._jumps.since(asked, answered, time)
        if jump:
            self._from = answered + longest_lease / 1_000_000
            _log.warning(
                "the clock of the database server was set %s by about %.0f s: no lease expires for %.0f s, in "
                "which living workers renew theirs",
                "forward" if jump > 0 else "back",
                abs(jump),
                longest_lease / 1_000_000,
                extra={"jump_seconds": abs(jump), "lease_seconds": longest_lease / 1_000_000},
            )
        return answered >= self._from
