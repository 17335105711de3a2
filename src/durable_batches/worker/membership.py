"""Membership: which workers the store knows, and the release of what those held that are gone."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import timedelta

from durable_batches.errors import CommitUnknownError
from durable_batches.lifecycle.records import GENERATION, EventRecord, WorkerId, WorkerRecord
from durable_batches.stores.protocol import Expired, Store
from durable_batches.worker.failure_log import log_crash_loops
from durable_batches.worker.process_identity import is_dead, this_process
from durable_batches.worker.signals import MembershipSignals

__all__ = ["Membership"]

_log = logging.getLogger("durable_batches")


class Membership:
    """Registers the sessions of one worker, deregisters them, and expires dead workers of other processes.

    Args:
        store: Where the workers are registered.
        deliver: Hands on the events of releasing what a session held.
        signals: Fired for tests.
    """

    def __init__(
        self, store: Store, deliver: Callable[[Sequence[EventRecord]], None], signals: MembershipSignals
    ) -> None:
        self._store = store
        self._deliver = deliver
        self._signals = signals
        self._pending: list[WorkerId] = []
        self._before: WorkerId | None = None
        self._predecessor: WorkerId | None = None
        self._lost: WorkerId | None = None

    async def register(
        self, worker: WorkerId, workflows: Iterable[tuple[str, str]], lease: timedelta, note: str | None = None
    ) -> None:
        """Register a session of this process.

        It names the session before it: crashes that were counted for that one, whose lease ran out, were none.

        Args:
            worker: The session's id.
            workflows: The (name, version) pairs that it runs.
            lease: How long its lease is.
            note: What its row says until the first renewal.
        """
        identity = this_process()
        record = WorkerRecord(
            worker_id=worker,
            boot_id=identity.boot_id,
            pid_namespace=identity.pid_namespace,
            pid=identity.pid,
            started=identity.started,
            workflows=frozenset(workflows),
            note=note,
            before=self._before,
            generation=GENERATION,
        )
        try:
            await self._store.register(record, int(lease.total_seconds() * 1_000_000))
        except CommitUnknownError:
            # It may be registered, and its successor has another id.
            self.deregister_later(worker)
            raise
        self._predecessor, self._before = self._before, worker
        host = socket.gethostname()
        _log.info(
            "worker %s registered: process %d on %s",
            worker,
            identity.pid,
            host,
            extra={"worker_id": worker, "pid": identity.pid, "host": host},
        )
        self._signals.registered.fire(worker)

    async def expire_dead_workers(self, may: Callable[[], bool]) -> Expired:
        """Expire dead workers and release their executions; the caller hands on the events of that.

        Args:
            may: Whether it can be told who is dead. Asked last of all, since a machine can sleep in every wait.
        """
        dead = [worker.worker_id for worker in await self._store.workers() if is_dead(worker)]
        if not may():
            return Expired()
        expired = await self._store.expire(dead=dead)
        if expired.workers:
            _log_expired(expired.workers, dead)
        # Events also come alone: of executions that were left of workers expired before.
        log_crash_loops(expired.events)
        self._signals.expired.fire(expired.workers)
        return expired

    async def deregister(self, worker: WorkerId) -> None:
        """Deregister a session and release its executions."""
        self._deliver(await self._store.leave(worker))
        self._signals.deregistered.fire(worker)

    def deregister_later(self, worker: WorkerId) -> None:
        """Keep in mind a session that has not crashed, and is to be deregistered when the store answers."""
        self._lost = worker
        self._pending.append(worker)

    @property
    def succeeds_lost_session(self) -> bool:
        """Whether the session before the one that is registered has lost its lease."""
        return self._lost is not None and self._lost == self._predecessor

    async def deregister_pending(self) -> bool:
        """Deregister the sessions of `deregister_later`; return whether there were any."""
        were_any = bool(self._pending)
        while self._pending:
            await self.deregister(self._pending[0])
            self._pending.pop(0)
        return were_any


def _log_expired(workers: Sequence[WorkerId], dead: Collection[WorkerId]) -> None:
    processes_ended = set(workers) <= set(dead)
    _log.log(
        # An ended process was stopped deliberately or crashed visibly; an expired lease needs attention.
        logging.INFO if processes_ended else logging.WARNING,
        "expired dead workers and released their executions (%s): %s",
        "processes ended" if processes_ended else "leases ran out",
        ", ".join(workers),
        extra={"worker_ids": list(workers), "processes_ended": processes_ended},
    )
