"""How batches went over time: their events are read once, and only new ones when somebody asks again."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from durable_batches.lifecycle.progress import BatchSnapshot
from durable_batches.lifecycle.states import ENDED_TAGS, Stage
from durable_batches.lifecycle.timeline import Timeline, TimelineFold
from durable_batches.reading.raw_access import RawAccess

__all__ = ["Timelines"]

_MOST_EVENTS: Final = 100_000
"""Events of one batch that are read at once."""

_KEPT: Final = 32
"""Batches that are kept for those who ask again."""


@dataclass
class _Known:
    created_at: datetime
    fold: TimelineFold
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)


class Timelines:
    """The timelines of batches, each as far as it was read.

    Args:
        batches: The batches.
    """

    def __init__(self, batches: RawAccess) -> None:
        self._batches = batches
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def timeline(self, snapshot: BatchSnapshot[Stage]) -> Timeline:
        """Return how a batch went, at least up to this snapshot.

        Of a batch with more than 100,000 events that nobody has looked at meanwhile, it begins with the latest of them.
        """
        known = self._of(snapshot)
        async with known.reading:
            if snapshot.seq - known.fold.seq > _MOST_EVENTS:
                known.fold = TimelineFold(snapshot.seq - _MOST_EVENTS)
            if known.fold.seq < snapshot.seq:
                await self._read(known.fold, snapshot)
            stages = [stage.stage for stage in snapshot.stages]
            until = None if snapshot.state.tag in ENDED_TAGS else self._batches.clock.now()
            return known.fold.timeline(snapshot.batch_id, stages, until)

    async def _read(self, fold: TimelineFold, snapshot: BatchSnapshot[Stage]) -> None:
        async with aclosing(self._batches.event_blocks(snapshot.batch_id, fold.seq)) as blocks:
            async for block in blocks:
                for event in block:
                    fold.add(event)
                if fold.seq >= snapshot.seq:
                    return
                # A block takes the loop for some milliseconds: others have their turn.
                await asyncio.sleep(0)

    def _of(self, snapshot: BatchSnapshot[Stage]) -> _Known:
        known = self._known.get(snapshot.batch_id)
        # Another batch may have the id of one that was deleted.
        if known is None or known.created_at != snapshot.created_at:
            known = self._known[snapshot.batch_id] = _Known(snapshot.created_at, TimelineFold())
        self._known.move_to_end(snapshot.batch_id)
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return known
