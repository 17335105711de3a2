"""Failures of a batch in groups: many documents that failed for one reason are one group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from durable_batches.errors import shortened, with_type
from durable_batches.lifecycle import failure_groups
from durable_batches.lifecycle.failure_groups import REST, examples_of
from durable_batches.lifecycle.fingerprints import fingerprint_of
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.lifecycle.records import BatchRecord, DocumentRecord, Micros
from durable_batches.lifecycle.states import BatchId
from durable_batches.markup import block, table
from durable_batches.reading.documents import stage_of
from durable_batches.reading.results import failure_of
from durable_batches.runtime.results import DocumentFailure
from durable_batches.stores.protocol import CountedFailures

__all__ = ["ErrorDigest", "ErrorGroup", "FailureGroups", "counted_digest"]


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
    """Of one of the first."""
    examples: Sequence[DocumentFailure]
    """Some of the first, in submission order."""
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

    def _repr_html_(self) -> str:
        """Return it as notebooks show it."""
        others = f", {self.others} of them in other groups" if self.others else ""
        return block(
            f"batch {self.batch_id}, run {self.run}: {self.failed} documents failed{others}",
            table(
                ("documents", "error", "activity", "stage", "examples", "fingerprint"),
                [
                    (
                        group.count,
                        with_type(group.error_type, shortened(group.message)),
                        group.activity or "",
                        group.stage or "",
                        ", ".join(example.document_id for example in group.examples),
                        group.fingerprint,
                    )
                    for group in self.groups
                ],
            ),
        )


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
            if len(self._groups) == failure_groups.MOST_GROUPS:
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


def counted_digest(record: BatchRecord, counted: CountedFailures, examples: int) -> ErrorDigest | None:
    """Return the groups as they were counted; None: they do not have all failures, or not as many examples.

    Args:
        record: The batch's.
        counted: What its store has counted.
        examples: How many failures of each group are shown.
    """
    groups: list[ErrorGroup] = []
    others = 0
    for group in counted.groups:
        kept = examples_of(group)
        if group.fingerprint == REST:
            others = group.documents
            continue
        if len(kept) < min(examples, group.documents):
            return None
        groups.append(
            ErrorGroup(
                fingerprint=group.fingerprint,
                error_type=kept[0].error_type,
                activity=kept[0].activity,
                stage=group.stage,
                count=group.documents,
                message=kept[0].error,
                examples=[
                    DocumentFailure(
                        document_id=example.document_id,
                        error=example.error,
                        error_type=example.error_type,
                        activity=example.activity,
                        attempts=example.attempts,
                    )
                    for example in kept[:examples]
                ],
                first_at=from_micros(group.first_at),
                last_at=from_micros(group.last_at),
            )
        )
    first = {group.fingerprint: group.first_position for group in counted.groups}
    failed = sum(group.documents for group in counted.groups)
    if failed != counted.failed:
        return None
    groups.sort(key=lambda group: (-group.count, first[group.fingerprint]))
    return ErrorDigest(batch_id=record.batch_id, run=record.run, failed=failed, groups=groups, others=others)
