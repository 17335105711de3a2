"""The log of the last minute behind a bucket, at its edges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.properties import modest

from durable_batches.flow.bucket import WINDOW_SECONDS, WindowedBucket


def drained(limit: float) -> WindowedBucket:
    """A bucket of which all was taken at 0."""
    bucket = WindowedBucket(limit)
    bucket.take(0.0, limit)
    return bucket


def test_what_was_taken_comes_back_a_window_later_and_not_before() -> None:
    bucket = drained(100)
    assert bucket.available(WINDOW_SECONDS - 0.001) == 0
    assert bucket.available(WINDOW_SECONDS) == 100
    assert drained(100).ready_at(1.0, 1) == WINDOW_SECONDS


def test_what_is_larger_than_the_bucket_passes_and_leaves_a_debt() -> None:
    bucket = WindowedBucket(100)
    assert bucket.ready_at(0.0, 50) == 0.0
    bucket.take(0.0, 50)
    # The debt of 48 and the next one's own 1, at 100 a window.
    assert bucket.ready_at(0.0, 1) == pytest.approx(0.49 * WINDOW_SECONDS)
    assert bucket.ready_at(0.0, 100) == pytest.approx(WINDOW_SECONDS)


def test_it_is_spread_over_the_minute() -> None:
    bucket = WindowedBucket(100)
    for _ in range(2):
        assert bucket.ready_at(0.0, 1) == 0.0
        bucket.take(0.0, 1)
    assert bucket.ready_at(0.0, 1) == pytest.approx(WINDOW_SECONDS / 100)
    assert bucket.ready_at(0.0, 1, ahead=9) == pytest.approx(WINDOW_SECONDS / 10)


def test_given_back_it_can_be_taken_again_unless_its_minute_is_over() -> None:
    bucket = WindowedBucket(100)
    taken = bucket.take(0.0, 60)
    bucket.give_back(1.0, taken, 50)
    assert bucket.available(1.0) == 90
    bucket.give_back(2 * WINDOW_SECONDS, taken, 10)
    assert bucket.available(2 * WINDOW_SECONDS) == 100


def test_after_a_long_time_there_is_no_more_than_at_first() -> None:
    bucket = drained(100)
    assert bucket.available(1e7) == 100
    bucket.take(1e7, 2)
    assert bucket.ready_at(1e7, 1) > 1e7


def test_a_lowered_limit_lets_through_what_is_larger_in_a_minute_of_its_own() -> None:
    bucket = WindowedBucket(100)
    bucket.factor = 0.1
    bucket.take(0.0, 1)
    assert bucket.ready_at(0.0, 80) == pytest.approx(WINDOW_SECONDS)
    bucket.set_limit(1_000)
    assert bucket.limit == 100


@modest(60)
@given(st.lists(st.floats(0, 0.2), min_size=5, max_size=60), st.floats(WINDOW_SECONDS - 1, WINDOW_SECONDS + 1))
def test_merged_entries_let_no_window_see_more(gaps: list[float], pause: float) -> None:
    """Many at short distances, a pause of about a window, and the same again."""
    bucket = WindowedBucket(30)
    now, moments = 0.0, list[float]()
    for _ in range(2):
        begun = now
        for gap in gaps:
            now += gap
            # Without the smoothing: only the log decides.
            if bucket.available(now) >= 1:
                bucket.take(now, 1)
                moments.append(now)
        now = max(now, begun + pause)
    assert all(sum(first <= each < first + WINDOW_SECONDS for each in moments) <= 30 for first in moments)
