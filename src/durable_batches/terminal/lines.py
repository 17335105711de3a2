"""The progress of a batch as lines of text: for logs, and for terminals without bars."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterable, Callable
from contextlib import suppress
from typing import Final, TextIO, TypeVar

from durable_batches.lifecycle.progress import BatchSnapshot
from durable_batches.lifecycle.states import ENDED_TAGS, Counts, Stage
from durable_batches.printable import printable, printable_lines

__all__ = [
    "counts_text",
    "duration_text",
    "follow_in_lines",
    "is_terminal",
    "leave_stderr",
    "numbers_of",
    "print_line",
    "status_line",
    "title_of",
]

_MIN_INTERVAL_SECONDS: Final = 2.0
_MAX_INTERVAL_SECONDS: Final = 300.0
_INTERVAL_SHARE: Final = 0.1

S = TypeVar("S", bound=Stage)


def print_line(text: str) -> None:
    """Print a line, or several, on stderr, with escapes for what drives a terminal.

    A stderr that is closed does not stop the work.
    """
    if sys.stderr is None:
        return
    with suppress(OSError, ValueError):
        try:
            print(f"durable-batches: {printable_lines(text)}", file=sys.stderr, flush=True)
        except BrokenPipeError:
            leave_stderr()


def leave_stderr() -> None:
    """Have what is written to stderr go nowhere, once its reader has left.

    The interpreter flushes it when it ends, and would exit with 120 for what it cannot write.
    """
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stderr.fileno())
        os.close(nowhere)


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether the stream is a terminal that is open."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        # It is closed.
        return False


async def follow_in_lines(
    snapshots: AsyncIterable[BatchSnapshot[S]], write: Callable[[str], object]
) -> BatchSnapshot[S] | None:
    """Write a line for the first and the last snapshot, and some in between; return the last snapshot."""
    latest: BatchSnapshot[S] | None = None
    now = asyncio.get_running_loop().time
    began = due = now()
    async for latest in snapshots:
        if now() >= due or latest.state.tag in ENDED_TAGS:
            # Less and less often, so that the log of a long run stays short.
            due = now() + min(max(_MIN_INTERVAL_SECONDS, _INTERVAL_SHARE * (now() - began)), _MAX_INTERVAL_SECONDS)
            write(status_line(latest))
    return latest


def status_line(snapshot: BatchSnapshot[S]) -> str:
    """Return the state and the numbers of a batch in one line."""
    return f"{title_of(snapshot.state.tag).lower():22} {numbers_of(snapshot)}"


def numbers_of(snapshot: BatchSnapshot[S]) -> str:
    """Return percentage, counts, rate and the remaining time at that rate."""
    counts = snapshot.counts
    parts = [
        f"{snapshot.percentage:3.0f} %",
        f"{counts.ended}/{counts.total} documents",
        counts_text(counts),
        pause_text(snapshot),
    ]
    rate = snapshot.documents_per_second
    if rate:
        parts.append(f"{rate:.1f}/s")
        if counts.unfinished:
            parts.append(f"ETA {duration_text(counts.unfinished / rate)}")
    return "  ".join(part for part in parts if part)


def title_of(tag: str) -> str:
    """Return a state's tag as a title: `extracting_mentions` as "Extracting mentions"."""
    return printable(tag).replace("_", " ").capitalize()


def pause_text(snapshot: BatchSnapshot[S]) -> str:
    """Say why a batch is paused, and until when, in local time; empty if it is not."""
    if not snapshot.paused:
        return ""
    pauses = (
        f"{pause.reason}, until {pause.until.astimezone():%H:%M:%S}" if pause.until is not None else pause.reason
        for pause in snapshot.pauses
    )
    reasons = "; ".join(pauses)
    return f"paused ({reasons})" if reasons else "paused"


def counts_text(counts: Counts) -> str:
    """Return the counts that are not 0, with their names."""
    named = {
        "succeeded": counts.succeeded,
        "failed": counts.failed,
        "running": counts.running,
        "pending": counts.pending,
        "waiting": counts.waiting,
        "cancelled": counts.cancelled,
    }
    return ", ".join(f"{number} {name}" for name, number in named.items() if number)


def duration_text(seconds: float) -> str:
    """Return a duration as a person would say it."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    return (
        f"{minutes // 60} h {minutes % 60:02} min"
        if minutes >= 60
        else f"{minutes}:{rest:02}"
        if minutes
        else f"{whole} s"
    )
