"""How a batch went over time, from its events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, TypeVar

import pytest

from durable_batches.lifecycle.events import (
    BatchCancelled,
    BatchEvent,
    DocumentCompleted,
    DocumentFailed,
    DocumentReleased,
    DocumentRetrying,
    DocumentStarted,
    DocumentSuspended,
    StageProgress,
)
from durable_batches.lifecycle.primitives import to_micros
from durable_batches.lifecycle.states import BatchId, Counts
from durable_batches.lifecycle.timeline import StageTime, Timeline, TimelineFold

START = datetime(2026, 1, 1, tzinfo=UTC)
NONE = Counts(pending=0, running=0, waiting=0, succeeded=0, failed=0, cancelled=0, total=0)

E = TypeVar("E", bound=BatchEvent)


class Script:
    """Events at given seconds, numbered as they come."""

    def __init__(self, after: int = 0) -> None:
        self.fold = TimelineFold(after)

    def at(self, seconds: float, kind: type[E], **fields: Any) -> None:
        moment = START + timedelta(seconds=seconds)
        self.fold.add(kind(batch_id=BatchId("b"), seq=self.fold.seq + 1, at=moment, **fields))

    def start(self, seconds: float, document: str) -> None:
        self.at(seconds, DocumentStarted, document_id=document, attempt=1)

    def enter(self, seconds: float, document: str, stage: str) -> None:
        self.at(seconds, StageProgress, document_id=document, stage=stage, current=1, total=1, percentage=0.0)

    def complete(self, seconds: float, document: str) -> None:
        self.at(seconds, DocumentCompleted, document_id=document, percentage=0.0)

    def timeline(self, until: float | None = None) -> Timeline:
        micros = None if until is None else to_micros(START + timedelta(seconds=until))
        return self.fold.timeline("b", ["read", "think"], micros)


def times(timeline: Timeline, stage: str) -> tuple[int, float | None, float | None, float | None]:
    (found,) = [each for each in timeline.stages if each.stage == stage]
    return found.documents, found.median_seconds, found.p95_seconds, found.longest_seconds


def running(timeline: Timeline) -> Sequence[int]:
    return [point.running for point in timeline.points]


def test_nothing_has_happened() -> None:
    nothing = StageTime(stage="read", documents=0, median_seconds=None, p95_seconds=None, longest_seconds=None)
    found = Script().timeline(until=5)
    assert (found.points, found.until, found.seq, found.after) == ([], None, 0, 0)
    assert found.stages[0] == nothing


def test_a_stage_is_left_for_the_next_one_or_by_the_end_of_the_document() -> None:
    script = Script()
    script.enter(0, "a", "read")
    script.enter(1.5, "a", "think")
    script.enter(2, "b", "read")
    script.complete(4, "a")
    assert times(script.timeline(), "read") == (1, 1.5, 1.5, 1.5)
    assert times(script.timeline(), "think") == (1, 2.5, 2.5, 2.5)


def test_waits_for_a_retry_count_and_failed_documents_do_not() -> None:
    script = Script()
    script.start(0, "a")
    script.enter(0, "a", "read")
    script.at(1, DocumentRetrying, document_id="a", failures=1, due=START, error="")
    script.start(61, "a")
    script.enter(62, "a", "think")
    script.at(63, DocumentFailed, document_id="a", error="", percentage=0.0)
    script.complete(64, "a")
    assert times(script.timeline(), "read") == (1, 62, 62, 62)
    assert times(script.timeline(), "think") == (0, None, None, None)


def test_a_median_and_a_percentile_are_of_what_was_recorded() -> None:
    script = Script()
    seconds = [*range(1, 41)]
    Random(7).shuffle(seconds)
    for number in seconds:
        script.enter(0, str(number), "read")
    for number in sorted(seconds):
        script.complete(number, str(number))
    assert times(script.timeline(), "read") == (40, 20.5, 38, 40)


def test_the_latest_thousand_documents_are_kept() -> None:
    script = Script()
    for number in range(1_001):
        script.enter(number, str(number), "read")
        script.complete(number + (500 if number == 0 else 0.25), str(number))
    assert times(script.timeline(), "read") == (1_000, 0.25, 0.25, 0.25)


def test_points_count_what_finished_and_what_ran() -> None:
    script = Script()
    script.start(0, "a")
    script.start(0.05, "b")
    script.start(0.12, "c")
    script.complete(0.25, "a")
    script.at(0.41, DocumentFailed, document_id="b", error="", percentage=0.0)
    found = script.timeline()
    assert found.width_seconds == 0.1
    assert [point.finished for point in found.points] == [0, 0, 1, 0, 1]
    assert running(found) == [2, 3, 3, 2, 2]
    assert [point.documents_per_second for point in found.points][:4] == [0, 0, 10, 0]
    # The last one has just begun: 1 in it and none before, in 0.11 seconds.
    assert found.points[-1].documents_per_second == pytest.approx(1 / 0.11)
    assert found.until == START + timedelta(seconds=0.41)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (DocumentRetrying, {"failures": 1, "due": START, "error": ""}),
        (DocumentReleased, {"reason": "crash", "crashes": 1}),
        (DocumentSuspended, {"waits_for": (), "due": None}),
        (DocumentFailed, {"error": "", "percentage": 0.0}),
        (DocumentCompleted, {"percentage": 0.0}),
    ],
)
def test_what_is_given_back_does_not_run(kind: type[Any], fields: dict[str, Any]) -> None:
    script = Script()
    script.start(0, "a")
    script.at(0.3, kind, document_id="a", **fields)
    script.start(0.5, "a")
    assert running(script.timeline()) == [1, 1, 1, 1, 0, 1]


def test_nothing_runs_after_the_end_of_a_run() -> None:
    script = Script()
    script.start(0, "a")
    script.enter(0, "a", "read")
    script.at(0.2, BatchCancelled, counts=NONE, reason="")
    script.start(0.4, "a")
    script.enter(0.5, "a", "read")
    assert running(script.timeline()) == [1, 1, 1, 0, 1, 1]
    script.complete(0.7, "a")
    # Not since the run that was cancelled.
    assert times(script.timeline(), "read") == (1, 0.2, 0.2, 0.2)


def test_documents_that_ran_before_the_first_event_are_counted_once_they_stop() -> None:
    script = Script(after=1_000)
    script.start(0, "a")
    script.complete(0.1, "earlier")
    script.complete(0.2, "a")
    found = script.timeline()
    assert (found.after, found.seq) == (1_000, 1_003)
    assert running(found) == [2, 2, 1]
    # A document that fails without having been started, of a batch all of whose events are known.
    whole = Script()
    whole.start(0, "a")
    whole.at(0.1, DocumentFailed, document_id="late", error="", percentage=0.0)
    assert running(whole.timeline()) == [1, 1]


def test_a_timeline_goes_on_to_now_and_can_be_read_again() -> None:
    script = Script()
    script.start(0, "a")
    script.complete(0.05, "a")
    assert running(script.timeline(until=0.35)) == [1, 0, 0, 0]
    assert script.timeline(until=1_000).width_seconds == pytest.approx(12.8)
    # Neither has changed anything, and a clock that is behind changes nothing either.
    assert script.timeline(until=-5) == script.timeline()
    assert len(script.timeline().points) == 1


def scripts() -> Iterator[tuple[int, Script, Sequence[float]]]:
    for seed in range(20):
        random = Random(seed)
        moments = sorted(random.expovariate(1) * 10 ** random.uniform(-2, 4) for _ in range(300))
        script = Script()
        script.start(0, "0")
        for number, moment in enumerate(moments):
            script.complete(moment, str(number))
        yield seed, script, moments


def test_points_are_few_without_a_gap_and_forget_nothing() -> None:
    for seed, script, moments in scripts():
        found = script.timeline()
        assert len(found.points) <= 120, seed
        # Not wider than it takes.
        assert len(found.points) > 60 or found.width_seconds == 0.1, seed
        width = timedelta(seconds=found.width_seconds)
        for index, point in enumerate(found.points):
            assert point.at == START + index * width, seed
            start, end = (point.at - START).total_seconds(), (point.at + width - START).total_seconds()
            # One runs until the first of them finishes.
            assert point.running == (start <= round(moments[0], 6)), (seed, index)
            assert point.finished == sum(start <= round(moment, 6) < end for moment in moments), (seed, index)
        assert sum(point.finished for point in found.points) == len(moments), seed
