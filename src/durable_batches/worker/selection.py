"""Selection: the batches that a worker takes from."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from durable_batches.clock import Clock
from durable_batches.errors import ConfigurationError
from durable_batches.lifecycle.notes import TakenBatches
from durable_batches.lifecycle.primitives import problem_with_name
from durable_batches.lifecycle.records import BatchRecord, is_selected
from durable_batches.lifecycle.states import BatchId
from durable_batches.options import check_instance
from durable_batches.stores.protocol import Store

__all__ = ["BatchFilter", "Selection", "SelectionSweep"]

_MISSING_SECONDS: Final = 3600.0
"""After this much a batch of a transaction of the application that is not there is taken to have been rolled back."""


@dataclass(frozen=True, kw_only=True)
class BatchFilter:
    """Batches with one of these ids, and batches with all of these labels.

    Raises:
        ConfigurationError: There is no id and no label, an id can be that of no batch, or something is no str.
    """

    batch_ids: Collection[str] = ()
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    """Labels, by name, as `BatchConfig.metadata` has them; more labels than these do no harm."""

    def __post_init__(self) -> None:
        """Check and copy both: what a worker runs is not changed behind its back."""
        check_instance("batch_ids", self.batch_ids, Collection)
        if isinstance(self.batch_ids, str | bytes):
            raise ConfigurationError(f"batch_ids must be a collection of ids; give a list: [{self.batch_ids!r}]")
        check_instance("metadata", self.metadata, Mapping)
        for batch_id in self.batch_ids:
            if (problem := problem_with_name(batch_id)) is not None:
                raise ConfigurationError(f"each of batch_ids {problem}")
        for text in (*self.metadata, *self.metadata.values()):
            check_instance("each name and value of metadata", text, str)
        if not self.batch_ids and not self.metadata:
            raise ConfigurationError(
                "a BatchFilter without an id and without a label takes from no batch; Worker(max_in_flight=0) runs none"
            )
        object.__setattr__(self, "batch_ids", frozenset(self.batch_ids))
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))


class Selection:
    """Which batches a worker takes from; for any thread.

    Args:
        wanted: As `Worker` takes it.

    Raises:
        ConfigurationError: It is none of these.
    """

    def __init__(self, wanted: BatchFilter | Literal["all", "mine"]) -> None:
        if not isinstance(wanted, BatchFilter) and wanted not in ("all", "mine"):  # pyright: ignore[reportUnnecessaryContains]
            raise ConfigurationError(f"batches must be 'all', 'mine' or a BatchFilter, not {wanted!r}")
        self.is_of_own: Final = wanted == "mine"
        """Whether it is of the batches that were submitted, or attached to, by the worker's orchestrators."""
        self.metadata: Final[Mapping[str, str]] = wanted.metadata if isinstance(wanted, BatchFilter) else {}
        """Labels: it has the batches that have all of them; none: it has those of `batches` alone."""
        self._mutex = threading.Lock()
        self._batches: frozenset[BatchId] | None = None
        if isinstance(wanted, BatchFilter):
            self._batches = frozenset(map(BatchId, wanted.batch_ids))
        elif self.is_of_own:
            self._batches = frozenset()

    @property
    def batches(self) -> frozenset[BatchId] | None:
        """The ids of its batches, beside those with its labels; None: all batches."""
        return self._batches

    @property
    def is_empty(self) -> bool:
        """Whether it has no batch."""
        return self._batches is not None and not self._batches and not self.metadata

    @property
    def is_everything(self) -> bool:
        """Whether it has all batches."""
        return self._batches is None

    @property
    def taken(self) -> TakenBatches | None:
        """What its worker's note says of it; None: nothing, since it has all batches."""
        batches = self._batches
        return None if batches is None else TakenBatches(batches, self.metadata, own=self.is_of_own)

    def has(self, batch: BatchRecord) -> bool:
        """Whether it has this batch."""
        batches = self._batches
        return batches is None or is_selected(batch, batches, self.metadata)

    def add(self, batch_id: BatchId) -> bool:
        """Add a batch of the worker's own; return whether this changes anything."""
        return self._change(batch_id, present=True)

    def remove(self, batch_id: BatchId) -> bool:
        """Remove a batch of the worker's own that has ended, or was not submitted after all."""
        return self._change(batch_id, present=False)

    def _change(self, batch_id: BatchId, *, present: bool) -> bool:
        with self._mutex:
            if not self.is_of_own or self._batches is None or (batch_id in self._batches) is present:
                return False
            self._batches = self._batches | {batch_id} if present else self._batches - {batch_id}
            return True


class SelectionSweep:
    """Drops the batches of a worker's own that others have ended, or that were never committed.

    Args:
        selection: What it drops them from.
        store: Where they are.
        clock: The worker's.
    """

    def __init__(self, selection: Selection, store: Store, clock: Clock) -> None:
        self._selection = selection
        self._store = store
        self._clock = clock
        self._left: list[BatchId] = []
        self._missing_since: dict[BatchId, float] = {}

    async def look(self) -> None:
        """Look at one of the batches, another one each time: whatever their number, it is one read."""
        if not self._selection.is_of_own:
            return
        own = self._selection.batches or frozenset()
        self._left = [batch_id for batch_id in self._left if batch_id in own] or sorted(own)
        if not self._left:
            return
        batch_id = self._left.pop()
        record = await self._store.batch(batch_id)
        since = self._missing_since.pop(batch_id, self._clock.boot())
        if record is None and self._clock.boot() - since < _MISSING_SECONDS:
            # It may have been submitted in a transaction that is open yet.
            self._missing_since[batch_id] = since
        elif record is None or record.ended:
            self._selection.remove(batch_id)
