"""Workers' rows: how a worker is registered, how it leaves, and how one whose lease has expired is fenced."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

from durable_batches.errors import StoreAccessError, StoreLockedError
from durable_batches.lifecycle.planning import Departure, KnownWorker, gone_with_machine, plan_release, plan_return
from durable_batches.lifecycle.records import EventRecord, Micros, WorkerId, WorkerRecord
from durable_batches.stores.columns import WORKER, WORKER_RECORD
from durable_batches.stores.postgres import queries
from durable_batches.stores.postgres.commit.lock import lock_batches
from durable_batches.stores.postgres.commit.write import apply
from durable_batches.stores.postgres.connection.database import Database
from durable_batches.stores.postgres.connection.errors import translated
from durable_batches.stores.postgres.connection.server_clock import (
    HOLDS_LEASE,
    LeaseTrust,
    ServerClock,
    given_time,
)
from durable_batches.stores.postgres.connection.session import Session, transaction
from durable_batches.stores.postgres.connection.timeouts import RENEWALS_A_LEASE, Timeouts
from durable_batches.stores.protocol import LEVEL, Expired
from durable_batches.stores.rows import worker_of, worker_values

__all__ = ["Workers", "holding_leases"]

_log = logging.getLogger("durable_batches")

_DEPARTURES: Final[Sequence[Departure]] = ("shutdown", "crash")

_INSERTED: Final = WORKER_RECORD.and_also(*WORKER.choose("lease", "commits", "refused"))
_LEASE: Final = f"${len(WORKER_RECORD) + 1}"
_INSERT: Final = (
    f"INSERT INTO {{s}}.worker ({_INSERTED.names}, lease_until) "
    f"VALUES ({_INSERTED.numbered(1)}, {given_time(len(_INSERTED) + 1)} + {_LEASE})"
)

_GOES_BY: Final = f"(SELECT {given_time(1)} AS now, $3::bigint AS judged_at, $4::bigint AS spared) c"
"""Beside the workers' rows, for the conditions on them, whose arguments are the store's clock, the ids of workers whose
processes have ended, and `_Look.now` and `_Look.spared`."""
_NAMED: Final = "worker_id = ANY($2::text[])"
_LEFT: Final = f"(dead IS NOT NULL OR {_NAMED})"
_EXPIRED: Final = (
    f"((lease_until <= least(c.now, c.judged_at) AND lease > c.spared) OR lease_until > c.now + 2 * lease OR {_LEFT})"
)
"""A lease that ends more than a lease from now was given before the server's clock was set back. A row of these that is
locked is that of a worker that commits at this moment: it is passed over, and looked at again soon."""

_RENEWED_WITHIN: Final = 6
"""A worker that was kept from renewing its lease for less than this part of it has had its chances: it tries three
times a lease."""


class _Look(NamedTuple):
    """What an expiry has found, and goes by: a lease that was over then, and was not renewed since, has run out."""

    dead: list[WorkerId]
    """Workers whose processes have ended."""
    now: Micros
    """The server's time then. That a machine sleeps from then on makes no lease run out."""
    spared: Micros
    """Leases of this length, and shorter ones, are not judged: their workers may have slept before, too."""
    condition: str
    """Which rows of workers it is about."""


async def holding_leases(session: Session, server_clock: ServerClock) -> list[WorkerRecord]:
    """Load the workers that are not past their lease."""
    found = await session.fetch(
        f"SELECT {WORKER_RECORD.names} FROM {{s}}.worker, (SELECT {given_time(1)} AS now) c WHERE {HOLDS_LEASE}",
        server_clock.boot(),
    )
    return [worker_of(row) for row in found]


