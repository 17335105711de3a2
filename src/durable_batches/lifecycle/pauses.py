"""The pause of a batch by an operator: nothing of it is started until it is resumed.

It is a field of its own in the core of the batch, beside the pause for a quota: 0.2.0 knows of the latter alone,
replaces it as a whole, and writes back what else it finds. What it does know is `BatchRecord.paused`, which such a
pause sets: it claims nothing of the batch either. What it runs already, it runs to the end.
"""

from __future__ import annotations

from typing import TypedDict

from durable_batches.lifecycle.events import PauseScope
from durable_batches.lifecycle.records import Micros

__all__ = ["OperatorPause"]


class OperatorPause(TypedDict):
    """The pause, as it is stored in the core of the batch."""

    since: Micros
    note: str
    running: PauseScope
    by: str
    """The id of the request, which a store of level 1 keeps nowhere else."""
