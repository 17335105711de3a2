"""Shows a batch as it moves: bars in a terminal, lines anywhere else. For any workflow."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterable
from typing import TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from durable_batches.lifecycle.progress import BatchSnapshot
from durable_batches.lifecycle.states import ENDED_TAGS, Counts, Stage

__all__ = ["follow", "output", "panel", "status_line"]

SECONDS_BETWEEN_LINES = 2.0

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
    latest: BatchSnapshot[S] | None = None
    if console.is_terminal:
        with Live(console=console, refresh_per_second=10) as live:
            async for latest in snapshots:
                live.update(panel(latest))
        return latest
    now = asyncio.get_running_loop().time
    due = now()
    async for latest in snapshots:
        if now() >= due or latest.state.tag in ENDED_TAGS:
            due = now() + SECONDS_BETWEEN_LINES
            # Not wrapped: a log's reader searches it by line.
            console.print(status_line(latest), soft_wrap=True, highlight=False)
    return latest


def panel(snapshot: BatchSnapshot[S]) -> RenderableType:
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
            Text(_words(stage.stage), style="green" if finished else "bold" if inside else "dim"),
            ProgressBar(total=max(stage.total, 1), completed=stage.done if stage.total else 1, width=40),
            f"{stage.done}/{stage.total}",
            f"{inside} in it" if inside else "",
        )
    resolving = snapshot.state.tag == "resolving"
    resolved = snapshot.state.tag == "completed"
    stages.add_row(
        Text("Resolving", style="green" if resolved else "bold" if resolving else "dim"),
        ProgressBar(total=1, completed=int(resolved), pulse=resolving, width=40),
        "done" if resolved else "",
        "linking across documents" if resolving else "",
    )
    return Group(stages, Text(), Text.assemble((_numbers(snapshot), "bold")))


def status_line(snapshot: BatchSnapshot[S]) -> str:
    """The batch in one line."""
    return f"{_words(snapshot.state.tag).lower():22} {_numbers(snapshot)}"


def _numbers(snapshot: BatchSnapshot[S]) -> str:
    counts = snapshot.counts
    parts = [
        f"{snapshot.percentage:3.0f} %",
        f"{counts.ended}/{counts.total} documents",
        _count_words(counts),
    ]
    rate = snapshot.documents_per_second
    if rate:
        parts.append(f"{rate:.1f}/s")
        if counts.unfinished:
            parts.append(f"ETA {_duration(counts.unfinished / rate)}")
    return "  ".join(part for part in parts if part)


def _count_words(counts: Counts) -> str:
    named = {
        "succeeded": counts.succeeded,
        "failed": counts.failed,
        "running": counts.running,
        "pending": counts.pending,
        "waiting": counts.waiting,
        "cancelled": counts.cancelled,
    }
    return ", ".join(f"{number} {name}" for name, number in named.items() if number)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    return (
        f"{minutes // 60} h {minutes % 60:02} min"
        if minutes >= 60
        else f"{minutes}:{rest:02}"
        if minutes
        else f"{whole} s"
    )


def _words(tag: str) -> str:
    return tag.replace("_", " ").capitalize()
