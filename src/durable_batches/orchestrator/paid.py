"""What is kept of a batch that ended without all of its documents, and how to go on without paying for that again."""

from __future__ import annotations

import logging

from durable_batches.lifecycle.records import BatchRecord
from durable_batches.lifecycle.states import BatchId, Counts

__all__ = ["advice_on", "warn_of_ended"]

_log = logging.getLogger("durable_batches")


def advice_on(batch_id: BatchId, counts: Counts, *, completed: bool) -> str | None:
    """Return how to go on from a batch that has ended.

    Args:
        batch_id: The batch.
        counts: Its counts.
        completed: Whether it ended as COMPLETED.

    Returns:
        A sentence's part, or None where there is nothing left to do.
    """
    if counts.succeeded < counts.total:
        kept = f"{counts.succeeded} of its {counts.total} documents"
        way = "submit only the others under another id; activities that are recorded for those run again"
    elif not completed:
        kept, way = "all of its documents", "call the resolver's code on them"
    else:
        return None
    return (
        f"results({batch_id!r}) has the results of {kept}, and no other batch uses them: "
        f"to pay for none of them again, {way}"
    )


def warn_of_ended(record: BatchRecord) -> None:
    """Log how to go on from an ended batch, to which a submission attached, unless there is nothing left to do."""
    advice = advice_on(record.batch_id, record.counts, completed=record.state == "completed")
    if advice is not None:
        _log.warning(
            "batch %r was submitted again, but has ended (%s), and nothing is run; %s",
            record.batch_id,
            record.state,
            advice,
            extra={
                "batch_id": record.batch_id,
                "succeeded": record.counts.succeeded,
                "total": record.counts.total,
            },
        )
