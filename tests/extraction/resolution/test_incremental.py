from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import combinations
from random import Random
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from pydantic import ValidationError
from tests.properties import modest

from durable_batches import ConfigurationError
from durable_batches.extraction.resolution import Decision, IncrementalClusterer
from durable_batches.extraction.resolution.incremental import weight_at

RECORDS = "abcdefgh"
PAIRS = list(combinations(RECORDS, 2))
SCORED = st.dictionaries(st.sampled_from(PAIRS), st.floats(-30, 30), max_size=28)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def scored(weights: dict[tuple[str, str], float]) -> list[tuple[str, str, float]]:
    return [(a, b, weight) for (a, b), weight in weights.items()]


def members(clusterer: IncrementalClusterer) -> list[tuple[str, ...]]:
    return [cluster.members for cluster in clusterer.clusters()]


def test_a_later_batch_joins_and_the_cluster_keeps_its_id() -> None:
    monday = IncrementalClusterer()
    monday.add([("b", "c", 9.0)])
    (before,) = monday.clusters()
    tuesday = IncrementalClusterer(known=dict.fromkeys(before.members, before.id))
    tuesday.add([("b", "c", 9.0), ("a", "b", 8.0), ("a", "c", 8.0)])
    (after,) = tuesday.clusters()
    assert after.members == ("a", "b", "c")
    assert after.id == before.id


@modest(100)
@given(SCORED, st.integers(0, 28), st.integers(0, 1 << 30))
def test_two_batches_give_what_both_at_once_give(weights: dict[tuple[str, str], float], cut: int, seed: int) -> None:
    whole, parts = IncrementalClusterer(), IncrementalClusterer()
    whole.add(scored(weights))
    pairs = Random(seed).sample(scored(weights), len(weights))
    parts.add(pairs[:cut])
    list(parts.clusters())
    parts.add((b, a, weight) for a, b, weight in pairs[cut:])
    assert list(parts.clusters()) == list(whole.clusters())
    assert parts.refused() == whole.refused()


def test_a_split_holds_for_what_comes_later_and_its_undoing_gives_back_what_was() -> None:
    clusterer = IncrementalClusterer()
    clusterer.add([("a", "b", 9.0), ("x", "y", 9.0)])
    before = list(clusterer.clusters())
    clusterer.split("b", "a")
    assert members(clusterer) == [("x", "y")]
    assert clusterer.refused() == {("a", "b"): "decided"}
    clusterer.add([("a", "b", 20.0), ("a", "c", 9.0), ("b", "c", -20.0)])
    assert members(clusterer) == [("a", "c"), ("x", "y")]
    clusterer.remove("c")
    assert clusterer.undo("a", "b")
    assert not clusterer.undo("a", "b")
    assert list(clusterer.clusters()) == before


def test_two_records_are_joined_by_decision_and_what_is_joined_to_them() -> None:
    clusterer = IncrementalClusterer()
    clusterer.add([("a", "b", 9.0), ("c", "d", 9.0)])
    kept = clusterer.join("d", "a")
    assert members(clusterer) == [("a", "b", "c", "d")]
    later = IncrementalClusterer()
    later.add([("a", "b", 9.0), ("c", "d", 9.0)])
    later.decide(kept)
    assert members(later) == [("a", "b", "c", "d")]
    assert later.decisions == (kept,)


def test_the_later_of_two_decisions_holds_in_whatever_order_they_come() -> None:
    first = Decision(a="a", b="b", verdict="apart", at=NOON)
    second = Decision(a="b", b="a", verdict="together", at=NOON + timedelta(seconds=1))
    without_time = Decision(a="a", b="b", verdict="apart")
    for order in ([first, second, without_time], [second, without_time, first], [without_time, first, second]):
        clusterer = IncrementalClusterer()
        for decision in order:
            clusterer.decide(decision)
        assert clusterer.decisions == (second,)
        assert members(clusterer) == [("a", "b")]


def test_a_decision_is_on_two_records_and_its_time_has_a_zone() -> None:
    with pytest.raises(ValidationError, match="a decision is on two records"):
        Decision(a="a", b="a", verdict="apart")
    with pytest.raises(ValidationError, match="must have a zone"):
        Decision(a="a", b="b", verdict="apart", at=NOON.replace(tzinfo=None))


@pytest.mark.parametrize("pair", [("a", "a", 1.0), ("a", "b", float("nan")), ("a", "b", float("inf"))])
def test_a_pair_that_is_none_is_refused(pair: tuple[str, str, float]) -> None:
    with pytest.raises(ConfigurationError, match="a pair is of two records"):
        IncrementalClusterer().add([pair])


def test_the_threshold_is_a_probability() -> None:
    assert weight_at(0.5) == 0
    assert weight_at(0.8) == pytest.approx(2)
    weak = [("a", "b", 1.0)]
    for threshold, expected in ((0.5, [("a", "b")]), (0.9, [])):
        clusterer = IncrementalClusterer(threshold=threshold)
        clusterer.add(weak)
        assert members(clusterer) == expected
    for wrong in (0, 1, 1.5, -0.1, float("nan")):
        with pytest.raises(ConfigurationError, match="above 0 and below 1"):
            IncrementalClusterer(threshold=wrong)


class Histories(RuleBasedStateMachine):
    """Whatever happens in whatever order, the clusters are those of what holds at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.clusterer = IncrementalClusterer()
        self.weights: dict[tuple[str, str], float] = {}
        self.decisions: dict[tuple[str, str], Literal["apart", "together"]] = {}

    @rule(weights=SCORED)
    def add(self, weights: dict[tuple[str, str], float]) -> None:
        self.clusterer.add(scored(weights))
        self.weights |= weights

    @rule(gone=st.sets(st.sampled_from(RECORDS), max_size=2))
    def remove(self, gone: set[str]) -> None:
        self.clusterer.remove(gone)
        self.weights = {pair: weight for pair, weight in self.weights.items() if not gone & {*pair}}

    @rule(pair=st.sampled_from(PAIRS), verdict=st.sampled_from(["apart", "together"]))
    def decide(self, pair: tuple[str, str], verdict: Literal["apart", "together"]) -> None:
        (self.clusterer.split if verdict == "apart" else self.clusterer.join)(*pair)
        self.decisions[pair] = verdict

    @rule(pair=st.sampled_from(PAIRS))
    def undo(self, pair: tuple[str, str]) -> None:
        assert self.clusterer.undo(*pair) == (self.decisions.pop(pair, None) is not None)

    @invariant()
    def as_if_nothing_else_had_been(self) -> None:
        fresh = IncrementalClusterer()
        for (a, b), verdict in self.decisions.items():
            fresh.decide(Decision(a=a, b=b, verdict=verdict))
        fresh.add(scored(self.weights))
        assert list(self.clusterer.clusters()) == list(fresh.clusters())
        assert self.clusterer.refused() == fresh.refused()


TestHistories: Any = Histories.TestCase
TestHistories.settings = modest(60, steps=12)


def test_records_that_are_no_letters_are_ordered_as_texts() -> None:
    records: Sequence[str] = ("Ä", "10", "9", "李")
    clusterer = IncrementalClusterer()
    clusterer.add([(a, b, 5.0) for a, b in combinations(records, 2)])
    assert members(clusterer) == [tuple(sorted(records))]
