"""The progress of a batch as bars. For any workflow; needs rich, which the extra `cli` brings."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterable, Iterable, Sequence
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from durable_batches.lifecycle.progress import BatchSnapshot
from durable_batches.lifecycle.states import Stage
from durable_batches.printable import printable
from durable_batches.terminal.lines import follow_in_lines, is_terminal, leave_stderr, numbers_of, title_of

__all__ = ["SeveralBars", "follow", "panel", "stderr_console", "stdout_console"]

S = TypeVar("S", bound=Stage)


class _StderrConsole(Console):
    """A console on stderr. When its reader leaves, it prints no more, and the work goes on."""

    def on_broken_pipe(self) -> None:
        """Print no more."""
        self.quiet = True
        leave_stderr()


class _StdoutConsole(Console):
    """A console on stdout. When its reader leaves (`| head`), it prints no more, and the work goes on."""

    def on_broken_pipe(self) -> None:
        """Print no more. The interpreter flushes stdout when it ends, and must not fail then."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def stderr_console() -> Console:
    """Return the console that a script's progress is printed on."""
    return _StderrConsole(stderr=True)


def stdout_console() -> Console:
    """Return the console that a command's output is printed on."""
    return _StdoutConsole()


async def follow(
    snapshots: AsyncIterable[BatchSnapshot[S]], console: Console, *, resolving: str | None, heading: bool = False
) -> BatchSnapshot[S] | None:
    """Show each snapshot, or some of them where the console is no terminal; return the last snapshot.

    Args:
        snapshots: The batch's snapshots, up to its end.
        console: The console to print on.
        resolving: A short description of the resolver's work; None: the workflow has no resolver.
        heading: Whether bars have the batch, its workflow and its state above them.
    """
    latest: BatchSnapshot[S] | None = None
    if console.is_terminal and not console.is_dumb_terminal:
        # Output that goes to a file or a pipe must not be printed here.
        redirected = is_terminal(sys.stdout)
        with Live(console=console, refresh_per_second=10, redirect_stdout=redirected) as live:
            async for latest in snapshots:
                live.update(panel(latest, resolving=resolving, heading=heading))
        return latest
    # Not wrapped, so that a log can be searched by line.
    return await follow_in_lines(
        snapshots, lambda line: console.print(line, soft_wrap=True, highlight=False, markup=False)
    )


class SeveralBars:
    """Several batches as bars, one a batch; a context manager, within which they are on the terminal.

    Args:
        console: The console to print on.
        batch_ids: The batches, in the order in which they are shown.
    """

    def __init__(self, console: Console, batch_ids: Sequence[str]) -> None:
        self._latest: dict[str, BatchSnapshot[Stage] | None] = dict.fromkeys(batch_ids)
        self._live = Live(console=console, refresh_per_second=10, redirect_stdout=True)

    def __enter__(self) -> Self:
        """Begin to show them."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the latest bars on the terminal."""
        self._live.stop()

    async def follow(self, snapshots: AsyncIterable[BatchSnapshot[Stage]]) -> BatchSnapshot[Stage] | None:
        """Show each snapshot of one of the batches; return the last one."""
        latest: BatchSnapshot[Stage] | None = None
        async for latest in snapshots:
            self._latest[latest.batch_id] = latest
            self._live.update(rows([each for each in self._latest.values() if each is not None]))
        return latest


def rows(snapshots: Iterable[BatchSnapshot[Stage]]) -> RenderableType:
    """Return batches as bars, one a batch, with its state and numbers."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(no_wrap=True)
    table.add_column(width=20)
    table.add_column(no_wrap=True)
    for snapshot in snapshots:
        bar = ProgressBar(total=100, completed=snapshot.percentage, width=20)
        title = title_of(snapshot.state.tag).lower()
        table.add_row(Text(printable(snapshot.batch_id)), Text(title), bar, Text(numbers_of(snapshot)))
    return table


def panel(snapshot: BatchSnapshot[S], *, resolving: str | None, heading: bool = False) -> RenderableType:
    """Return the batch as bars, one a stage, and a line of numbers."""
    stages = Table.grid(padding=(0, 2))
    stages.add_column(no_wrap=True)
    stages.add_column(width=40)
    stages.add_column(justify="right", no_wrap=True)
    stages.add_column(no_wrap=True, style="dim")
    for stage in snapshot.stages:
        finished = stage.done == stage.total
        inside = stage.current - stage.done
        stages.add_row(
            Text(title_of(stage.stage), style="green" if finished else "bold" if inside else "dim"),
            ProgressBar(total=max(stage.total, 1), completed=stage.done if stage.total else 1, width=40),
            f"{stage.done}/{stage.total}",
            f"{inside} in it" if inside else "",
        )
    if resolving is not None:
        _add_resolver(stages, snapshot.state.tag, resolving)
    parts: list[RenderableType] = [stages, Text(), Text.assemble((numbers_of(snapshot), "bold"))]
    if heading:
        title = (
            f"{printable(snapshot.batch_id)}: {printable(snapshot.workflow)}, {title_of(snapshot.state.tag).lower()}"
        )
        parts = [Text(title, style="bold"), Text(), *parts]
    return Group(*parts)


def _add_resolver(stages: Table, state: str, resolving: str) -> None:
    active, done = state == "resolving", state == "completed"
    stages.add_row(
        Text("Resolving", style="green" if done else "bold" if active else "dim"),
        ProgressBar(total=1, completed=int(done), pulse=active, width=40),
        "done" if done else "",
        resolving if active else "",
    )
