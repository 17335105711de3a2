"""Where the running code is: in a workflow, in an activity's body, or in neither."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from durable_batches.errors import NotInActivityError
from durable_batches.lifecycle.states import BatchId, Stage

if TYPE_CHECKING:
    from durable_batches.runtime.activity import DurableActivity

__all__ = ["ActivityContext", "WorkflowScope", "current_activity", "scope"]


@runtime_checkable
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

    async def call(
        self, activity: DurableActivity[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Return the call's recorded result, or run and record it."""
        ...

    def enter_stage(self, stage: type[Stage]) -> None:
        """The document is in this stage from here on."""
        ...


scope: Final[ContextVar[WorkflowScope | ActivityContext | None]] = ContextVar("durable_batches", default=None)


def workflow_scope() -> WorkflowScope | None:
    """The execution whose workflow code is running; None outside of one, and inside an activity."""
    current = scope.get()
    return None if current is None or isinstance(current, ActivityContext) else current


def current_activity() -> ActivityContext:
    """The running activity's context.

    Raises:
        NotInActivityError: The code is not running in an activity's body within an orchestrator.
    """
    current = scope.get()
    if isinstance(current, ActivityContext):
        return current
    raise NotInActivityError("current_activity() was called outside an activity that an orchestrator runs")
