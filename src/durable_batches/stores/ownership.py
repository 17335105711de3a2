"""What a worker owns, remembered from one of its commits to the next.

The fence makes this sound: an execution that a live worker owns is changed by that worker's own commits alone
(whoever would free it must first declare the worker dead, after which no commit of it gets through). So the
rows that a commit needs are those that the commit before wrote, and need not be read again. What others may
change, the batch's own row, is always read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from durable_batches.lifecycle.planning import Writes
from durable_batches.lifecycle.records import Claim, ExecutionKey, ExecutionRecord, WorkerId

__all__ = ["Owned"]


class Owned:
    """The executions of one worker, as of one of its commits."""

    __slots__ = ("_executions", "number")

    def __init__(self) -> None:
        self._executions: dict[ExecutionKey, ExecutionRecord] = {}
        self.number: int = 0
        """The commit after which this is what the worker owns."""

    def as_of(self, number: int) -> Mapping[ExecutionKey, ExecutionRecord]:
        """What is known as of this commit; nothing where another one came in between."""
        if self.number != number:
            self._executions.clear()
        return self._executions

    def note(self, worker: WorkerId, loaded: Mapping[ExecutionKey, ExecutionRecord], writes: Writes) -> None:
        """Take over what a commit loaded and wrote; forget what the worker does not own any more."""
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
