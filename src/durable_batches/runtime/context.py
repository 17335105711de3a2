"""Where the running code is: in a workflow, in an activity's body, or in neither."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias

from durable_batches.clock import Clock, SystemClock
from durable_batches.errors import NotInActivityError, NotInWorkflowError
from durable_batches.lifecycle.states import BatchId, Stage
from durable_batches.runtime.dependencies import Dependencies

if TYPE_CHECKING:
    from durable_batches.runtime.bound_call import BoundCall

__all__ = [
    "ActivityContext",
    "ExecutionContext",
    "StandIn",
    "WorkflowScope",
    "current_activity",
    "current_clock",
    "current_dependencies",
    "current_execution",
    "enter_activity",
    "enter_workflow",
    "leave",
    "leave_stand_in",
    "stand_in",
    "workflow_scope",
]


class ActivityContext(Protocol):
    """What an activity's body can know about its call, and say about it."""

    @property
    def batch_id(self) -> BatchId:
        """The batch."""
        ...

    @property
    def document_id(self) -> str:
        """The document; empty in a resolver's activity."""
        ...

    @property
    def attempt(self) -> int:
        """Which try of the activity this is, from 1; counted anew after a crash."""
        ...

    @property
    def idempotency_key(self) -> str:
        """The same for every try of this call, also after a crash: for services that accept such a key."""
        ...

    def report(self, current: int, total: int) -> None:
        """Say how far a long activity is; shown in this process's snapshots, not recorded."""
        ...


@dataclass(frozen=True, kw_only=True)
class ExecutionContext:
    """What workflow code can know about the attempt that it runs in."""

    batch_id: BatchId
    document_id: str
    """Empty in a resolver."""
    ordinal: int
    """The document's place in the submission's order, from 0; -1 in a resolver."""
    attempt: int
    """Of the document, from 1; crashes and deploys count. Not the same on every attempt: decide nothing by it."""
    run: int
    """Of the batch, from 1."""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    """The labels that the batch was submitted with (`BatchConfig.metadata`)."""


class StandIn(NamedTuple):
    """For unit tests: what an orchestrator would provide."""

    context: ExecutionContext
    dependencies: Dependencies


class WorkflowScope(Protocol):
    """What activities need of the execution that they are called in."""

    @property
    def context(self) -> ExecutionContext:
        """Which execution it is."""
        ...

    async def call(self, bound: BoundCall) -> Any:
        """Return the call's recorded result, or run and record it."""
        ...

    def enter_stage(self, stage: type[Stage]) -> None:
        """The document is in this stage from here on."""
        ...


_workflow: Final[ContextVar[WorkflowScope | None]] = ContextVar("durable_batches_workflow", default=None)
_activity: Final[ContextVar[ActivityContext | None]] = ContextVar("durable_batches_activity", default=None)

_stand_in: Final[ContextVar[StandIn | None]] = ContextVar("durable_batches_stand_in", default=None)
"""For unit tests: what workflow code finds that no orchestrator runs."""

workflow_scope: Callable[[], WorkflowScope | None] = _workflow.get
"""The execution whose workflow code is running; None outside of one, and inside an activity."""

ScopeTokens: TypeAlias = tuple[Token[WorkflowScope | None], Token[ActivityContext | None]]


def enter_workflow(execution: WorkflowScope) -> ScopeTokens:
    """From here on the code of this execution's workflow runs, until `leave`."""
    return _workflow.set(execution), _activity.set(None)


def enter_activity(call: ActivityContext) -> ScopeTokens:
    """From here on an activity's body runs, whose own activity calls are plain ones, until `leave`."""
    return _workflow.set(None), _activity.set(call)


def leave(tokens: ScopeTokens) -> None:
    """Back to where it was entered from."""
    _workflow.reset(tokens[0])
    _activity.reset(tokens[1])


def current_activity() -> ActivityContext:
    """The running activity's context.

    Raises:
        NotInActivityError: The code is not running in an activity's body within an orchestrator.
    """
    call = _activity.get()
    if call is None:
        raise NotInActivityError("current_activity() was called outside an activity that an orchestrator runs")
    return call


def current_execution() -> ExecutionContext:
    """The execution whose workflow, resolver or activity is running: ids, attempt, metadata.

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
    """For unit tests: from here on there are these, where no orchestrator says otherwise."""
    return _stand_in.set(StandIn(context, dependencies))


def leave_stand_in(token: Token[StandIn | None]) -> None:
    """Back to where it was before `stand_in`."""
    _stand_in.reset(token)


def current_dependencies() -> Dependencies:
    """Those of the worker that runs the activity; outside of one, those of a unit test, or none."""
    dependencies: Dependencies | None = _provided("dependencies")
    return dependencies or Dependencies()


def _provided(name: str) -> Any:
    return getattr(_activity.get(), name, None) or getattr(_stand_in.get(), name, None)


def current_clock() -> Clock:
    """The clock of the worker that runs the activity; outside of one, the machine's."""
    clock: Clock | None = getattr(_activity.get(), "clock", None)
    return clock or SystemClock()
