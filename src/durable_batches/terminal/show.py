"""The progress of a batch, for who waits for it: bars on a terminal, an output of a notebook, lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterable
from datetime import timedelta
from typing import Final, TypeVar

from durable_batches.lifecycle.progress import BatchSnapshot
from durable_batches.lifecycle.states import Stage
from durable_batches.terminal import notebook
from durable_batches.terminal.lines import follow_in_lines, is_terminal, print_line

__all__ = ["SHOW_INTERVAL", "show"]

S = TypeVar("S", bound=Stage)

SHOW_INTERVAL: Final = timedelta(milliseconds=250)
"""Between two snapshots, at least."""

_with_bars = False
"""Whether bars are on the terminal: it has room for those of one batch."""


async def show(snapshots: AsyncIterable[BatchSnapshot[S]], *, resolver: bool) -> None:
    """Show each snapshot: in a notebook, or on stderr, as bars on a terminal with rich, and as lines elsewhere.

    Args:
        snapshots: The batch's snapshots, up to its end.
        resolver: Whether the workflow has a resolver, which is shown as one more stage.
    """
    global _with_bars
    if notebook.is_notebook():
        await notebook.follow(snapshots)
        return
    if is_terminal(sys.stderr) and not _with_bars:
        try:
            from durable_batches.terminal import bars
        except ImportError:
            # Without the extra `cli` there are lines.
            pass
        else:
            _with_bars = True
            try:
                await bars.follow(
                    snapshots, bars.stderr_console(), resolving="over all of the results" if resolver else None
                )
            finally:
                _with_bars = False
            return
    await follow_in_lines(snapshots, print_line)
