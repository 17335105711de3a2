"""The lease renewer: a thread that keeps a session's lease.

It has a thread and a connection of its own, so that code that blocks the event loop does not cost the lease. But a
loop that has not turned for `max_stall` may never turn again, and its lease is given up. While the lease cannot be
renewed, the session goes on with what runs, and begins nothing once it may have run out (`Lease`): the next renewal
that is answered tells whether others have expired it.

With each renewal it writes what the session says of itself into its row: its note, and its workflows. It is also the
thread on which the loop watch looks; what that finds is written at once, and so is what the session runs from now on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from durable_batches.clock import Clock
from durable_batches.errors import StoreUnavailableError
from durable_batches.lifecycle.leases import own_seconds
from durable_batches.lifecycle.records import WorkerId
from durable_batches.outage import Outage, Outages
from durable_batches.stores.protocol import Heart, NotedHeart, Store
from durable_batches.tasks import thread_ended
from durable_batches.worker.lease import Lease
from durable_batches.worker.loop_watch import LoopWatch
from durable_batches.worker.note_writer import NoteWriter, Offer
from durable_batches.worker.signals import LeaseSignals

__all__ = ["LeaseRenewer"]

_log = logging.getLogger("durable_batches")

_RENEWALS_A_LEASE: Final = 3
_ATTEMPTS_A_LEASE: Final = 10
"""After a renewal that failed."""
_TURN_SECONDS: Final = 2.0
"""What an event loop needs to turn that is not blocked."""
_SHORTEST_GAP: Final = 1.0
"""Twice what is between two turns of the event loop that are shown: a lease may be shorter than that."""
_HASTE_SECONDS: Final = 0.001
"""Between two renewals that each wait for a lock."""


class LeaseRenewer:
    """Renews one session's lease on a thread of its own.

    Args:
        store: Where the lease is.
        worker: The session's id.
        lease: What its session knows of it.
        length: How long it is.
        max_stall: How long the event loop may stand still.
        clock: The worker's.
        outages: Where the store's are logged.
        lost: Called from the thread, once, when the lease is lost.
        signals: Fired for tests.
        watch: Of the event loop.
        writer: Of the session's row; a store whose hearts cannot write it (`NotedHeart`) does without.
    """

    def __init__(
        self,
        store: Store,
        worker: WorkerId,
        lease: Lease,
        length: timedelta,
        max_stall: timedelta,
        clock: Clock,
        *,
        outages: Outages,
        lost: Callable[[], object],
        signals: LeaseSignals,
        watch: LoopWatch | None = None,
        writer: NoteWriter | None = None,
    ) -> None:
        self._store = store
        self._worker = worker
        self._lease = lease
        self._lease_seconds = length.total_seconds()
        self._max_stall_seconds = max_stall.total_seconds()
        self._clock = clock
        self._outage: Outage = outages.of(f"lease renewal of worker {worker}")
        self._lost = lost
        self._signals = signals
        self._stop = clock.alarm()
        self._watch = watch
        self._writer = writer
        self._told: Offer | None = None
        """What the session's row says that it would run; None: not known."""
        self._turned = self._renewed = clock.boot()
        self._expires_others_from = self._turned
        self.reaches_store: bool = True
        """Whether the last renewal came to an answer."""
        self._thread = threading.Thread(target=self._run, name="durable-batches lease", daemon=True)

    def start(self, registered: Offer | None = None) -> None:
        """Begin to renew.

        Args:
            registered: What the session's row says that it would run; None: not known.
        """
        self._told = registered
        self._thread.start()

    def loop_turns(self) -> None:
        """Take note that the event loop turns."""
        now = self._clock.boot()
        self._note_gap(self._turned, now)
        self._turned = now
        if self._watch is not None:
            self._watch.turns()

    @property
    def may_expire_others(self) -> bool:
        """Whether the lease is renewed, and has been for a whole lease without a gap as long as a lease."""
        now = self._clock.boot()
        return now >= self._expires_others_from and now - self._renewed < own_seconds(self._lease_seconds)

    def give_others_time(self, seconds: float | None = None) -> None:
        """Expire nobody for so long, a whole lease by default: others may have been cut off, too, and renew first."""
        seconds = self._lease_seconds if seconds is None else seconds
        self._expires_others_from = max(self._expires_others_from, self._clock.boot() + seconds)

    def _note_gap(self, before: float, now: float) -> None:
        if now - before >= max(self._lease_seconds, _SHORTEST_GAP):
            self.give_others_time()

    def signal_stop(self) -> None:
        """Have the thread end, without waiting for it."""
        self._stop.set()

    async def ended(self) -> None:
        """Wait for the thread's end."""
        await thread_ended(self._thread)

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
        left = self._lease_seconds / _RENEWALS_A_LEASE
        due = self._clock.boot() + left
        while True:
            # What was waited for counts, too: alarms of other clocks may go off before their time.
            pause = left = max(min(left, due - self._clock.boot()), 0)
            if self._watch is not None:
                pause = min(left, self._watch.pause)
            if self._stop.wait(pause):
                return False
            if self._is_stalled():
                # Or the process stood still, and this thread is the first to go on: the loop has had no time to turn.
                if self._stop.wait(_TURN_SECONDS):
                    return False
                if self._is_stalled():
                    self._log_stall()
                    return True
            asked = self._clock.boot()
            left -= pause
            if not self._has_news() and left > 0:
                continue
            try:
                alive = self._renew(heart)
            except Exception as error:  # noqa: BLE001  (whatever it is, the lease is not renewed)
                self._failed(error)
                # Once a lock on the whole store is gone, others wait but a moment for those whose lease it has cost.
                in_haste = _locks_out_everybody(error) and not self._lease.holds()
                left = _HASTE_SECONDS if in_haste else self._lease_seconds / _ATTEMPTS_A_LEASE
                due = self._clock.boot() + left
                continue
            self.reaches_store = True
            self._outage.answered()
            if not alive:
                return True
            self._note_gap(self._renewed, asked)
            self._renewed = asked
            self._lease.renewed(asked)
            # An answer that took long, as while a file is locked, leaves no time; the next one does not take long.
            left = self._lease_seconds / _RENEWALS_A_LEASE if self._lease.holds() else 0.0
            due = self._clock.boot() + left
            self._signals.renewed.fire(self._worker)

    def _renew(self, heart: Heart) -> bool:
        """Renew the lease once; return whether the session is alive."""
        if self._writer is None or not isinstance(heart, NotedHeart):
            return heart.beat()
        offer = self._writer.offer()
        alive = heart.tell(self._writer.note(), offer.workflows)
        self._told = offer
        return alive

    def _has_news(self) -> bool:
        """Look whether there is something to tell before the lease is due for renewal."""
        news = self._watch is not None and self._watch.look()
        self._signals.looked.fire(self._worker)
        if self._writer is not None and self._told is not None:
            news = news or not self._told.says_all_of(self._writer.offer())
        # A store that is away is asked as often as without.
        return news and self.reaches_store

    def _is_stalled(self) -> bool:
        return self._clock.boot() - self._turned > self._max_stall_seconds

    def _log_stall(self) -> None:
        stalled = self._clock.boot() - self._turned
        _log.error(
            "event loop of worker %s has not turned for %.1f s: lease given up",
            self._worker,
            stalled,
            extra={"worker_id": self._worker, "stalled_seconds": stalled},
        )

    def _failed(self, error: Exception) -> None:
        self.reaches_store = False
        if isinstance(error, StoreUnavailableError):
            self._outage.failed(error)
        else:
            _log.warning("lease of worker %s not renewed: %s", self._worker, error, extra={"worker_id": self._worker})
        self._signals.failed.fire(self._worker)


def _locks_out_everybody(error: Exception) -> bool:
    return isinstance(error, StoreUnavailableError) and error.locks_out_everybody
