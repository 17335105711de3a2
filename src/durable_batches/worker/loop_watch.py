"""The loop watch: notices that the event loop does not turn, and which code keeps it from turning.

Code that blocks the event loop stops everything in its process: other documents, their timeouts, the service around
them. The watch is told each time that the loop turns. It has no thread of its own: that of the lease renewer looks, a
few times in the time after which there is a warning. So nothing is added to what runs on the event loop.

Code that keeps the interpreter's lock (a regular expression, say) also stops the thread that looks; such a block is
seen only if it ends in other code.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import FrameType
from typing import Any, Final, NamedTuple

from durable_batches.clock import Clock
from durable_batches.errors import place_of
from durable_batches.lifecycle.records import ExecutionRecord, WorkerId
from durable_batches.runtime.tracebacks import is_machinery
from durable_batches.worker.code_origin import INSTALLED, STANDARD
from durable_batches.worker.runner import HeldExecution
from durable_batches.worker.signals import LeaseSignals

__all__ = ["Block", "LoopWatch"]

_log = logging.getLogger("durable_batches")

_LOOKS: Final = 4
"""In the time after which there is a warning."""

_UNWATCHED_SECONDS: Final = 0.5
"""Between two looks where there is no warning."""

_LOOP_MODULES: Final = ("asyncio.base_events", "asyncio.events", "asyncio.runners", "asyncio.unix_events")
"""Of the event loop: what it has called comes after the last frame of these."""


class Block(NamedTuple):
    """A time in which the event loop did not turn, by the boot clock."""

    place: str
    """File, line and function: the innermost frame of code that is neither installed nor the standard library's."""
    since: float
    """When the loop turned last."""
    until: float | None
    """None: it does not turn yet."""


class LoopWatch:
    """Watches the event loop that it is created on.

    Args:
        worker: The session's id, for the log.
        clock: The worker's.
        after: How long the loop may stand still before there is a warning; None: there is none.
        tick: The time between two calls of `turns` while the loop turns.
        running: Returns the executions of which one may block the loop.
        signals: Fired for tests.
    """

    def __init__(
        self,
        worker: WorkerId,
        clock: Clock,
        *,
        after: timedelta | None,
        tick: float,
        running: Callable[[], Sequence[HeldExecution]],
        signals: LeaseSignals,
    ) -> None:
        self._worker = worker
        self._clock = clock
        self._after = None if after is None else after.total_seconds()
        self._tick = tick
        self._running = running
        self._signals = signals
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._late: tuple[float, float] | None = None
        """When the loop turned last, and when that was first seen to be too long ago."""
        self._places: set[str] = set()
        self.turned: float = clock.boot()
        """When the loop turned last."""
        self.block: Block | None = None
        """The last one; None: there was none yet."""

    @property
    def pause(self) -> float:
        """Seconds between two looks."""
        return _UNWATCHED_SECONDS if self._after is None else self._after / _LOOKS

    def turns(self) -> None:
        """Take note that the event loop turns."""
        self.turned = self._clock.boot()

    def look(self) -> bool:
        """Look whether the event loop turns, from another thread; return whether that has changed."""
        now, turned, block = self._clock.boot(), self.turned, self.block
        if block is not None and block.until is None:
            if turned == block.since:
                return False
            self.block = block._replace(until=turned)
            self._log_end(turned - block.since)
            return True
        if self._after is None or now - turned < self._after + self._tick:
            self._late = None
            return False
        if self._late is None or self._late[0] != turned:
            self._late = (turned, now)
            return False
        if now - self._late[1] < self.pause / 2:
            # A clock that was moved on, or a process that was stopped: the loop has had no time to turn.
            return False
        # Documented for just this, in spite of its name.
        innermost = sys._current_frames().get(self._thread)  # pyright: ignore[reportPrivateUsage]
        frames = _called_by_the_loop(innermost)
        if not frames:
            # It waits for something to do, and is about to turn.
            return False
        self.block = Block(_place(frames), turned, None)
        self._warn(self.block.place, frames, now - turned)
        self._signals.blocked.fire(self.block)
        return True

    def _warn(self, place: str, frames: Sequence[FrameType], seconds: float) -> None:
        """Log the place with its stack; once, since it is passed for each document. A program has a limited number."""
        if place in self._places:
            return
        self._places.add(place)
        stack = "".join(traceback.StackSummary.extract((frame, frame.f_lineno or 0) for frame in frames).format())
        execution, activity = self._blocking(asyncio.current_task(self._loop))
        if execution is None:
            code = "code"
        else:
            where = place_of(execution.batch_id, execution.document_id)
            code = f"the workflow of {where}" if activity is None else f"activity {activity!r} in {where}"
        _log.warning(
            "event loop of worker %s blocked for %.1f s: %s does not let it turn, at %s; a sync activity and "
            "asyncio.to_thread() run such code in a thread\n%s",
            self._worker,
            seconds,
            code,
            place,
            stack.rstrip(),
            extra={
                "worker_id": self._worker,
                "blocked_seconds": seconds,
                "place": place,
                "activity": activity,
                "batch_id": None if execution is None else execution.batch_id,
                "document_id": None if execution is None else execution.document_id,
            },
        )

    def _blocking(self, task: asyncio.Task[Any] | None) -> tuple[ExecutionRecord | None, str | None]:
        """Find the execution that the task runs, and its activity; None: neither, or the workflow's own code."""
        for held in self._running() if task is not None else ():
            attempt = held.attempt
            for call in attempt.calls:
                if call.task is task:
                    return attempt.execution, call.activity
            if attempt.task is task:
                return attempt.execution, None
        return None, None

    def _log_end(self, seconds: float) -> None:
        _log.info(
            "event loop of worker %s turns again after %.1f s",
            self._worker,
            seconds,
            extra={"worker_id": self._worker, "blocked_seconds": seconds},
        )


def _called_by_the_loop(innermost: FrameType | None) -> Sequence[FrameType]:
    """List the frames of what the loop has called, from the user's first one on; none: the loop itself waits."""
    frames: list[FrameType] = []
    frame = innermost
    while frame is not None and _module_of(frame) not in _LOOP_MODULES:
        frames.append(frame)
        frame = frame.f_back
    frames.reverse()
    if not frames or _module_of(frames[0]) == "selectors":
        return ()
    first = next((number for number, frame in enumerate(frames) if not is_machinery(frame)), 0)
    return frames[first:]


def _place(frames: Sequence[FrameType]) -> str:
    """Name the innermost frame that is the user's; where none is, one that is not the standard library's, or any."""
    found = _innermost(frames, (*INSTALLED, *STANDARD)) or _innermost(frames, STANDARD) or frames[-1]
    code = found.f_code
    # A name of a file need not be valid text.
    return f"{code.co_filename}:{found.f_lineno} in {code.co_qualname}".encode(errors="replace").decode()


def _innermost(frames: Sequence[FrameType], folders: tuple[str, ...]) -> FrameType | None:
    """Find the innermost frame of code that is in none of these folders, and not the library's."""
    for frame in reversed(frames):
        if not frame.f_code.co_filename.startswith((*folders, "<frozen")) and not is_machinery(frame):
            return frame
    return None


def _module_of(frame: FrameType) -> str:
    name: object = frame.f_globals.get("__name__", "")
    return name if isinstance(name, str) else ""
