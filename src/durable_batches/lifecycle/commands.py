"""Commands about one batch: its submitter seals or discards it, any client may give the others."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from durable_batches.lifecycle.events import PauseScope
from durable_batches.lifecycle.records import WorkerId

__all__ = ["Cancel", "Command", "Discard", "PauseBatch", "ResumeBatch", "Seal", "UpdateBatch"]


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


class PauseBatch(NamedTuple):
    """Start nothing of the batch until it is resumed. The same `request_id` again gives the same answer."""

    request_id: str
    note: str = ""
    running: PauseScope = "calls"


class ResumeBatch(NamedTuple):
    """End an operator's pause; where a provider refuses calls for its account, ask it again now.

    The same `request_id` again gives the same answer.
    """

    request_id: str


class UpdateBatch(NamedTuple):
    """Change options of the batch's configuration. The same `request_id` again gives the same answer."""

    request_id: str
    changes: str
    """The new values by the names of their options, as JSON."""


Command: TypeAlias = Seal | Discard | Cancel | PauseBatch | ResumeBatch | UpdateBatch
