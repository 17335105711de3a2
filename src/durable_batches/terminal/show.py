"""The progress of a script on stderr: bars on a terminal, and lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterable
from typing import TypeVar

from durable_batches.lifecycle.progress import BatchSnapshot
from durable_batches.lifecycle.states import Stage
from durable_batches.terminal.lines import follow_in_lines, is_terminal, print_line

__all__ = ["show"]

S = TypeVar("S", bound=Stage)


async def show(snapshots: AsyncIterable[BatchSnapshot[S]], *, resolver: bool) -> None:
    """Show each snapshot: as bars on a terminal where rich is installed, as lines elsewhere.

    Args:
        snapshots: The batch's snapshots, up to its end.
        resolver: Whether the workflow has a resolver, which is shown as one more stage.
    """
    if is_terminal(sys.stderr):
        try:
            from durable_batches.terminal import bars
        except ImportError:
            # Without the extra `cli` there are lines.
            pass
        else:
            await bars.follow(
                snapshots, bars.stderr_console(), resolving="over all of the results" if resolver else None
            )
            return
    await follow_in_lines(snapshots, print_line)
