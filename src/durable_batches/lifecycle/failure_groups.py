"""Groups of failed documents: counted as each fails for good, one row for each reason, bounded in number and size."""

from __future__ import annotations

import json
from typing import Final, NamedTuple

from durable_batches.lifecycle.records import ExecutionRecord, FailureRecord, Micros

__all__ = ["EXAMPLES_KEPT", "MOST_GROUPS", "REST", "FailureExample", "added", "examples_of", "failure_record"]

MOST_GROUPS: Final = 200
"""Groups of one run. Messages that have nothing in common would be as many as documents."""

REST: Final = ""
"""The fingerprint of the group of everything beyond these groups."""

EXAMPLES_KEPT: Final = 5
"""To fewer examples than these a row gets more."""


class FailureExample(NamedTuple):
    """One failed document of a group."""

    position: int
    document_id: str
    error: str
    error_type: str
    activity: str | None
    attempts: int


def failure_record(
    execution: ExecutionRecord,
    group: str,
    *,
    error_type: str,
    activity: str | None,
    stage: str | None,
    error: str,
    at: Micros,
) -> FailureRecord:
    """Make the record of one failed document; the group of the rest says nothing of its first one but its example."""
    example = FailureExample(execution.position, execution.document_id, error, error_type, activity, execution.attempt)
    rest = group == REST
    return FailureRecord(
        batch_id=execution.batch_id,
        run=execution.run,
        fingerprint=group,
        error_type="" if rest else _as_text(error_type),
        activity=None if rest or activity is None else _as_text(activity),
        stage=None if rest else stage,
        message="" if rest else _as_text(error),
        documents=1,
        first_position=execution.position,
        first_at=at,
        last_at=at,
        examples=json.dumps(example).encode() + b"\n",
    )


def added(stored: FailureRecord, more: FailureRecord) -> FailureRecord:
    """Add failures of the same group to a record."""
    return stored._replace(
        documents=stored.documents + more.documents,
        first_position=min(stored.first_position, more.first_position),
        last_at=max(stored.last_at, more.last_at),
        examples=stored.examples + more.examples if stored.documents < EXAMPLES_KEPT else stored.examples,
    )


def examples_of(record: FailureRecord) -> list[FailureExample]:
    """Read the examples of a group, in submission order."""
    examples = [FailureExample(*json.loads(line)) for line in record.examples.splitlines()[:EXAMPLES_KEPT]]
    return sorted(examples)


def _as_text(text: str) -> str:
    """Replace what a database's text cannot hold; the examples have it as it was."""
    return text.encode(errors="replace").decode().replace("\0", "\ufffd")
