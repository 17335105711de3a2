"""What an orchestrator would provide, for unit tests of activities and workflows as plain functions."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

from durable_batches.lifecycle.states import BatchId
from durable_batches.runtime.context import (
    ExecutionContext,
    enter_activity,
    leave,
    leave_stand_in,
    stand_in,
)
from durable_batches.runtime.dependencies import Dependencies, Provider

__all__ = ["RecordingActivityContext", "activity_context", "execution_context"]


class RecordingActivityContext:
    """An `ActivityContext` that keeps what it is told.

    Attributes:
        batch_id: The batch.
        document_id: The document.
        attempt: Which try of the activity it is.
        idempotency_key: Of the call.
        reports: What `report(current, total)` was called with, in order.
    """

    def __init__(
        self,
        *,
        batch_id: str,
        document_id: str,
        attempt: int,
        idempotency_key: str,
        dependencies: Dependencies | None,
    ) -> None:
        self.batch_id: BatchId = BatchId(batch_id)
        self.document_id = document_id
        self.attempt = attempt
        self.idempotency_key = idempotency_key
        self.reports: list[tuple[int, int]] = []
        self.dependencies = dependencies

    def report(self, current: int, total: int) -> None:
        """See `ActivityContext.report`."""
        self.reports.append((current, total))

    @property
    def context(self) -> ExecutionContext:
        """What `current_execution()` is within the activity."""
        return ExecutionContext(batch_id=self.batch_id, document_id=self.document_id, ordinal=0, attempt=1, run=1)


@contextmanager
def activity_context(
    *,
    batch_id: str = "test",
    document_id: str = "0",
    attempt: int = 1,
    idempotency_key: str = "test",
    dependencies: Mapping[Provider, object] | None = None,
) -> Generator[RecordingActivityContext]:
    """For unit tests: within the block, `current_activity()` is this, as in an activity that an orchestrator runs.

    Args:
        batch_id: The batch.
        document_id: The document.
        attempt: Which try of the activity it is.
        idempotency_key: Of the call.
        dependencies: By provider, the values of the `dependency(...)` parameters that a call leaves open. Nothing
            is opened here: other ones have to be passed.

    Example::

        with activity_context(attempt=2) as context:
            assert await summarise("rain") == "Rain"
        assert context.reports == [(1, 1)]
    """
    context = RecordingActivityContext(
        batch_id=batch_id,
        document_id=document_id,
        attempt=attempt,
        idempotency_key=idempotency_key,
        dependencies=None if dependencies is None else Dependencies(dependencies),
    )
    tokens = enter_activity(context)
    try:
        yield context
    finally:
        leave(tokens)


@contextmanager
def execution_context(
    *,
    batch_id: str = "test",
    document_id: str = "0",
    ordinal: int = 0,
    attempt: int = 1,
    run: int = 1,
    metadata: Mapping[str, str] | None = None,
    dependencies: Mapping[Provider, object] | None = None,
) -> Generator[ExecutionContext]:
    """For unit tests: within the block, `current_execution()` is this, in workflows called as plain functions.

    Args:
        batch_id: The batch.
        document_id: The document; empty for a resolver.
        ordinal: The document's place in the submission's order.
        attempt: Of the document.
        run: Of the batch.
        metadata: The batch's labels.
        dependencies: By provider, the values of the `dependency(...)` parameters that the workflow's activity calls
            leave open. Nothing is opened here: others have to be passed.

    Example::

        with execution_context(metadata={"customer": "acme"}):
            assert await headline("rain") == "Rain for acme"
    """
    context = ExecutionContext(
        batch_id=BatchId(batch_id),
        document_id=document_id,
        ordinal=ordinal,
        attempt=attempt,
        run=run,
        metadata=metadata or {},
    )
    token = stand_in(context, Dependencies(dependencies))
    try:
        yield context
    finally:
        leave_stand_in(token)
