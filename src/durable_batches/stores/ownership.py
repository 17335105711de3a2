"""What a worker owns, remembered from one of its commits to the next.

The fence makes this sound: an execution that a live worker owns is changed by that worker's own commits alone. To
release it, another worker must first expire its owner, after which no commit of the owner gets through. So the rows
that a commit needs are those that the commit before wrote, and need not be read again. The batch's own row, which
others may change, is read each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from durable_batches.lifecycle.planning import Writes
from durable_batches.lifecycle.records import Claim, ExecutionKey, ExecutionRecord, WorkerId

__all__ = ["Ownership"]


class Ownership:
    """The executions of one worker, as of one of its commits."""

    __slots__ = ("_executions", "number")

    def __init__(self) -> None:
        self._executions: dict[ExecutionKey, ExecutionRecord] = {}
        self.number: int = 0
        """The commit after which this is what the worker owns."""

    def as_of(self, number: int) -> Mapping[ExecutionKey, ExecutionRecord]:
        """Return what is known as of this commit: nothing, where another one came in between."""
        if self.number != number:
            self._executions.clear()
        return self._executions

    def note(self, worker: WorkerId, loaded: Mapping[ExecutionKey, ExecutionRecord], writes: Writes) -> None:
        """Take over what a commit loaded and wrote, and drop what the worker does not own any more."""
        known = self._executions
        for key, execution in loaded.items():
            if execution.owner == worker:
                known[key] = execution
        for execution in writes.marks:
            known[(execution.batch_id, execution.position)] = execution
        for execution in writes.executions:
            if execution.owner == worker:
                known[(execution.batch_id, execution.position)] = execution
            else:
                known.pop((execution.batch_id, execution.position), None)

    def claimed(self, claims: Iterable[Claim]) -> None:
        """Take over what a commit claimed."""
        for claim in claims:
            self._executions[(claim.execution.batch_id, claim.execution.position)] = claim.execution
