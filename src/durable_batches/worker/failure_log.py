"""What the log is told of failed attempts: a line for each, and for the first few of a kind the whole traceback.

Ten thousand documents that fail for one reason would otherwise hide it under ten thousand copies of one traceback, and
formatting those would take longer than the documents did.
"""

from __future__ import annotations

import logging
import traceback
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from durable_batches.errors import WorkerFencedError, place_of
from durable_batches.lifecycle.events import BatchFailed, DocumentFailed, decode_event
from durable_batches.lifecycle.failures import DocumentFailureRecord, in_a_line
from durable_batches.lifecycle.records import RESOLVER_POSITION, EventRecord, ExecutionRecord
from durable_batches.runtime.tracebacks import related

__all__ = ["FailureLog", "tell_of_crash_loops"]

_log = logging.getLogger("durable_batches")

TRACEBACKS_OF_A_KIND: Final = 3
"""How many are logged for one batch, activity and type of error, by one worker."""

_MOST_KINDS: Final = 1_000
"""Kinds that are counted; with more of them the count starts anew, and no memory grows."""


class FailureLog:
    """The failed attempts of one worker incarnation."""

    def __init__(self) -> None:
        self._told: Counter[tuple[str, str | None, str]] = Counter()

    def failed(
        self,
        execution: ExecutionRecord,
        error: BaseException,
        record: DocumentFailureRecord,
        again_in: timedelta | None,
    ) -> None:
        """An attempt failed; None: it was the last one."""
        if any(isinstance(part, WorkerFencedError) for part in related(error)):
            # It is the worker's end, which is told elsewhere; the document goes on with another.
            return
        number = self._counted(execution, record)
        plain = _made_plain(error) if number <= TRACEBACKS_OF_A_KIND else None
        resolver = execution.position == RESOLVER_POSITION
        _log.log(
            logging.ERROR if resolver and again_in is None else logging.WARNING,
            "%s failed in attempt %d: %s; %s%s%s",
            place_of(execution.batch_id, execution.document_id),
            execution.attempt,
            # What an activity's failure says names the activity and the type of its error.
            in_a_line("" if record.activity else record.error_type, record.error),
            "it is not tried again" if again_in is None else f"it is tried again in {again_in.total_seconds():.3g} s",
            " (no more tracebacks of this kind)" if number == TRACEBACKS_OF_A_KIND else "",
            "" if plain is None else f"\n{plain}",
            exc_info=error if number <= TRACEBACKS_OF_A_KIND and plain is None else None,
            extra={
                "batch_id": execution.batch_id,
                "document_id": execution.document_id,
                "attempt": execution.attempt,
                "activity": record.activity,
                "error_type": record.error_type,
            },
        )

    def _counted(self, execution: ExecutionRecord, record: DocumentFailureRecord) -> int:
        kind = (execution.batch_id, record.activity, record.error_type)
        if len(self._told) >= _MOST_KINDS and kind not in self._told:
            self._told.clear()
        self._told[kind] += 1
        return self._told[kind]


def _made_plain(error: BaseException) -> str | None:
    """A traceback in which there is what a log's file could not hold, made to fit; None: it fits as it is."""
    text = "".join(traceback.format_exception(error))
    plain = text.encode(errors="backslashreplace").decode()
    return None if plain == text else plain


def tell_of_crash_loops(events: Sequence[EventRecord]) -> None:
    """Of the events of a rescue, those that end something: nobody was there who could have told it."""
    for event in map(decode_event, events):
        match event:
            case DocumentFailed(batch_id=batch_id, document_id=document_id, error=error):
                _log.warning("document %r of batch %r failed: %s", document_id, batch_id, error)
            case BatchFailed(batch_id=batch_id, error=error):
                _log.error("batch %r failed: %s", batch_id, error)
            case _:
                pass
