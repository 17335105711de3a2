"""Where the running code is: in a workflow, in an activity's body, or in neither."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from durable_batches.clock import Clock, SystemClock
from durable_batches.errors import NotInActivityError
from durable_batches.lifecycle.states import BatchId, Stage

if TYPE_CHECKING:
    from durable_batches.runtime.activity import DurableActivity

__all__ = [
    "ActivityContext",
    "WorkflowScope",
    "current_activity",
    "current_clock",
    "enter_activity",
    "enter_workflow",
    "leave",
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


class WorkflowScope(Protocol):
    """What activities need of the execution that they are called in."""

    async def call(self, activity: DurableActivity[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the call's recorded result, or run and record it."""
        ...

    def enter_stage(self, stage: type[Stage]) -> None:
        """The document is in this stage from here on."""
        ...


_workflow: Final[ContextVar[WorkflowScope | None]] = ContextVar("durable_batches_workflow", default=None)
_activity: Final[ContextVar[ActivityContext | None]] = ContextVar("durable_batches_activity", default=None)

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


def current_clock() -> Clock:
    """The clock of the worker that runs the activity; outside of one, the machine's."""
    clock: Clock | None = getattr(_activity.get(), "clock", None)
    return clock or SystemClock()
