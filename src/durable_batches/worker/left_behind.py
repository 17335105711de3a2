"""User code that is cancelled when its worker stops: named in the log, and left to itself if it does not end."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Final

from durable_batches.errors import place_of
from durable_batches.runtime.attempt import Attempt
from durable_batches.tasks import leave_to_itself

__all__ = ["UNWIND_SECONDS", "leave_behind", "log_cancelled"]

_log = logging.getLogger("durable_batches")

UNWIND_SECONDS: Final = 5.0
"""How long user code may take to end after it was cancelled, where its worker waits for that."""

_MOST_NAMED: Final = 10
"""Attempts that are named, of those that are left behind together."""


def log_cancelled(attempts: Sequence[Attempt]) -> None:
    """Log which running activities are cancelled, because their worker waits for them no longer."""
    running = [(attempt, calls) for attempt in attempts if (calls := attempt.calls)]
    if not running:
        return
    activities = Counter(call.activity for _, calls in running for call in calls)
    first = running[0][0].execution
    _log.warning(
        "%d running %s cancelled, of %d %s (%s first): %s; what they have not recorded is lost, and they run again",
        activities.total(),
        "activity is" if activities.total() == 1 else "activities are",
        len(running),
        "document" if len(running) == 1 else "documents",
        place_of(first.batch_id, first.document_id),
        ", ".join(f"{activity!r} {count}" for activity, count in activities.most_common(_MOST_NAMED)),
        extra={"activities": dict(activities), "documents": len(running)},
    )


def leave_behind(attempts: Sequence[Attempt], why: str) -> None:
    """Give up waiting for attempts that were cancelled, and log which activities do not end.

    Their results are not recorded, and the end of the event loop does not wait for their tasks.
    """
    for attempt in attempts[:_MOST_NAMED]:
        execution, calls = attempt.execution, attempt.calls
        activities = sorted({call.activity for call in calls})
        _log.error(
            "%s left behind in attempt %d, %s: %s did not end within %g s of being cancelled",
            place_of(execution.batch_id, execution.document_id),
            execution.attempt,
            why,
            f"activity {', '.join(map(repr, activities))}" if activities else "its code",
            UNWIND_SECONDS,
            extra={
                "batch_id": execution.batch_id,
                "document_id": execution.document_id,
                "attempt": execution.attempt,
                "activities": activities,
                "seconds": UNWIND_SECONDS,
            },
        )
    if len(attempts) > _MOST_NAMED:
        _log.error(
            "%d more attempts left behind, %s", len(attempts) - _MOST_NAMED, why, extra={"left_behind": len(attempts)}
        )
    for attempt in attempts:
        for task in (attempt.task, *(call.task for call in attempt.calls)):
            if task is not None and not task.done():
                leave_to_itself(task)
