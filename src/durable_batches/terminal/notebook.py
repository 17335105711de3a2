"""The progress of a batch in a notebook: one output, which changes. Imports nothing that the notebook has not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import AsyncIterable
from typing import Any, TypeVar

from durable_batches.lifecycle.progress import BatchSnapshot
from durable_batches.lifecycle.states import Stage

__all__ = ["follow", "is_notebook"]

S = TypeVar("S", bound=Stage)


def is_notebook() -> bool:
    """Return whether this process is the kernel of a notebook, which shows HTML; IPython in a terminal is none."""
    ipython: Any = sys.modules.get("IPython")
    get_shell = getattr(ipython, "get_ipython", None)
    return get_shell is not None and getattr(get_shell(), "kernel", None) is not None


async def follow(snapshots: AsyncIterable[BatchSnapshot[S]]) -> None:
    """Show each snapshot, in the place of the one before, below the cell that runs."""
    display: Any = importlib.import_module("IPython.display").display
    shown: Any = None
    async for snapshot in snapshots:
        if shown is None:
            shown = display(snapshot, display_id=True)
        else:
            shown.update(snapshot)
