"""States and events as values, and moments as the records keep them."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.properties import modest

from durable_batches import (
    BatchCompleted,
    BatchId,
    Chunking,
    Completed,
    Counts,
    ExtractingMentions,
    Pending,
    Resolving,
    Stage,
)
from durable_batches.lifecycle.primitives import from_micros, to_micros

# ---- values --------------------------------------------------------------------------------------------------------


def test_a_value_shows_what_it_holds() -> None:
    assert repr(Chunking(done=1, total=3)) == "Chunking(done=1, total=3, tag='chunking')"
    assert eval(repr(Pending(total=3))) == Pending(total=3)


def test_values_are_equal_by_class_and_content() -> None:
    counts = Counts(total=2, succeeded=2)
    assert Chunking(done=1, total=3) == Chunking(done=1, total=3)
    assert Chunking(done=1, total=3) != Chunking(done=2, total=3)
    assert Chunking(done=1, total=3) != ExtractingMentions(done=1, total=3)
    assert Resolving(counts=counts) != Completed(counts=counts)
    assert Pending(total=3) != 3


def test_equal_values_count_once() -> None:
    counts = Counts(total=2, succeeded=2)
    values = {Chunking(done=1, total=3), Chunking(done=1, total=3), Chunking(done=3, total=1), Completed(counts=counts)}
    assert len(values) == 3
    assert Completed(counts=Counts(total=2, succeeded=2)) in values
    assert len({hash(Pending(total=total)) for total in range(100)}) > 1, "a hash that tells values apart"


class Mine(Stage):
    tag: Literal["mine"] = "mine"


@pytest.mark.parametrize(
    "value",
    [
        BatchCompleted(batch_id=BatchId("batch"), seq=1, at=from_micros(0), counts=Counts()),
        Completed(counts=Counts()),
        Mine(done=1, total=3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_are_frozen(value: object) -> None:
    for name in vars(value):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, None)


def test_values_are_made_by_name() -> None:
    stage: Any = Mine
    with pytest.raises(TypeError):
        stage("mine", done=1, total=3)


def test_counts_tell_what_has_ended() -> None:
    counts = Counts(total=63, pending=1, running=2, waiting=4, succeeded=8, failed=16, cancelled=32)
    assert (counts.unfinished, counts.ended) == (7, 56)


# ---- moments -------------------------------------------------------------------------------------------------------


def test_a_moment_is_counted_from_the_epoch() -> None:
    assert to_micros(datetime(1970, 1, 1, tzinfo=UTC)) == 0
    assert to_micros(datetime(1970, 1, 2, 0, 0, 1, 7, tzinfo=UTC)) == 86_401_000_007
    assert to_micros(datetime(1970, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))) == 0


@given(st.datetimes(timezones=st.just(UTC)))
@modest(100)
def test_moments_are_exact_both_ways(moment: datetime) -> None:
    micros = to_micros(moment)
    assert isinstance(micros, int)
    assert from_micros(micros) == moment
    assert from_micros(micros).tzinfo is UTC
