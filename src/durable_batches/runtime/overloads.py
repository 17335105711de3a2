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

    __slots__ = ("since",)

    def __init__(self) -> None:
        self.since: Final[dict[tuple[BatchId, str], float]] = {}
        """Moments by batch and activity; most of the time there are none, and nobody need ask."""

    def refused(self, batch_id: BatchId, activity: str, now: float) -> float:
        """Note that a call was refused; return for how many seconds all calls have been. `now`: the boot clock."""
        since = self.since.setdefault((batch_id, activity), now)
        if len(self.since) > _MOST:
            del self.since[next(iter(self.since))]
        return now - since

    def served(self, batch_id: BatchId, activity: str) -> None:
        """Note that a call succeeded, or that the batch is paused until one does."""
        self.since.pop((batch_id, activity), None)
