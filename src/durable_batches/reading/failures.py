"""Failures of a batch in groups: many documents that failed for one reason are one group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from durable_batches.lifecycle.fingerprints import fingerprint_of
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.lifecycle.records import BatchRecord, DocumentRecord, Micros
from durable_batches.lifecycle.states import BatchId
from durable_batches.reading.documents import stage_of
from durable_batches.reading.results import failure_of
from durable_batches.runtime.results import DocumentFailure

__all__ = ["MOST_GROUPS", "ErrorDigest", "ErrorGroup", "FailureGroups"]

MOST_GROUPS: Final = 200
"""Groups of one batch. Messages that have nothing in common would be as many as documents."""


@dataclass(frozen=True, kw_only=True)
class ErrorGroup:
    """Documents that failed for one reason."""

    fingerprint: str
    """Of the error's class, the activity and the message without numbers, ids, quotations and addresses; stable."""
    error_type: str
    activity: str | None
    """The activity that failed; None: the workflow itself."""
    stage: str | None
    """The stage in which the first of them failed; None: in none."""
    count: int
    message: str
    """Of the first one."""
    examples: Sequence[DocumentFailure]
    """The first ones, in submission order."""
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True, kw_only=True)
class ErrorDigest:
    """The failures of a batch's run, in groups."""

    batch_id: BatchId
    run: int
    failed: int
    """Documents that have failed for good."""
    groups: Sequence[ErrorGroup]
    """The largest first, at most 200."""
    others: int
    """Failures beyond these groups."""


class _Group:
    __slots__ = ("activity", "count", "error_type", "examples", "first_at", "last_at", "message", "stage")

    def __init__(self, failure: DocumentFailure, stage: str | None, at: Micros) -> None:
        self.error_type = failure.error_type
        self.activity = failure.activity
        self.message = failure.error
        self.stage = stage
        self.count = 0
        self.examples: list[DocumentFailure] = []
        self.first_at = self.last_at = at


class FailureGroups:
    """Collects the failed documents of a batch into groups, in bounded memory.

    Args:
        record: The batch's.
        examples: How many failures of each group are kept.
    """

    def __init__(self, record: BatchRecord, examples: int) -> None:
        self._record = record
        self._examples = examples
        self._groups: dict[str, _Group] = {}
        self._others = 0

    def add(self, document: DocumentRecord) -> None:
        """Add a failed document."""
        failure, at = failure_of(document), document.execution.updated_at
        fingerprint = fingerprint_of(failure.error_type, failure.activity, failure.error)
        group = self._groups.get(fingerprint)
        if group is None:
            if len(self._groups) == MOST_GROUPS:
                self._others += 1
                return
            group = self._groups[fingerprint] = _Group(failure, stage_of(self._record, document), at)
        group.count += 1
        group.first_at, group.last_at = min(group.first_at, at), max(group.last_at, at)
        if len(group.examples) < self._examples:
            group.examples.append(failure)

    def digest(self) -> ErrorDigest:
        """Return the groups of what was added."""
        groups = sorted(self._groups.items(), key=lambda item: -item[1].count)
        return ErrorDigest(
            batch_id=self._record.batch_id,
            run=self._record.run,
            failed=sum(group.count for _, group in groups) + self._others,
            groups=[
                ErrorGroup(
                    fingerprint=fingerprint,
                    error_type=group.error_type,
                    activity=group.activity,
                    stage=group.stage,
                    count=group.count,
                    message=group.message,
                    examples=group.examples,
                    first_at=from_micros(group.first_at),
                    last_at=from_micros(group.last_at),
                )
                for fingerprint, group in groups
            ],
            others=self._others,
        )
