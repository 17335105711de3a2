from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, permutations, product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.properties import modest

from durable_batches.extraction.resolution.clustering import ClusteringRules, Grouping, Pair, components, group

RULES = ClusteringRules()


def groups(
    weights: Mapping[Pair, float], *, apart: Sequence[Pair] = (), together: Sequence[Pair] = ()
) -> list[list[int]]:
    members = {member for pair in (*weights, *apart, *together) for member in pair}
    return [list(one) for one in group(members, weights, RULES, apart=apart, together=together).groups]


def plainly(
    members: Sequence[int], weights: Mapping[Pair, float], apart: Sequence[Pair], together: Sequence[Pair]
) -> list[list[int]]:
    """The same rules, each time computed anew from all pairs: what the clustering must agree with."""
    found = [[member] for member in sorted(members)]

    def between(one: list[int], other: list[int]) -> list[Pair]:
        return [(min(a, b), max(a, b)) for a in one for b in other]

    def mean(one: list[int], other: list[int]) -> float:
        pairs = between(one, other)
        if any(pair in apart for pair in pairs):
            return -math.inf
        clamped = [max(-20.0, min(weights[pair], 20.0)) for pair in pairs if pair in weights]
        return sum(clamped) / len(clamped) if clamped else 0.0

    def best(one: list[int], other: list[int]) -> float:
        return max(
            (weights[pair] for pair in between(one, other) if pair in weights and pair not in apart), default=-math.inf
        )

    def rival(one: list[int], other: list[int], weight: float) -> bool:
        return any(
            best(one, third) >= max(weight - RULES.margin, RULES.cut) and mean(third, other) < RULES.against
            for third in found
            if third not in (one, other)
        )

    def merge(one: list[int], other: list[int]) -> None:
        found.remove(one)
        found.remove(other)
        found.append(sorted(one + other))
        found.sort()

    def of(member: int) -> list[int]:
        return next(one for one in found if member in one)

    for a, b in sorted(together):
        one, other = of(a), of(b)
        if one != other and mean(one, other) != -math.inf:
            merge(one, other)
    joined = True
    while joined:
        joined = False
        for pair in sorted(
            (pair for pair in weights if weights[pair] >= RULES.cut), key=lambda pair: (-weights[pair], pair)
        ):
            one, other = of(pair[0]), of(pair[1])
            weight = weights[pair]
            if one == other or mean(one, other) < 0 or rival(one, other, weight) or rival(other, one, weight):
                continue
            merge(one, other)
            joined = True
    return found


def test_a_vague_record_is_no_bridge_between_two_people() -> None:
    # 0 is "J. Wang"; 1 and 2 are "Jing Wang" and "Jun Wang".
    assert groups({(0, 1): 4.0, (0, 2): 4.5, (1, 2): -8.0}) == [[0], [1], [2]]
    assert group((0, 1, 2), {(0, 1): 4.0, (0, 2): 4.5, (1, 2): -8.0}, RULES).refused == {
        (0, 1): "ambiguous",
        (0, 2): "ambiguous",
    }


def test_a_record_that_fits_one_much_better_joins_that_one() -> None:
    weights = {(0, 1): 4.0, (0, 2): 14.0, (1, 2): -8.0}
    assert groups(weights) == [[0, 2], [1]]
    assert group((0, 1, 2), weights, RULES).refused == {(0, 1): "contradicted"}


def test_a_chain_ends_where_its_ends_contradict_each_other() -> None:
    chain = {(n, n + 1): 5.0 for n in range(5)} | {(a, b): -9.0 for a, b in combinations(range(6), 2) if b > a + 1}
    assert max(map(len, groups(chain))) <= 2


def test_what_agrees_in_all_pairs_is_one_and_pairs_that_nobody_scored_say_nothing() -> None:
    assert groups(dict.fromkeys(combinations(range(5), 2), 3.0)) == [[0, 1, 2, 3, 4]]
    assert groups({(0, 1): 3.0, (1, 2): 3.0}) == [[0, 1, 2]]


