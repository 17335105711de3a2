"""Since when a provider has refused everything: for each activity of each batch, in this worker."""

from __future__ import annotations

from typing import Final

from durable_batches.lifecycle.states import BatchId

__all__ = ["PATIENCE_SECONDS", "Overloads"]

PATIENCE_SECONDS: Final = 3_600.0
"""For how long calls of an activity wait for a provider that is overloaded, and does not answer one of them."""

_MOST: Final = 10_000
"""Activities of batches that are remembered; of more the oldest are forgotten, and no memory grows."""


class Overloads:
    """Remembers when calls of an activity in a batch were first refused, until one of them succeeds."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since: dict[tuple[BatchId, str], float] = {}

    def __bool__(self) -> bool:
        """Whether anything is refused at all: most of the time nothing is."""
        return bool(self._since)

    def refused(self, batch_id: BatchId, activity: str, now: float) -> float:
        """Note that a call was refused; return for how many seconds all calls have been. `now`: the boot clock."""
        since = self._since.setdefault((batch_id, activity), now)
        if len(self._since) > _MOST:
            del self._since[next(iter(self._since))]
        return now - since

    def served(self, batch_id: BatchId, activity: str) -> None:
        """Note that a call succeeded, or that the batch is paused until one does."""
        self._since.pop((batch_id, activity), None)
