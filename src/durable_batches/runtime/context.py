"""Track whether the running code is in a workflow, in an activity's body, or in neither."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias

from durable_batches.clock import Clock, SystemClock
from durable_batches.errors import NotInActivityError, NotInWorkflowError
from durable_batches.lifecycle.states import BatchId, Stage
from durable_batches.runtime.classify import ErrorClassifier, default_classifier
from durable_batches.runtime.dependencies import Dependencies

if TYPE_CHECKING:
    from durable_batches.runtime.bound_call import BoundCall
    from durable_batches.runtime.rest import Loan

__all__ = [
    "ActivityContext",
    "ExecutionContext",
    "StandIn",
    "WorkflowScope",
    "current_activity",
    "current_classifier",
    "current_clock",
    "current_dependencies",
    "current_execution",
    "enter_activity",
    "enter_workflow",
    "leave",
    "leave_stand_in",
    "stand_in",
    "waiting_for_batch",
    "workflow_scope",
]


class ActivityContext(Protocol):
    """The running call of an activity, as its body sees it."""

    @property
    def batch_id(self) -> BatchId:
        """The batch."""
        ...

    @property
    def document_id(self) -> str:
        """The document's id; empty in a resolver's activity."""
        ...

    @property
    def attempt(self) -> int:
        """The number of the attempt of this call, from 1; starts at 1 again after a crash."""
        ...

    @property
    def idempotency_key(self) -> str:
        """A key that is the same for every attempt of this call, also after a crash, for services that accept one."""
        ...

    def report(self, current: int, total: int) -> None:
        """Report the progress of a long activity; visible in this process, not recorded."""
        ...

    def spend(
        self,
        *,
        tokens: int | None = None,
        cost: Decimal | int | None = 0,
        input_tokens: int = 0,
        output_tokens: int = 0,
        model: str = "",
    ) -> None:
        """Say what the call has spent. It may be said several times, by each attempt of the call: it adds up.

        It is recorded with the call's result, or with its failure, and summed by batch, stage, activity and model. A
        call that is answered by a recorded result spends nothing. Say it before anything can fail: what an attempt has
        said is counted, also where the attempt fails, or is cancelled. May be called on any thread.

        Args:
            tokens: All tokens; None: those of the prompt and the answer.
            cost: Money, in the one currency that the application reckons in, kept to twelve decimal places. None: the
                price is not known, which is counted apart (`Spending.unpriced_calls`).
            input_tokens: Those of the prompt.
            output_tokens: Those of the answer.
            model: The model, for a sum of its own.

        Raises:
            ConfigurationError: A number of tokens is no int, `cost` no `Decimal` and no int (a float is not exact); one
                is negative, not finite or too large; `model` is no name.
            NotInActivityError: The call has ended.
        """
        ...

    def settle(self, *, tokens: int) -> None:
        """Say how many tokens the call took after all, in place of the activity's `estimate`; see `Permit.settle`.

        Raises:
            NotInActivityError: The activity has no limiter.
        """
        ...

    def observe(self, answer: object) -> None:
        """Read what the provider says of its limits in an answer, or its headers; see `Permit.observe`.

        Raises:
            NotInActivityError: The activity has no limiter.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ExecutionContext:
    """The running attempt of a document, as workflow code sees it."""

    batch_id: BatchId
    document_id: str
    """Empty in a resolver."""
    ordinal: int
    """The document's ordinal in the submission, from 0; -1 in a resolver."""
    attempt: int
    """The number of the document's attempt, from 1, including crashes and deployments. Do not base decisions on it."""
    run: int
    """The number of the batch's run, from 1."""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    """The batch's labels (`BatchConfig.metadata`)."""


class StandIn(NamedTuple):
    """Stand in for an orchestrator in unit tests."""

    context: ExecutionContext
    dependencies: Dependencies


