"""A call of an executor before it begins, and the time that it may run."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import Final, Protocol

from durable_batches.clock import Clock, Deadline

__all__ = ["START_SECONDS", "Beginning", "Probing", "Timeout"]

START_SECONDS: Final = 60.0
"""For which a process may start, and import what it runs, before the timeout of its first call begins."""


class Beginning(Protocol):
    """A call before it begins."""

    def waiting(self) -> AbstractContextManager[object]:
        """Within the block it waits for a place: it may be cancelled, and nothing is lost."""
        ...

    def give_way(self) -> Awaitable[object]:
        """Awaited before it waits for anything: it holds nothing meanwhile that others need."""
        ...

    def begin(self) -> Awaitable[object]:
        """Awaited just before it is submitted; what this raises is raised."""
        ...

    def handed_over(self) -> object:
        """Called when it was submitted."""
        ...


class Probing:
    """The beginning of a call that nobody has made."""

    def waiting(self) -> AbstractContextManager[None]:
        """See `Beginning`."""
        return nullcontext()

    async def give_way(self) -> None:
        """See `Beginning`."""

    async def begin(self) -> None:
        """See `Beginning`."""

    def handed_over(self) -> None:
        """See `Beginning`."""


class Timeout:
    """The timeout of a call.

    It runs from when the call begins, where the executor tells; otherwise, from its submission.

    Args:
        seconds: How long it may run; None: as long as it takes.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds: Final = seconds
        self.is_told: bool = False
        """Whether it will be told that the call begins."""
        self._deadline: Deadline | None = None

    def running(self, clock: Clock, *, may_start: bool) -> AbstractAsyncContextManager[object]:
        """Within the block, the time runs.

        Args:
            clock: The worker's.
            may_start: Whether the call may wait for the start of a process: until it begins, it may take longer.
        """
        if self.seconds is None:
            return nullcontext()
        self._deadline = Deadline(clock, self.seconds + (START_SECONDS if self.is_told and may_start else 0.0))
        return self._deadline

    def begins(self) -> None:
        """Let the time run from now on."""
        if self._deadline is not None and self.seconds is not None:
            self._deadline.restart(self.seconds)
