"""A batch as it moves, in bars. For any workflow; needs rich, which the extra `cli` brings."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterable
from typing import TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from durable_batches.lifecycle.progress import BatchSnapshot
from durable_batches.lifecycle.states import Stage
from durable_batches.terminal.lines import follow_in_lines, is_terminal, numbers_of, words

__all__ = ["errors", "follow", "panel"]

S = TypeVar("S", bound=Stage)


class _Errors(Console):
    """A console whose reader may leave: it says no more, and the work goes on to its end."""

    def on_broken_pipe(self) -> None:
        """Be quiet from here on."""
        self.quiet = True


def errors() -> Console:
    """Where a script tells how far it is."""
    return _Errors(stderr=True)


async def follow(
    snapshots: AsyncIterable[BatchSnapshot[S]], console: Console, *, resolving: str | None
) -> BatchSnapshot[S] | None:
    """Show each snapshot, in a log only now and then; return the last one.

    Args:
        snapshots: What to show.
        console: Where.
        resolving: What the resolver does, in a few words; None: there is none.
    """
    latest: BatchSnapshot[S] | None = None
    if console.is_terminal and not console.is_dumb_terminal:
        # What goes to a file or a pipe must not come out here.
        redirected = is_terminal(sys.stdout)
        with Live(console=console, refresh_per_second=10, redirect_stdout=redirected) as live:
            async for latest in snapshots:
                live.update(panel(latest, resolving=resolving))
        return latest
    # Not wrapped: a log's reader searches it by line.
    return await follow_in_lines(snapshots, lambda line: console.print(line, soft_wrap=True, highlight=False))


def panel(snapshot: BatchSnapshot[S], *, resolving: str | None) -> RenderableType:
    """The batch as bars, one a stage, and a line of numbers."""
    stages = Table.grid(padding=(0, 2))
    stages.add_column(no_wrap=True)
    stages.add_column(width=40)
    stages.add_column(justify="right", no_wrap=True)
    stages.add_column(no_wrap=True, style="dim")
    for stage in snapshot.stages:
        finished = stage.done == stage.total
        inside = stage.current - stage.done
        stages.add_row(
            Text(words(stage.stage), style="green" if finished else "bold" if inside else "dim"),
            ProgressBar(total=max(stage.total, 1), completed=stage.done if stage.total else 1, width=40),
            f"{stage.done}/{stage.total}",
            f"{inside} in it" if inside else "",
        )
    if resolving is not None:
        _add_resolver(stages, snapshot.state.tag, resolving)
    return Group(stages, Text(), Text.assemble((numbers_of(snapshot), "bold")))


def _add_resolver(stages: Table, state: str, resolving: str) -> None:
    active, done = state == "resolving", state == "completed"
    stages.add_row(
        Text("Resolving", style="green" if done else "bold" if active else "dim"),
        ProgressBar(total=1, completed=int(done), pulse=active, width=40),
        "done" if done else "",
        resolving if active else "",
    )
