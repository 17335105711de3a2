"""How a batch went over time, read from its recorded events: how fast documents finished, how long stages took."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from durable_batches.lifecycle.events import (
    LAST_EVENT_TAGS,
    BatchEvent,
    DocumentCompleted,
    DocumentFailed,
    DocumentReleased,
    DocumentRetrying,
    DocumentStarted,
    DocumentSuspended,
    StageProgress,
)
from durable_batches.lifecycle.primitives import Value, from_micros, to_micros
from durable_batches.lifecycle.records import Micros

__all__ = ["StageTime", "Timeline", "TimelineFold", "TimelinePoint"]

_MOST_POINTS: Final = 120
_NARROWEST: Final = 100_000
"""Of a point, in microseconds."""
_KEPT: Final = 1_000
"""Documents of a stage that are kept for its times."""
_SECOND: Final = 1_000_000


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class StageTime(Value):
    """How long documents were in one stage: from the event of entering it to that of leaving it, waits included."""

    stage: str
    documents: int
    """Those that were counted: the latest 1,000 at most that have left it. Failed ones never leave theirs."""
    median_seconds: float | None
    """None: no document was counted."""
    p95_seconds: float | None
    longest_seconds: float | None


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class TimelinePoint(Value):
    """A span of time: it reaches to the next point, or to the end of the timeline."""

    at: datetime
    """When it begins."""
    finished: int
    """Documents that have succeeded or failed in it."""
    documents_per_second: float
    running: int
    """The most documents that ran at one moment of it."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Timeline(Value):
    """How a batch went, by its events up to `seq`."""

    batch_id: str
    seq: int
    """The last event that was counted."""
    after: int
    """The event before the first one that was counted; 0: all were."""
    width_seconds: float
    """Of a point; the last one may be shorter."""
    points: Sequence[TimelinePoint]
    """At most 120, without a gap; the longer a batch takes, the wider they are."""
    until: datetime | None
    """The end of the last point; None: there is none."""
    stages: Sequence[StageTime]
    """Of every stage, in order."""


class TimelineFold:
    """Counts the events of a batch, in order and each once; it keeps an entry for each document that runs.

    Args:
        after: The event before the first one that will be added; 0: all will be.
    """

    def __init__(self, after: int = 0) -> None:
        self.after: int = after
        self.seq: int = after
        self._width = _NARROWEST
        self._start = self._end = 0
        self._points: list[list[int]] = []
        """Of each point: documents that finished, those that run at its end, and the most that ran at one moment."""
        self._running: set[str] = set()
        self._before = 0
        """Documents that ran already before the first event."""
        self._net = 0
        self._entered: dict[str, tuple[str, int]] = {}
        self._times: dict[str, deque[int]] = {}

    def add(self, event: BatchEvent) -> None:
        """Count an event: the one that follows `seq`."""
        self.seq = event.seq
        at = to_micros(event.at)
        finished = 0
        match event:
            case DocumentStarted():
                self._running.add(event.document_id)
                self._net += 1
            case StageProgress():
                self._leave_stage(event.document_id, at)
                self._entered[event.document_id] = (event.stage, at)
            case DocumentCompleted():
                finished = 1
                self._leave_stage(event.document_id, at)
                self._stop(event.document_id)
            case DocumentFailed():
                finished = 1
                self._entered.pop(event.document_id, None)
                self._stop(event.document_id)
            case DocumentRetrying() | DocumentReleased() | DocumentSuspended():
                self._stop(event.document_id)
            case _ if event.tag in LAST_EVENT_TAGS:
                # What has not ended by itself has no event of its own.
                self._entered.clear()
                self._running.clear()
                self._net = -self._before
            case _:
                pass
        self._count(at, finished)

    def timeline(self, batch_id: str, stages: Sequence[str], until: Micros | None = None) -> Timeline:
        """Return how the batch went: to its last event, or, where it goes on, to a moment after that."""
        if until is not None and self._points and until > self._end:
            # What is still to be added may be from before that moment, by the clock of another machine.
            fold = copy(self)
            fold._points = [list(point) for point in self._points]
            fold._count(until, 0)
            return fold.timeline(batch_id, stages)
        return Timeline(
            batch_id=batch_id,
            seq=self.seq,
            after=self.after,
            width_seconds=self._width / _SECOND,
            points=[self._point(index) for index in range(len(self._points))],
            until=from_micros(self._end) if self._points else None,
            stages=[_stage_time(stage, self._times.get(stage, ())) for stage in stages],
        )

    def _leave_stage(self, document_id: str, at: int) -> None:
        stage, since = self._entered.pop(document_id, (None, 0))
        if stage is not None:
            self._times.setdefault(stage, deque(maxlen=_KEPT)).append(at - since)

    def _stop(self, document_id: str) -> None:
        if document_id in self._running:
            self._running.remove(document_id)
            self._net -= 1
        elif self.after:
            self._before += 1
            self._net -= 1

    def _count(self, at: int, finished: int) -> None:
        if not self._points:
            self._start = at
            self._points.append([0, 0, 0])
        self._end = at
        while (index := (at - self._start) // self._width) >= _MOST_POINTS:
            self._points = [_joined(self._points[first : first + 2]) for first in range(0, len(self._points), 2)]
            self._width *= 2
        while len(self._points) <= index:
            running = self._points[-1][1]
            self._points.append([0, running, running])
        point = self._points[index]
        point[0] += finished
        point[1] = self._net
        point[2] = max(point[2], self._net)

    def _point(self, index: int) -> TimelinePoint:
        finished, _, running = self._points[index]
        start = self._start + index * self._width
        counted, since = finished, start
        if index == len(self._points) - 1 and index:
            # Of a point that has only begun, the rate would be anything: that of the one before is in it.
            counted, since = finished + self._points[index - 1][0], start - self._width
        span = min(self._end, start + self._width) - since
        return TimelinePoint(
            at=from_micros(start),
            finished=finished,
            documents_per_second=counted * _SECOND / max(span, _NARROWEST),
            running=max(running + self._before, 0),
        )


def _joined(points: Sequence[list[int]]) -> list[int]:
    return [sum(point[0] for point in points), points[-1][1], max(point[2] for point in points)]


def _stage_time(stage: str, micros: Sequence[int]) -> StageTime:
    times = sorted(micros)
    if not times:
        return StageTime(stage=stage, documents=0, median_seconds=None, p95_seconds=None, longest_seconds=None)
    count = len(times)
    return StageTime(
        stage=stage,
        documents=count,
        median_seconds=(times[(count - 1) // 2] + times[count // 2]) / 2 / _SECOND,
        # The nearest rank: a time that a document had.
        p95_seconds=times[(95 * count + 99) // 100 - 1] / _SECOND,
        longest_seconds=times[-1] / _SECOND,
    )
