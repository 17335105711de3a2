"""The log of failed attempts: a line for each, and the whole traceback for the first few of a kind.

Ten thousand documents that fail for one reason would otherwise hide it under ten thousand copies of one traceback, and
formatting those would take longer than the documents did.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from traceback import format_exception, format_tb
from typing import Final, NamedTuple

from durable_batches.errors import WorkerFencedError, place_of, shortened
from durable_batches.lifecycle.batch_core import decode_core
from durable_batches.lifecycle.events import (
    PAUSED,
    RESUMED,
    BatchFailed,
    BatchPaused,
    BatchResumed,
    DocumentFailed,
    decode_event,
)
from durable_batches.lifecycle.failures import DocumentFailureRecord, in_a_line, line_of
from durable_batches.lifecycle.isolation import ISOLATED_CRASHES
from durable_batches.lifecycle.records import RESOLVER_POSITION, Claim, EventRecord, ExecutionRecord, Micros
from durable_batches.runtime.tracebacks import own_attribute, related

__all__ = ["FailureLog", "escaped_traceback", "log_crash_loops", "log_pauses", "traceback_of"]

_log = logging.getLogger("durable_batches")

TRACEBACKS_OF_A_KIND: Final = 3
"""Tracebacks logged for one batch, activity and type of error, by one session."""

_MOST_KINDS: Final = 1_000
"""Kinds that are counted; with more of them the count begins again, and no memory grows."""


class FailureLog:
    """Logs the failed attempts of one session."""

    def __init__(self) -> None:
        self._logged: Counter[tuple[str, str | None, str]] = Counter()
        self._isolated: dict[str, Micros] = {}

    def failed(
        self,
        execution: ExecutionRecord,
        error: BaseException,
        record: DocumentFailureRecord,
        retry_in: timedelta | None,
    ) -> None:
        """Log a failed attempt; `retry_in` None: it was the last one."""
        if any(isinstance(part, WorkerFencedError) for part in related(error)):
            # The session's end, which is logged elsewhere; another worker goes on with the document.
            return
        number = self._count(execution, record)
        shows_traceback = number <= TRACEBACKS_OF_A_KIND
        traceback = traceback_of(error if shows_traceback else None)
        is_resolver = execution.position == RESOLVER_POSITION
        _log.log(
            logging.ERROR if is_resolver and retry_in is None else logging.WARNING,
            "%s failed in attempt %d: %s; %s%s%s",
            place_of(execution.batch_id, execution.document_id),
            execution.attempt,
            in_a_line(record.error_type, record.error),
            "not retried" if retry_in is None else f"retried in {retry_in.total_seconds():.3g} s",
            " (no more tracebacks of this kind)" if number == TRACEBACKS_OF_A_KIND else "",
            traceback.text,
            exc_info=traceback.error,
            extra={
                "batch_id": execution.batch_id,
                "document_id": execution.document_id,
                "attempt": execution.attempt,
                "activity": record.activity,
                "error_type": record.error_type,
                "retry_seconds": None if retry_in is None else retry_in.total_seconds(),
            },
        )

    def isolated(self, claim: Claim, since: Micros, seconds: float) -> None:
        """Log that possible poison documents of a batch are isolated from a moment on; once, whatever is claimed."""
        batch_id = claim.batch.batch_id
        if self._isolated.get(batch_id) == since:
            return
        if len(self._isolated) >= _MOST_KINDS:
            self._isolated.clear()
        self._isolated[batch_id] = since
        suspects = decode_core(claim.batch.core).get("suspects", 1)
        _log.warning(
            "batch %r: %s running at %d crashes or more and recorded nothing in between; run beside few others, or "
            "none, on worker %s for %.0f s at most, to find out whether one of them kills its process",
            batch_id,
            "its resolver was"
            if claim.execution.position == RESOLVER_POSITION
            else f"{suspects} document{' was' if suspects == 1 else 's were'}",
            ISOLATED_CRASHES,
            claim.execution.owner,
            seconds,
            extra={
                "batch_id": batch_id,
                "isolated": suspects,
                "worker_id": claim.execution.owner,
                "isolation_seconds": seconds,
            },
        )

    def _count(self, execution: ExecutionRecord, record: DocumentFailureRecord) -> int:
        kind = (execution.batch_id, record.activity, record.error_type)
        if len(self._logged) >= _MOST_KINDS and kind not in self._logged:
            self._logged.clear()
        self._logged[kind] += 1
        return self._logged[kind]


class LoggedTraceback(NamedTuple):
    """How a traceback is logged."""

    text: str
    """The end of the message, where the traceback is escaped; else empty."""
    error: BaseException | None
    """For the logging module to format, where it needs no escapes."""


def traceback_of(error: BaseException | None) -> LoggedTraceback:
    """Prepare the traceback of an error for the log; None: it has none there."""
    escaped = None if error is None else escaped_traceback(error)
    return LoggedTraceback("", error) if escaped is None else LoggedTraceback(f"\n{escaped}", None)


def escaped_traceback(error: BaseException) -> str | None:
    """Return the traceback with escapes for what a log file cannot hold, or a terminal obeys; None: it needs none.

    Messages may hold what a document or a provider brought: lone surrogates, control characters, and the invisible ones
    that reorder text.
    """
    try:
        text = "".join(format_exception(error))
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001  (its class may answer what is asked of it with anything)
        # Whole, so that no handler of the log asks again.
        frames = "".join(format_tb(own_attribute(error, "__traceback__")))
        return f"Traceback (most recent call last):\n{frames}{line_of(error)}\n"
    if text.replace("\n", "").isprintable():
        return None
    escaped = "".join(
        character if character in "\n\t" or character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
    return None if escaped == text else escaped


def log_pauses(events: Sequence[EventRecord]) -> None:
    """Log the pauses of batches that a commit or command of this process began, set anew or ended."""
    for record in events:
        if record.tag not in (PAUSED, RESUMED):
            continue
        match decode_event(record):
            case BatchPaused(batch_id=batch_id, reason="operator", note=note, running=running):
                _log.warning(
                    "batch %r paused (operator)%s; running %s finish, and nothing is started until it is resumed",
                    batch_id,
                    f": {note}" if note else "",
                    running,
                    extra={"batch_id": batch_id, "reason": "operator", "note": note, "running": running},
                )
            case BatchPaused(batch_id=batch_id, reason="budget", note=note):
                _log.warning(
                    "batch %r paused (budget): %s; running calls finish, and nothing is started until it is raised",
                    batch_id,
                    note,
                    extra={"batch_id": batch_id, "reason": "budget", "note": note},
                )
            case BatchPaused(batch_id=batch_id, at=at, reason=reason, note=note, until=until):
                seconds = None if until is None else (until - at).total_seconds()
                _log.warning(
                    "batch %r paused (%s): %s; %s",
                    batch_id,
                    reason,
                    note,
                    "until it is resumed" if seconds is None else f"the provider is asked again in {seconds:.3g} s",
                    extra={"batch_id": batch_id, "reason": reason, "note": note, "retry_seconds": seconds},
                )
            case BatchResumed(batch_id=batch_id, reason=reason):
                _log.warning(
                    "batch %r resumed (%s)%s",
                    batch_id,
                    reason,
                    ": a call succeeded" if reason == "quota" else "",
                    extra={"batch_id": batch_id, "reason": reason},
                )
            case _:
                pass


def log_crash_loops(events: Sequence[EventRecord]) -> None:
    """Log the documents and batches that ended when workers were expired: nobody was left to log them."""
    for event in map(decode_event, events):
        match event:
            case DocumentFailed(batch_id=batch_id, document_id=document_id, error=error):
                _log.warning(
                    "document %r of batch %r failed: %s",
                    document_id,
                    batch_id,
                    shortened(error),
                    extra={"batch_id": batch_id, "document_id": document_id},
                )
            case BatchFailed(batch_id=batch_id, error=error):
                _log.error("batch %r failed: %s", batch_id, shortened(error), extra={"batch_id": batch_id})
            case _:
                pass
