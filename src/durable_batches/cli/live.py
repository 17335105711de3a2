"""Shows the demonstration's batch as it moves, on the command's own output."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterable
from typing import Final, TypeVar

from rich.console import Console, RenderableType

from durable_batches.lifecycle.progress import BatchSnapshot
from durable_batches.lifecycle.states import Stage
from durable_batches.terminal import bars
from durable_batches.terminal.lines import status_line

__all__ = ["follow", "output", "panel", "status_line"]

_RESOLVING: Final = "linking across documents"

S = TypeVar("S", bound=Stage)


class _Output(Console):
    """A console whose reader may leave (`| head`): it says no more, and the work goes on to its end."""

    def on_broken_pipe(self) -> None:
        """Write to nowhere from here on, also what the interpreter flushes when it ends."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def output() -> Console:
    """Where the command writes to."""
    return _Output()


async def follow(snapshots: AsyncIterable[BatchSnapshot[S]], console: Console) -> BatchSnapshot[S] | None:
    """Show each snapshot, in a log only now and then; return the last one."""
    return await bars.follow(snapshots, console, resolving=_RESOLVING)


def panel(snapshot: BatchSnapshot[S]) -> RenderableType:
    """The batch as bars, one a stage, and a line of numbers."""
    return bars.panel(snapshot, resolving=_RESOLVING)
