"""What a script tells on stderr: bars where there is a terminal to draw them on, and lines for everybody else."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterable
from typing import TypeVar

from durable_batches.lifecycle.progress import BatchSnapshot
from durable_batches.lifecycle.states import Stage
from durable_batches.terminal.lines import follow_in_lines, is_terminal, say

__all__ = ["show"]

S = TypeVar("S", bound=Stage)


async def show(snapshots: AsyncIterable[BatchSnapshot[S]], *, resolver: bool) -> None:
    """Show the snapshots as they come: as bars on a terminal, where rich is installed, and as lines elsewhere.

    Args:
        snapshots: What to show.
        resolver: Whether the workflow has one, which is shown as one more stage.
    """
    if is_terminal(sys.stderr):
        try:
            from durable_batches.terminal import bars
        except ImportError:
            # Bars are a nicety: without the extra `cli` there are lines.
            pass
        else:
            await bars.follow(snapshots, bars.errors(), resolving="over all of the results" if resolver else None)
            return
    await follow_in_lines(snapshots, say)
