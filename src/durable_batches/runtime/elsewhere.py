"""The seam to executors: a call of an activity that has `run_on=` is handed over, and comes back as a value.

The executors are in `durable_batches.executors`, and a worker's resources carry them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from durable_batches.clock import Clock
from durable_batches.errors import ConfigurationError
from durable_batches.lifecycle.spending import Spend
from durable_batches.runtime.context import ExecutionContext
from durable_batches.runtime.middleware import MiddlewareCall

__all__ = ["CallElsewhere", "CallLostError", "Elsewhere", "no_executor"]


class CallElsewhere(MiddlewareCall, Protocol):
    """The call, as an executor sees it."""

    @property
    def clock(self) -> Clock:
        """The worker's."""
        ...

    @property
    def context(self) -> ExecutionContext:
        """The context of the execution that makes the call."""
        ...

    @property
    def crashes(self) -> int:
        """How often the execution has crashed, with nothing recorded since."""
        ...

    def waiting(self) -> AbstractContextManager[None]:
        """Within the block the call waits for a place: it is cancelled if the attempt of the document is stopped."""
        ...

    def add_spends(self, spends: Iterable[Spend]) -> None:
        """Add what it has spent; of which activity and in what stage, the call knows."""
        ...

    async def begin(self) -> None:
        """Wait until the worker's lease holds; the call is submitted next.

        Raises:
            CancelledError: The attempt of the document is being stopped.
            NotBegun: It has given its permit back meanwhile, and there is none now: it gives up its place.
        """
        ...

    async def give_way(self) -> None:
        """Give its permit back, since it has to wait for something else before it is submitted."""
        ...

    def handed_over(self) -> None:
        """Note that it was submitted, so that its permit is used."""
        ...


class Elsewhere(Protocol):
    """Runs activities on the executors of a worker, by their names."""

    def run(self, call: CallElsewhere, /) -> Awaitable[Any]:
        """Make one attempt of a call on the executor that its activity names, and return the decoded result.

        Raises:
            CallLostError: The executor has lost it too often.
            ConfigurationError: The worker has no such executor.
            ExecutorError: The executor takes no calls.
            PayloadError: An argument cannot be encoded.
            RemoteError: The function has raised.
            TimeoutError: It took longer than the activity's timeout.
        """
        ...


def no_executor(activity: str, run_on: str | None, workflow: str | None = None) -> ConfigurationError:
    """Make the error of an activity whose executor the worker does not have."""
    of_workflow = "" if workflow is None else f" of workflow {workflow!r}"
    return ConfigurationError(
        f"activity {activity!r}{of_workflow} runs on {run_on!r}, and the worker has no executor of that name: "
        f"Worker(..., executors={{{run_on!r}: process_pool()}})"
    )


class CallLostError(Exception):
    """A call ended the process that ran it, the last time with no other call beside it."""

    def __init__(self, executor: str, losses: int, reason: str) -> None:
        self.executor = executor
        self.losses = losses
        self.reason = reason
        times = "once" if losses == 1 else f"{losses} times"
        super().__init__(f"executor {executor!r} lost it {times}, the last time with no other call beside it: {reason}")
