"""A batch as it moves, in lines of text: for logs, and for terminals without bars."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterable, Callable
from contextlib import suppress
from typing import Final, TextIO, TypeVar

from durable_batches.lifecycle.progress import BatchSnapshot
from durable_batches.lifecycle.states import ENDED_TAGS, Counts, Stage

__all__ = ["follow_in_lines", "is_terminal", "numbers_of", "say", "status_line", "words"]

_LEAST_SECONDS: Final = 2.0
_MOST_SECONDS: Final = 300.0
_SHARE: Final = 0.1

S = TypeVar("S", bound=Stage)


def say(text: str) -> None:
    """Write a line to stderr. Where nobody reads it any more, the work goes on all the same."""
    if sys.stderr is None:
        return
    with suppress(OSError, ValueError):
        print(f"durable-batches: {text}", file=sys.stderr, flush=True)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody is watching."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        # It is closed.
        return False


async def follow_in_lines(
    snapshots: AsyncIterable[BatchSnapshot[S]], write: Callable[[str], object]
) -> BatchSnapshot[S] | None:
    """Write a line about the first snapshot, about the last, and now and then in between; return the last one."""
    latest: BatchSnapshot[S] | None = None
    now = asyncio.get_running_loop().time
    began = due = now()
    async for latest in snapshots:
        if now() >= due or latest.state.tag in ENDED_TAGS:
            # The longer it takes, the less often: what a night has left in a log is to be read in the morning.
            due = now() + min(max(_LEAST_SECONDS, _SHARE * (now() - began)), _MOST_SECONDS)
            write(status_line(latest))
    return latest


def status_line(snapshot: BatchSnapshot[S]) -> str:
    """The batch in one line."""
    return f"{words(snapshot.state.tag).lower():22} {numbers_of(snapshot)}"


def numbers_of(snapshot: BatchSnapshot[S]) -> str:
    """The batch in numbers: percentage, counts, rate and the time that is left at that rate."""
    counts = snapshot.counts
    parts = [
        f"{snapshot.percentage:3.0f} %",
        f"{counts.ended}/{counts.total} documents",
        _count_words(counts),
        "paused" if snapshot.paused else "",
    ]
    rate = snapshot.documents_per_second
    if rate:
        parts.append(f"{rate:.1f}/s")
        if counts.unfinished:
            parts.append(f"ETA {_duration(counts.unfinished / rate)}")
    return "  ".join(part for part in parts if part)


def words(tag: str) -> str:
    """A state's tag for people."""
    return tag.replace("_", " ").capitalize()


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
