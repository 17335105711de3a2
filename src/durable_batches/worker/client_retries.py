"""Attempts of activities that are asleep within a client that retries by itself, as on a `Retry-After`.

Such a client sleeps inside of one attempt, where the library neither sees the refusal nor decides how long to wait. Few
clients log it, and those at a level that is not shown, in words that change. But where a coroutine waits can be seen:
it awaits `asyncio.sleep`, on behalf of code of an installed package that speaks of retries. Of a sync activity, the
frame that its thread is in shows the same. So nothing is imported or patched, and calls do nothing more for it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple

from durable_batches.clock import Clock
from durable_batches.errors import place_of
from durable_batches.lifecycle.records import ExecutionRecord
from durable_batches.runtime.call import RunningCall
from durable_batches.runtime.tracebacks import is_machinery
from durable_batches.version import DOCS_URL
from durable_batches.worker.code_origin import package_of
from durable_batches.worker.runner import HeldExecution

__all__ = ["ClientRetries"]

_log = logging.getLogger("durable_batches")

_LOOKS: Final = 5
"""In the time after which there is a warning."""

_DEEPEST: Final = 200
"""Frames of a call that are looked at."""

_RETRIES: Final = re.compile(r"retry|retries|retrier|retrying|backoff|tenacity", re.IGNORECASE)
_PAGE: Final = f"{DOCS_URL}how-to/turn-off-client-retries/"


class _Sleep(NamedTuple):
    """What a call is asleep in."""

    package: str
    """The installed package whose code it is."""
    seconds: float | None
    """For how long in all; None: not known."""
    place: tuple[int, int]
    """Where in the program: two looks that find the same one have found one sleep."""


class ClientRetries:
    """Warns of activities whose attempts are asleep within a client, of each activity once.

    Args:
        clock: The worker's.
        after: How long such a sleep is at least; None: there is no warning.
        running: Returns the executions whose calls these are.
    """

    def __init__(
        self, clock: Clock, *, after: timedelta | None, running: Callable[[], Sequence[HeldExecution]]
    ) -> None:
        self._clock = clock
        self._after = None if after is None else after.total_seconds()
        self._running = running
        self._next = clock.boot()
        self._warned: set[str] = set()
        self._since: dict[tuple[asyncio.Task[Any], tuple[int, int]], float] = {}
        """The sleeps whose length is not known, and when each was first seen."""

    def look(self) -> None:
        """Look for such sleeps, unless the last look was a moment ago; on the event loop."""
        now = self._clock.boot()
        if self._after is None or now < self._next:
            return
        self._next = now + self._after / _LOOKS
        before, self._since = self._since, {}
        frames: dict[int, FrameType] | None = None
        for held in self._running():
            for call in held.attempt.calls:
                if call.activity in self._warned:
                    continue
                if call.thread is None:
                    sleep = _sleep_of(call.task)
                else:
                    # Of all threads at once: it takes longer than to look at one.
                    frames = sys._current_frames() if frames is None else frames  # pyright: ignore[reportPrivateUsage]
                    sleep = _sleep_in(frames.get(call.thread))
                if sleep is None:
                    continue
                key = (call.task, sleep.place)
                since = self._since[key] = before.get(key, now)
                seconds = now - since if sleep.seconds is None else sleep.seconds
                if seconds >= self._after:
                    self._warned.add(call.activity)
                    _warn(held.attempt.execution, call, sleep.package, seconds)


def _warn(execution: ExecutionRecord, call: RunningCall, package: str, seconds: float) -> None:
    _log.warning(
        "activity %r in %s: its attempt %d is asleep for %.0f s within %r, which retries by itself: the document keeps "
        "its slot meanwhile, and the library can neither wait nor give up in its place. Turn these retries off: %s",
        call.activity,
        place_of(execution.batch_id, execution.document_id),
        call.attempt,
        seconds,
        package,
        _PAGE,
        extra={
            "batch_id": execution.batch_id,
            "document_id": execution.document_id,
            "activity": call.activity,
            "attempt": call.attempt,
            "package": package,
            "sleep_seconds": seconds,
        },
    )


def _sleep_of(task: asyncio.Task[Any]) -> _Sleep | None:
    """Find out whether a task is asleep within a client; it must not be running."""
    frames = list(_awaiting(task))
    if not frames or frames[-1].f_code is not asyncio.sleep.__code__:
        return None
    seconds: object = frames[-1].f_locals.get("delay")
    package = _client(reversed(frames[:-1]))
    if package is None or not isinstance(seconds, int | float):
        return None
    return _Sleep(package, seconds, (id(frames[-1]), 0))


def _awaiting(task: asyncio.Task[Any]) -> Iterator[FrameType]:
    """Go through the frames of a task that waits, each one awaiting the next, as far as they can be followed."""
    awaited: object = task.get_coro()
    for _ in range(_DEEPEST):
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if not isinstance(frame, FrameType):
            return
        yield frame
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)


def _sleep_in(innermost: FrameType | None) -> _Sleep | None:
    """Find out whether a thread may be asleep within a client: whether it is, the next looks tell."""
    # `time.sleep` has no frame of its own.
    if innermost is None or "sleep" not in innermost.f_code.co_names:
        return None
    package = _client([innermost])
    return None if package is None else _Sleep(package, None, (id(innermost), innermost.f_lasti))


def _client(frames: Iterable[FrameType]) -> str | None:
    """Return the installed package on whose behalf the first of these frames sleep; None: no client's retries."""
    for frame in frames:
        code = frame.f_code
        package = package_of(code.co_filename)
        if package in ("", "anyio"):
            # Between the client and the sleep.
            continue
        if not package or is_machinery(frame):
            return None
        return package if _speaks_of_retries(code) else None
    return None


def _speaks_of_retries(code: CodeType) -> bool:
    words = (code.co_filename.rpartition("site-packages")[2], code.co_qualname, *code.co_names, *code.co_varnames)
    return any(_RETRIES.search(word) for word in words)
