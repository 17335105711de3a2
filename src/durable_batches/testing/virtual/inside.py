"""A look inside a worker, and its kill, for what drives one in tests: the only place that does either."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager

from durable_batches.errors import WorkerNotRunningError
from durable_batches.lifecycle.records import WorkerId
from durable_batches.runtime.attempt import Attempt
from durable_batches.worker.journal import JournalPhase
from durable_batches.worker.session import Session, SessionPhase
from durable_batches.worker.worker import Worker

__all__ = ["attempts_of", "is_at_rest", "kill", "unlogged_restart"]


def is_at_rest(worker: Worker) -> bool:
    """Return whether the worker neither writes nor claims anything now; activities and workflows may run."""
    session = _session_of(worker)
    if session is None or session.phase is SessionPhase.ENDED:
        return True
    if session.phase is SessionPhase.BEGINNING or session.scheduler.wants_work:
        return False
    return session.journal.phase in (JournalPhase.WAITING, JournalPhase.PAUSING)


def attempts_of(worker: Worker) -> list[Attempt]:
    """Return what the worker runs now, less the attempts that are over and report their end."""
    session = _session_of(worker)
    return [] if session is None else [held.attempt for held in session.scheduler.running]


def kill(worker: Worker) -> None:
    """End the worker's session as if its process had died: nothing begins any more, and what runs is cancelled.

    As after any loss of its lease, the worker goes on with a new session, unless it is being closed. What the old one
    still asks of the store is for the store to refuse (`CrashableStore`).
    """
    session = _session_of(worker)
    if session is not None:
        session.kill()


@contextmanager
def unlogged_restart(worker_id: WorkerId) -> Generator[None]:
    """Within the block, drop what the log says of this session: that it was killed is no news."""

    def concerns_others(record: logging.LogRecord) -> bool:
        return getattr(record, "worker_id", None) != worker_id

    logger = logging.getLogger("durable_batches")
    logger.addFilter(concerns_others)
    try:
        yield
    finally:
        logger.removeFilter(concerns_others)


def _session_of(worker: Worker) -> Session | None:
    try:
        return worker.session
    except WorkerNotRunningError:
        return None
