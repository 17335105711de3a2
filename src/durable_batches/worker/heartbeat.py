"""The lease renewer: a thread that keeps a session's lease.

It has a thread and a connection of its own, so that code that blocks the event loop does not cost the lease. But a
loop that has not turned for `max_stall` may never turn again, and its lease is given up. A session whose lease could
not be renewed for most of its length fences itself before others may expire it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from durable_batches.clock import Clock
from durable_batches.errors import StoreUnavailableError
from durable_batches.lifecycle.records import WorkerId
from durable_batches.outage import Outage, Outages
from durable_batches.stores.protocol import Heart, Store
from durable_batches.worker.signals import LeaseSignals

__all__ = ["LeaseRenewer"]

_log = logging.getLogger("durable_batches")

_RENEWALS_A_LEASE: Final = 3
_ATTEMPTS_A_LEASE: Final = 10
"""After a renewal that failed."""
_OWN_SHARE: Final = 0.75
"""Of the lease: after this much without a renewal the session fences itself. An attempt takes no more than what is
left of it."""


class LeaseRenewer:
    """Renews one session's lease on a thread of its own.

    Args:
        store: Where the lease is.
        worker: The session's id.
        lease: How long it is.
        max_stall: How long the event loop may stand still.
        clock: The worker's.
        outages: Where the store's are logged.
        lost: Called from the thread, once, when the lease is lost.
        signals: Fired for tests.
    """

    def __init__(
        self,
        store: Store,
        worker: WorkerId,
        lease: timedelta,
        max_stall: timedelta,
        clock: Clock,
        *,
        outages: Outages,
        lost: Callable[[], object],
        signals: LeaseSignals,
    ) -> None:
        self._store = store
        self._worker = worker
        self._lease_seconds = lease.total_seconds()
        self._max_stall_seconds = max_stall.total_seconds()
        self._clock = clock
        self._outage: Outage = outages.of(f"lease renewal of worker {worker}")
        self._lost = lost
        self._signals = signals
        self._stop = clock.alarm()
        self._turned = self._renewed = clock.boot()
        self._expires_others_from = self._turned
        self.reaches_store: bool = True
        """Whether the last renewal came to an answer."""
        self._locked_out = False
        self._thread = threading.Thread(target=self._run, name="durable-batches lease", daemon=True)

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def loop_turns(self) -> None:
        """Take note that the event loop turns."""
        now = self._clock.boot()
        self._note_gap(self._turned, now)
        self._turned = now

    @property
    def may_expire_others(self) -> bool:
        """Whether the lease is renewed, and has been for a whole lease without a gap as long as a lease."""
        now = self._clock.boot()
        return now >= self._expires_others_from and now - self._renewed < self._lease_seconds * _OWN_SHARE

    def give_others_time(self) -> None:
        """Expire nobody for a whole lease: the others may have been cut off as well, and have to renew first."""
        self._expires_others_from = self._clock.boot() + self._lease_seconds

    def _note_gap(self, before: float, now: float) -> None:
        if now - before >= self._lease_seconds:
            self.give_others_time()

    def signal_stop(self) -> None:
        """Have the thread end, without waiting for it."""
        self._stop.set()

    def join(self) -> None:
        """Wait for the thread's end; blocks."""
        self._thread.join()

    def _run(self) -> None:
        heart = self._store.heart(self._worker)
        try:
            with self._outage:
                if self._renew_until_stopped_or_lost(heart):
                    self._lost()
        finally:
            heart.close()

    def _renew_until_stopped_or_lost(self, heart: Heart) -> bool:
        """Renew; return whether the lease is lost."""
        pause = self._lease_seconds / _RENEWALS_A_LEASE
        while not self._stop.wait(pause):
            now = self._clock.boot()
            if self._must_be_given_up(now, self._renewed):
                return True
            try:
                alive = heart.beat()
            except Exception as error:  # noqa: BLE001  (whatever it is, the lease is not renewed)
                self._failed(error)
                left = self._renewed + self._lease_seconds * _OWN_SHARE - self._clock.boot()
                pause = min(self._lease_seconds / _ATTEMPTS_A_LEASE, max(left, 0.001))
                continue
            self.reaches_store = True
            self._outage.answered()
            if not alive:
                return True
            self._note_gap(self._renewed, now)
            self._renewed, pause = now, self._lease_seconds / _RENEWALS_A_LEASE
            self._signals.renewed.fire(self._worker)
        return False

    def _must_be_given_up(self, now: float, renewed: float) -> bool:
        stalled, unrenewed = now - self._turned, now - renewed
        if stalled > self._max_stall_seconds:
            _log.error(
                "event loop of worker %s has not turned for %.1f s: lease given up",
                self._worker,
                stalled,
                extra={"worker_id": self._worker, "stalled_seconds": stalled},
            )
            return True
        # Where nobody can write, nobody can expire it either, and the next renewal tells.
        if not self.reaches_store and not self._locked_out and unrenewed >= self._lease_seconds * _OWN_SHARE:
            _log.error(
                "lease of worker %s not renewed for %.1f s of its %.1f s: the worker fences itself before others "
                "expire it",
                self._worker,
                unrenewed,
                self._lease_seconds,
                extra={"worker_id": self._worker, "unrenewed_seconds": unrenewed},
            )
            return True
        return False

    def _failed(self, error: Exception) -> None:
        self.reaches_store = False
        self._locked_out = isinstance(error, StoreUnavailableError) and error.locks_out_everybody
        if isinstance(error, StoreUnavailableError):
            self._outage.failed(error)
        else:
            _log.warning("lease of worker %s not renewed: %s", self._worker, error, extra={"worker_id": self._worker})
        self._signals.failed.fire(self._worker)
