"""The signals that the look-out for subscribers fires, for tests; see `durable_batches.signals`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from durable_batches.lifecycle.states import BatchId
from durable_batches.signals import Signal

__all__ = ["NewsSignals"]


class NewsSignals:
    """Of the look-out that notices what other processes commit."""

    __slots__ = ("looked", "waiting", "woken")

    def __init__(self) -> None:
        self.waiting: Final = Signal[Mapping[BatchId, int]]()
        """It waits for news of these batches, each beyond this event."""
        self.looked: Final = Signal[Mapping[BatchId, int]]()
        """There may be news: the batches were read."""
        self.woken: Final = Signal[BatchId]()
        """The subscribers of a batch were woken to read the store."""