class WorkflowScope(Protocol):
    """The execution in which an activity is called."""

    @property
    def context(self) -> ExecutionContext:
        """The context of the execution."""
        ...

    @property
    def crashes(self) -> int:
        """How often it has crashed, with nothing recorded since."""
        ...

    @property
    def is_stopping(self) -> bool:
        """Whether it is being stopped, so that no activity begins; on any thread."""
        ...

    async def call(self, bound: BoundCall) -> Any:
        """Return the call's recorded result, or run and record it."""
        ...

    def enter_stage(self, stage: type[Stage]) -> None:
        """Move the document to a stage."""
        ...

    def lends(self) -> Loan:
        """Begin to wait, with one of its calls; see `Loan`."""
        ...

    def waits_for_permit(self, calls: int) -> None:
        """Note how many more, or fewer, of its calls wait for permits: while all do, its timeout does not run."""
        ...

    def rests(self, *, is_call: bool, for_batch: bool) -> AbstractAsyncContextManager[None]:
        """See `Rest.waiting`."""
        ...


_workflow: Final[ContextVar[WorkflowScope | None]] = ContextVar("durable_batches_workflow", default=None)
_activity: Final[ContextVar[ActivityContext | None]] = ContextVar("durable_batches_activity", default=None)

_NOT_IN_AN_EXECUTION: Final = nullcontext()

_stand_in: Final[ContextVar[StandIn | None]] = ContextVar("durable_batches_stand_in", default=None)
"""The stand-in for code that no orchestrator runs, in unit tests."""

workflow_scope: Callable[[], WorkflowScope | None] = _workflow.get
"""The execution whose workflow code is running; None outside of one, and inside an activity."""

ScopeTokens: TypeAlias = tuple[Token[WorkflowScope | None], Token[ActivityContext | None]]


def enter_workflow(execution: WorkflowScope) -> ScopeTokens:
    """Enter the workflow of an execution, until `leave`."""
    return _workflow.set(execution), _activity.set(None)


def enter_activity(call: ActivityContext) -> ScopeTokens:
    """Enter an activity's body, in which activity calls are plain calls, until `leave`."""
    return _workflow.set(None), _activity.set(call)


def leave(tokens: ScopeTokens) -> None:
    """Return to the context before the matching enter call."""
    try:
        _workflow.reset(tokens[0])
        _activity.reset(tokens[1])
    except ValueError:
        # A coroutine that its event loop has not run to its end is closed in another context, which has neither.
        return


def waiting_for_batch() -> AbstractAsyncContextManager[None]:
    """Within the block, which waits for a batch: the execution that runs this code lends its slot, if there is one.

    The batch may need that slot.
    """
    running: Any = _workflow.get() or _activity.get()
    waits: Callable[[], AbstractAsyncContextManager[None]] | None = getattr(running, "waiting_for_batch", None)
    return _NOT_IN_AN_EXECUTION if waits is None else waits()


def current_activity() -> ActivityContext:
    """Return the context of the running activity.

    Raises:
        NotInActivityError: The code is not running in an activity's body within an orchestrator.
    """
    call = _activity.get()
    if call is None:
        raise NotInActivityError("current_activity() was called outside an activity that an orchestrator runs")
    return call


def current_execution() -> ExecutionContext:
    """Return the execution whose workflow, resolver or activity is running: ids, attempt, metadata.

    Raises:
        NotInWorkflowError: The code is not running in a workflow within an orchestrator.
    """
    scope = _workflow.get()
    if scope is not None:
        return scope.context
    context: ExecutionContext | None = _provided("context")
    if context is None:
        raise NotInWorkflowError("current_execution() was called outside a workflow that an orchestrator runs")
    return context


def stand_in(context: ExecutionContext, dependencies: Dependencies) -> Token[StandIn | None]:
    """Install a stand-in for code outside an orchestrator, in unit tests."""
    return _stand_in.set(StandIn(context, dependencies))


def leave_stand_in(token: Token[StandIn | None]) -> None:
    """Remove the stand-in."""
    _stand_in.reset(token)


def current_dependencies() -> Dependencies:
    """Return the dependencies of the worker that runs the activity, else those of a unit test, or none."""
    dependencies: Dependencies | None = _provided("dependencies")
    return dependencies or Dependencies()


def _provided(name: str) -> Any:
    return getattr(_activity.get(), name, None) or getattr(_stand_in.get(), name, None)


def current_clock() -> Clock:
    """Return the clock of the worker that runs the activity, else the machine's."""
    clock: Clock | None = getattr(_activity.get(), "clock", None)
    return clock or SystemClock()


def current_classifier() -> ErrorClassifier:
    """Return the classifier of the running activity, else the default."""
    classifier: ErrorClassifier | None = getattr(_activity.get(), "classifier", None)
    return classifier or default_classifier
