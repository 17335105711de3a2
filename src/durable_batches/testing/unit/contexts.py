"""Contexts for unit tests of activities and workflows as plain functions."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Unpack

from durable_batches.blocks import contextmanager
from durable_batches.clock import Clock
from durable_batches.lifecycle.amounts import Amount
from durable_batches.lifecycle.spending import NO_SPENDING, Spending, count_spends, spending_of
from durable_batches.lifecycle.states import BatchId
from durable_batches.options import check_clock, check_dependencies, check_integer, check_labels, check_text
from durable_batches.runtime.context import (
    ExecutionContext,
    enter_activity,
    leave,
    leave_stand_in,
    stand_in,
)
from durable_batches.runtime.dependencies import Dependencies, Provider
from durable_batches.runtime.spends import Said, Spends, spend_of

__all__ = ["RecordingActivityContext", "activity_context", "execution_context"]


class RecordingActivityContext:
    """An `ActivityContext` that keeps what it is told.

    Attributes:
        batch_id: The batch's id.
        document_id: The document's id.
        attempt: The number of the attempt.
        idempotency_key: The call's key.
        reports: The arguments of each `report(current, total)`, in order.
        spending: What it has spent: the sums of each `spend(...)`, as a batch has them.
        settled: The arguments of each `settle(tokens=...)`, in order.
        observed: The arguments of each `observe(answer)`, in order.
        clock: The clock that limiters go by; None: the machine's.
    """

    def __init__(
        self,
        *,
        batch_id: str,
        document_id: str,
        attempt: int,
        idempotency_key: str,
        dependencies: Dependencies | None,
        clock: Clock | None = None,
    ) -> None:
        self.batch_id: BatchId = BatchId(batch_id)
        self.document_id = document_id
        self.attempt = attempt
        self.idempotency_key = idempotency_key
        self.reports: list[tuple[int, int]] = []
        self.settled: list[int] = []
        self.observed: list[object] = []
        self.dependencies = dependencies
        self.clock = clock
        self._spends = Spends("")

    def report(self, current: int, total: int) -> None:
        """See `ActivityContext.report`."""
        check_integer("current", current)
        check_integer("total", total)
        self.reports.append((current, total))

    def spend(self, **said: Unpack[Said]) -> None:
        """See `ActivityContext.spend`."""
        self._spends.add(spend_of(**said))

    @property
    def spending(self) -> Spending:
        """What the activity has spent: `total`, `by_model` and `unpriced_calls`."""
        spends = self._spends.seen()
        return spending_of(count_spends(None, spends, (), resolver=False)) if spends else NO_SPENDING

    def settle(self, *, tokens: int) -> None:
        """See `ActivityContext.settle`; here every activity has a limiter."""
        Amount(tokens=tokens)
        self.settled.append(tokens)

    def observe(self, answer: object) -> None:
        """See `ActivityContext.observe`; here every activity has a limiter."""
        self.observed.append(answer)

    @property
    def context(self) -> ExecutionContext:
        """The value of `current_execution()` within the activity."""
        return ExecutionContext(batch_id=self.batch_id, document_id=self.document_id, ordinal=0, attempt=1, run=1)


@contextmanager
def activity_context(
    *,
    batch_id: str = "test",
    document_id: str = "0",
    attempt: int = 1,
    idempotency_key: str = "test",
    dependencies: Mapping[Provider, object] | None = None,
    clock: Clock | None = None,
) -> Generator[RecordingActivityContext]:
    """Set `current_activity()` within a `with` block, as in an activity that an orchestrator runs. For unit tests.

    Args:
        batch_id: The batch's id.
        document_id: The document's id.
        attempt: The number of the attempt.
        idempotency_key: The call's key.
        dependencies: Values by provider, for `dependency(...)` parameters that a call does not pass. Nothing is opened
            here: pass all other dependencies explicitly.
        clock: The clock that limiters go by, a `ManualClock` say; by default the machine's.

    Example::

        with activity_context(attempt=2) as context:
            assert await summarise("rain") == "Rain"
        assert context.reports == [(1, 1)]
    """
    for name, text in (("batch_id", batch_id), ("document_id", document_id), ("idempotency_key", idempotency_key)):
        check_text(name, text)
    check_integer("attempt", attempt)
    check_dependencies("dependencies", dependencies)
    check_clock(clock)
    context = RecordingActivityContext(
        batch_id=batch_id,
        document_id=document_id,
        attempt=attempt,
        idempotency_key=idempotency_key,
        dependencies=None if dependencies is None else Dependencies(dependencies),
        clock=clock,
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
    """Set `current_execution()` within a `with` block, for workflows called as plain functions. For unit tests.

    Args:
        batch_id: The batch's id.
        document_id: The document's id; empty for a resolver.
        ordinal: The document's ordinal in the submission.
        attempt: The number of the document's attempt.
        run: The number of the batch's run.
        metadata: The batch's labels.
        dependencies: Values by provider, for `dependency(...)` parameters that the workflow's calls do not pass.
            Nothing is opened here: pass all other dependencies explicitly.

    Example::

        with execution_context(metadata={"customer": "acme"}):
            assert await headline("rain") == "Rain for acme"
    """
    for name, text in (("batch_id", batch_id), ("document_id", document_id)):
        check_text(name, text)
    for name, number in (("ordinal", ordinal), ("attempt", attempt), ("run", run)):
        check_integer(name, number)
    check_labels("metadata", metadata, optional=True)
    check_dependencies("dependencies", dependencies)
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