class Workers:
    """Used on the store's loop.

    Args:
        database: Where the batches are.
        server_clock: What leases are measured on.
        timeouts: Of its transactions.
        gone: Called with workers that have left or whose lease has expired.
        changed: Called with the events of what was released.
    """

    def __init__(
        self,
        database: Database,
        server_clock: ServerClock,
        timeouts: Timeouts,
        *,
        gone: Callable[[Collection[WorkerId]], object],
        changed: Callable[[Sequence[EventRecord]], object],
    ) -> None:
        self._database = database
        self._server_clock = server_clock
        self._trust = LeaseTrust(server_clock.clock)
        self._timeouts = timeouts
        self._gone = gone
        self._changed = changed

    async def register(self, session: Session, worker: WorkerRecord, lease: Micros) -> None:
        """See `Store.register`."""
        async with transaction(session, self._database.where, self._timeouts.begin(session)):
            await session.fetch(_INSERT, *worker_values(worker), lease, 0, "[]", self._server_clock.boot())
            if worker.before is not None:
                await self._take_back(session, worker.before)

    async def _take_back(self, session: Session, before: WorkerId) -> None:
        """Take back the crashes that were counted for a session: its process is alive."""
        found = await queries.taken_from(session, before)
        if not found:
            return
        locked = await lock_batches(session, {batch_id for batch_id, _ in found})
        # Again, now that they are locked: they may have been claimed, or have ended.
        keys = [key for key in await queries.taken_from(session, before) if key[0] in locked.keys]
        now = await self._server_clock.moment(session)
        loaded = await queries.load_executions(session, now, locked, keys)
        await apply(session, locked, plan_return(loaded, before, level=LEVEL))

    async def alive(self, session: Session) -> list[WorkerRecord]:
        """See `Store.workers`."""
        found = await session.fetch(f"SELECT {WORKER_RECORD.names} FROM {{s}}.worker WHERE dead IS NULL")
        return [worker_of(row) for row in found]

    def asks(self) -> float:
        """Return the moment at which an expiry is asked for, to be handed on to `expire`."""
        return self._trust.asks()

    async def expire(self, session: Session, dead: Collection[WorkerId], asked: float) -> Expired:
        """See `Store.expire`.

        Args:
            session: Outside of a transaction.
            dead: Workers whose processes have ended.
            asked: When it was asked for; see `asks`. A machine may have slept since, and others with it.
        """
        # Mostly there is none, and then nothing is locked or written.
        looks = self._trust.asks()
        with translated(self._database.where):
            ((now, longest_lease, left, expired_by_now),) = await session.fetch(
                f"SELECT min(c.now), max(lease), count(*) FILTER (WHERE {_LEFT}), count(*) FILTER (WHERE {_EXPIRED}) "
                f"FROM {_GOES_BY} LEFT JOIN {{s}}.worker ON true",
                self._server_clock.boot(),
                sorted(dead),
                None,
                0,
            )
        by_lease = self._trust.holds(looks, now, longest_lease or 0)
        found = expired_by_now if by_lease else left
        if not found:
            return Expired()
        waited = int((self._trust.asks() - asked) * 1_000_000)
        look = _Look(sorted(dead), now, waited * _RENEWED_WITHIN, _EXPIRED if by_lease else _LEFT)
        try:
            expired = await self._expire(session, look, skip=False)
        except StoreLockedError:
            expired = await self._expire(session, look, skip=True)
        if len(expired.workers) < found:
            await self._end_stuck_sessions(session, look)
        return expired

    async def _end_stuck_sessions(self, session: Session, look: _Look) -> None:
        """End the sessions of workers past their lease that were stopped in the middle of a transaction.

        The server ends those that are idle in one, but not one that waits for the second half of a message.
        """
        try:
            with translated(self._database.where):
                ended = await session.value(
                    "SELECT count(pg_terminate_backend(l.pid)) "
                    "FROM {s}.worker w, pg_locks l, pg_stat_activity a "
                    "WHERE w.lease_until <= $1::bigint AND w.lease > $2::bigint "
                    "AND l.locktype = 'transactionid' AND l.transactionid = w.xmax AND l.granted "
                    "AND l.mode = 'ExclusiveLock' AND l.pid <> pg_backend_pid() AND a.pid = l.pid "
                    f"AND a.xact_start < clock_timestamp() - w.lease / {RENEWALS_A_LEASE} * interval '1 microsecond'",
                    look.now,
                    look.spared,
                )
            if ended:
                _log.warning(
                    "ended %d sessions of workers past their lease, stuck in a transaction of the database %s",
                    ended,
                    self._database.where,
                    extra={"sessions_ended": ended, "database": self._database.where},
                )
        except StoreAccessError as error:
            _log.debug(
                "sessions of workers past their lease could not be ended: %s",
                error,
                extra={"error_code": error.code, "database": self._database.where},
            )

    async def _expire(self, session: Session, look: _Look, *, skip: bool) -> Expired:
        async with transaction(session, self._database.where, self._timeouts.begin(session)):
            # Named ones are waited for, in the order of their ids, so that two who do this do not wait for each other.
            named = await self._locked(session, look._replace(condition=_NAMED), skip=skip) if look.dead else {}
            found = {**named, **await self._locked(session, look, skip=True)}
            events: list[EventRecord] = []
            blameless = await self._lost_machines(session, look, found) if found else ()
            for departure in _DEPARTURES:
                gone = [worker_id for worker_id, left in found.items() if (left or "crash") == departure]
                in_part = [worker_id for worker_id in gone if found[worker_id] is not None]
                events += await self._release(session, gone, departure, skip=skip, in_part=in_part, blameless=blameless)
        self._changed(events)
        return Expired(workers=[worker_id for worker_id, left in found.items() if left is None], events=events)

    async def _lost_machines(self, session: Session, look: _Look, gone: Collection[WorkerId]) -> frozenset[WorkerId]:
        """Find those of the workers whose whole machine is gone."""
        rows = await session.fetch(
            f"SELECT {WORKER_RECORD.names}, lease_until - $1::bigint, lease FROM {{s}}.worker", look.now
        )
        known = [KnownWorker(worker_of(tuple(row)[:-2]), *tuple(row)[-2:]) for row in rows]
        return gone_with_machine(gone, known)

    async def _locked(self, session: Session, look: _Look, *, skip: bool) -> dict[WorkerId, Departure | None]:
        """Lock the rows of workers, and find how each has gone already."""
        found = await session.fetch(
            f"SELECT worker_id, dead FROM {{s}}.worker, {_GOES_BY} "
            f"WHERE {look.condition} ORDER BY worker_id FOR UPDATE OF worker{' SKIP LOCKED' if skip else ''}",
            self._server_clock.boot(),
            look.dead,
            look.now,
            look.spared,
        )
        return {WorkerId(worker_id): left for worker_id, left in found}

    async def leave(self, session: Session, worker: WorkerId) -> Sequence[EventRecord]:
        """See `Store.leave`."""
        try:
            return await self._deregister(session, worker, skip=False)
        except StoreLockedError:
            return await self._deregister(session, worker, skip=True)
        finally:
            # Also where another worker has expired it.
            self._gone([worker])

    async def _deregister(self, session: Session, worker: WorkerId, *, skip: bool) -> Sequence[EventRecord]:
        async with transaction(session, self._database.where, self._timeouts.begin(session)):
            found = await session.fetch(
                "SELECT worker_id FROM {s}.worker WHERE worker_id = $1 AND dead IS NULL FOR UPDATE", worker
            )
            events = await self._release(session, [worker], "shutdown", skip=skip) if found else ()
        self._changed(events)
        return events

    async def _release(
        self,
        session: Session,
        gone: Sequence[WorkerId],
        departure: Departure,
        *,
        skip: bool,
        in_part: Sequence[WorkerId] = (),
        blameless: Collection[WorkerId] = (),
    ) -> Sequence[EventRecord]:
        """Release the executions of workers whose rows are locked; what is left is released with the next `expire`.

        Of the workers `in_part`, some were released before; `blameless`: see `plan_release`.
        """
        if not gone:
            return ()
        self._gone(gone)
        owned = await queries.owned_by(session, gone)
        locked = await lock_batches(session, {batch_id for batch_id, _ in owned}, skip=skip)
        # Read again, now that they are locked: the resolvers are not these workers' own.
        now = await self._server_clock.moment(session)
        reachable = [key for key in owned if key[0] in locked.keys]
        writes = plan_release(
            await queries.load_executions(session, now, locked, reachable),
            gone,
            departure,
            level=LEVEL,
            # Else a part of what they owned would pass for all of it.
            in_company=gone if len(reachable) < len(owned) else in_part,
            blameless=blameless,
        )
        await apply(session, locked, writes)
        await session.fetch("DELETE FROM {s}.shared_slot WHERE worker = ANY($1::text[])", list(gone))
        if len(reachable) == len(owned):
            await session.fetch("DELETE FROM {s}.worker WHERE worker_id = ANY($1::text[])", list(gone))
        else:
            await session.fetch(
                "UPDATE {s}.worker SET dead = coalesce(dead, $2) WHERE worker_id = ANY($1::text[])",
                list(gone),
                departure,
            )
        return writes.events