def test_decisions_hold_against_any_weight_and_apart_against_together() -> None:
    assert groups({(0, 1): 30.0}, apart=[(0, 1)]) == [[0], [1]]
    assert group((0, 1), {(0, 1): 30.0}, RULES, apart=[(0, 1)]).refused == {(0, 1): "decided"}
    assert groups({(0, 1): -30.0}, together=[(0, 1)]) == [[0, 1]]
    # 0 and 2 are apart, so 1 cannot be with both: it is with the lesser one, whose decision comes first.
    assert groups({}, apart=[(0, 2)], together=[(0, 1), (1, 2)]) == [[0, 1], [2]]


def test_a_decision_on_two_records_keeps_all_that_is_joined_to_them_apart() -> None:
    everything = dict.fromkeys(combinations(range(6), 2), 8.0)
    found = groups(everything, apart=[(0, 5)])
    assert sorted(member for one in found for member in one) == list(range(6))
    assert not any({0, 5} <= set(one) for one in found)


WEIGHTS = (None, -8.0, 2.0, 7.0)


def test_every_world_of_four_records_is_grouped_by_the_rules() -> None:
    pairs = list(combinations(range(4), 2))
    for values in product(WEIGHTS, repeat=len(pairs)):
        weights = {pair: value for pair, value in zip(pairs, values, strict=True) if value is not None}
        found = group(range(4), weights, RULES)
        assert [list(one) for one in found.groups] == plainly(range(4), weights, (), ()), weights
        inside = {pair for one in found.groups for pair in combinations(one, 2)}
        assert set(found.refused) == {pair for pair, weight in weights.items() if weight >= 0} - inside, weights


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[Pair, float], list[Pair], list[Pair]]:
    pairs = st.sampled_from(list(combinations(range(8), 2)))
    weights = draw(st.dictionaries(pairs, st.floats(-30, 30, allow_nan=False), max_size=28))
    return weights, draw(st.lists(pairs, max_size=3, unique=True)), draw(st.lists(pairs, max_size=3, unique=True))


@modest(200)
@given(worlds(), st.integers(0, 1 << 30))
def test_any_world_is_grouped_by_the_rules_whatever_comes_first(
    world: tuple[dict[Pair, float], list[Pair], list[Pair]], seed: int
) -> None:
    weights, apart, together = world
    found = group(range(8), weights, RULES, apart=apart, together=together)
    assert found == shuffled(weights, apart, together, seed)
    assert [list(one) for one in found.groups] == plainly(range(8), weights, apart, together)
    of = {member: one for one in found.groups for member in one}
    assert sorted(of) == list(range(8))
    assert all(of[a] != of[b] for a, b in apart)
    assert all(of[a] == of[b] for a, b in together) or apart
    assert all(of[a] != of[b] for a, b in found.refused)


def shuffled(weights: Mapping[Pair, float], apart: Sequence[Pair], together: Sequence[Pair], seed: int) -> Grouping:
    random = Random(seed)
    return group(
        random.sample(range(8), 8),
        dict(random.sample(list(weights.items()), len(weights))),
        RULES,
        apart=random.sample(apart, len(apart)),
        together=random.sample(together, len(together)),
    )


def test_components_are_the_same_for_every_order_of_their_edges() -> None:
    edges = [(4, 5), (1, 2), (2, 9), (5, 7)]
    for order in permutations(edges):
        assert components(order) == [[1, 2, 9], [4, 5, 7]]
    assert components([]) == []
    assert components((n, n + 1) for n in range(3_000)) == [list(range(3_001))]


@pytest.mark.parametrize("pair", [(0, 9), (9, 0)])
def test_pairs_with_others_are_left_out(pair: Pair) -> None:
    assert group((0, 1), {pair: 5.0, (0, 1): 5.0}, RULES, apart=[pair], together=[pair]).groups == ((0, 1),)
