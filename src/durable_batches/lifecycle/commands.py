"""Commands about one batch: its submitter seals or discards it, any client may cancel it."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from durable_batches.lifecycle.records import WorkerId

__all__ = ["Cancel", "Command", "Discard", "Seal"]


class Seal(NamedTuple):
    """Let the batch run: its submitter (`loader`) has stored all documents."""

    loader: WorkerId
    total: int


class Discard(NamedTuple):
    """Remove a batch that was never sealed; `loader` is its submitter."""

    loader: WorkerId


class Cancel(NamedTuple):
    """End the run as CANCELLED. The same `request_id` again gives the same answer."""

    request_id: str
    reason: str


Command: TypeAlias = Seal | Discard | Cancel
