"""Leases, heartbeats, and the rescue of what dead workers held.

A worker is alive while its lease is. One row is renewed, on a thread and connection of its own, so that code that
blocks the event loop does not cost the lease; but a loop that has not turned for `max_stall` is as good as dead,
and its lease is let go. A worker counts itself dead before the store would.

The death of a process on the same machine is seen at once: where boot id and pid namespace are the same, and no
process of that pid, or another one (its start time differs), is there. Anywhere else the lease decides.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from durable_batches.clock import Clock
from durable_batches.errors import StoreUnavailableError
from durable_batches.lifecycle.records import WorkerId, WorkerRecord
from durable_batches.stores.protocol import Store
from durable_batches.worker.signals import LeaseSignals

__all__ = ["Heartbeat", "ProcessIdentity", "is_dead", "this_process"]

_log = logging.getLogger("durable_batches")

_BEATS_A_LEASE: Final = 3
_TRIES_A_LEASE: Final = 10
"""After a beat that failed."""
_OWN_SHARE: Final = 0.75
"""Of the lease: after this much without a renewal the worker stops itself. A try takes no more than what is left."""


class ProcessIdentity(NamedTuple):
    """What tells a process from every other one of its machine, past ones included. Empty: it cannot be told."""

    boot_id: str
    pid_namespace: str
    pid: int
    started: str


@lru_cache(maxsize=1)
def _identity(pid: int) -> ProcessIdentity:
    return ProcessIdentity(_read("/proc/sys/kernel/random/boot_id"), _namespace(), pid, _started(pid) or "")


def this_process() -> ProcessIdentity:
    """The identity of the running process (not of the one it was forked from)."""
    return _identity(os.getpid())


def is_dead(worker: WorkerRecord) -> bool:
    """Whether the worker's process is known to be gone; False where that cannot be told from here."""
    here = this_process()
    if not here.boot_id or not worker.boot_id or not worker.started:
        return False
    if worker.boot_id != here.boot_id or worker.pid_namespace != here.pid_namespace or not here.pid_namespace:
        return False
    started = _started(worker.pid)
    if started is None:
        return not _is_hidden(worker.pid)
    return started != worker.started


def _started(pid: int) -> str | None:
    """When the process started, in clock ticks since boot; empty where it has ended, None where there is nothing."""
    # The name, in parentheses, may itself hold spaces and parentheses; the state follows it. A zombie is dead.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(fields) < 20:
        return None
    return "" if fields[0] in ("Z", "X") else fields[19]


def _is_hidden(pid: int) -> bool:
    """Whether it is there all the same: /proc can be mounted so that it shows no other user's processes."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


class Heartbeat:
    """Renews one worker's lease on a thread of its own.

    Args:
        store: Whose heart it is.
        worker: Whose lease.
        lease: How long it is.
        max_stall: How long the event loop may stand still.
        clock: Of the worker.
        lost: Called from the thread, once, when the worker is dead or must count itself so.
    """

    def __init__(
        self,
        store: Store,
        worker: WorkerId,
        lease: timedelta,
        max_stall: timedelta,
        clock: Clock,
        lost: Callable[[], object],
        signals: LeaseSignals | None = None,
    ) -> None:
        self._store = store
        self._worker = worker
        self._lease = lease.total_seconds()
        self._max_stall = max_stall.total_seconds()
        self._clock = clock
        self._lost = lost
        self._signals = signals or LeaseSignals()
        self._stop = clock.alarm()
        self._ticked = clock.boot()
        self.reaches: bool = True
        """Whether the last beat came to an answer."""
        self._thread = threading.Thread(target=self._run, name="durable-batches-heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def tick(self) -> None:
        """The event loop turns."""
        self._ticked = self._clock.boot()

    def signal_stop(self) -> None:
        """Beat no more."""
        self._stop.set()

    def join(self) -> None:
        """Wait for the thread's end; blocks."""
        self._thread.join()

    def _run(self) -> None:
        heart = self._store.heart(self._worker)
        renewed, pause, told = self._clock.boot(), self._lease / _BEATS_A_LEASE, False
        try:
            while not self._stop.wait(pause):
                now = self._clock.boot()
                if now - self._ticked > self._max_stall:
                    _log.error(
                        "the event loop of worker %s has not turned for %.0f s; its lease is let go",
                        self._worker,
                        now - self._ticked,
                    )
                    break
                if not self.reaches and now - renewed >= self._lease * _OWN_SHARE:
                    _log.error(
                        "the lease of worker %s could not be renewed for %.1f s: it counts itself dead, before others "
                        "may do so",
                        self._worker,
                        now - renewed,
                    )
                    break
                try:
                    alive = heart.beat()
                except Exception as error:  # noqa: BLE001  (whatever it is, the lease is not renewed)
                    level = logging.DEBUG if told and isinstance(error, StoreUnavailableError) else logging.WARNING
                    _log.log(level, "the lease of worker %s was not renewed: %s", self._worker, error)
                    self.reaches, told = False, True
                    self._signals.failed.fire(self._worker)
                    left = renewed + self._lease * _OWN_SHARE - self._clock.boot()
                    pause = min(self._lease / _TRIES_A_LEASE, max(left, 0.001))
                else:
                    self.reaches, told = True, False
                    if not alive:
                        break
                    renewed, pause = now, self._lease / _BEATS_A_LEASE
                    self._signals.renewed.fire(self._worker)
            else:
                return
        finally:
            heart.close()
        self._lost()
