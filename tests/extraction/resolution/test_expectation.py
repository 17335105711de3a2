from __future__ import annotations

import math
from itertools import product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.properties import modest

from durable_batches.extraction.resolution.expectation import (
    MISSING,
    Estimate,
    LevelProbabilities,
    Pattern,
    estimate,
    smoothed,
    weight_of,
)

# Three fields of three levels (same, similar, different) each; the first entry is of missing values.
START: LevelProbabilities = ((0.0, 0.8, 0.1, 0.1),) * 3
M: LevelProbabilities = ((0.0, 0.9, 0.05, 0.05), (0.0, 0.7, 0.2, 0.1), (0.0, 0.85, 0.05, 0.1))
U: LevelProbabilities = ((0.0, 0.01, 0.04, 0.95), (0.0, 0.02, 0.08, 0.9), (0.0, 0.05, 0.05, 0.9))
PRIOR = 0.002


def probability(pattern: Pattern, of: LevelProbabilities) -> float:
    return math.prod(of[field][level] for field, level in enumerate(pattern))


def counts(pairs: float) -> list[tuple[Pattern, float]]:
    """The expected number of pairs of each pattern in a world with the parameters above."""
    return [
        (pattern, pairs * (PRIOR * probability(pattern, M) + (1 - PRIOR) * probability(pattern, U)))
        for pattern in product((1, 2, 3), repeat=3)
    ]


def test_the_parameters_of_a_world_are_found_from_its_patterns_without_labels() -> None:
    pairs = 1e7
    mixed: LevelProbabilities = tuple(
        tuple(PRIOR * m + (1 - PRIOR) * u for m, u in zip(*levels, strict=True)) for levels in zip(M, U, strict=True)
    )
    found = estimate(counts(pairs), start=START, random_u=mixed, pairs=pairs)
    assert found.converged
    assert found.prior == pytest.approx(PRIOR, rel=0.15)
    for field in range(3):
        # Half of the evidence is the start, so m lies between it and the truth, and u is the truth.
        for level in (1, 2, 3):
            low, high = sorted((START[field][level], M[field][level]))
            assert low - 0.02 <= found.m[field][level] <= high + 0.02
        assert found.u[field][1:] == pytest.approx(U[field][1:], rel=0.1)


def test_without_pairs_the_starting_values_stay_and_nothing_is_likely() -> None:
    found = estimate([], start=START, random_u=U, pairs=0)
    assert found.converged
    assert found.m == START
    assert found.prior < 0.01


def test_few_records_with_one_name_in_common_are_no_proof() -> None:
    random_u = (smoothed((0, 1, 0, 9), U[0]), *U[1:])
    found = estimate([((1, MISSING, MISSING), 1.0)], start=START, random_u=random_u, sampled=10, pairs=10)
    assert math.log2(found.prior / (1 - found.prior)) + weight_of((1, MISSING, MISSING), found.m, found.u) < 0


def test_what_is_missing_says_nothing() -> None:
    assert weight_of((MISSING, MISSING, MISSING), M, U) == 0
    assert weight_of((1, MISSING, 3), M, U) == pytest.approx(math.log2(0.9 / 0.01) + math.log2(0.1 / 0.9))


LEVELS = st.integers(0, 3)
PATTERNS = st.dictionaries(st.tuples(LEVELS, LEVELS, LEVELS), st.floats(0.5, 1e6), max_size=20)


@modest(100)
@given(PATTERNS, st.integers(0, 1 << 30))
def test_any_patterns_in_any_order_give_one_model_of_probabilities(patterns: dict[Pattern, float], seed: int) -> None:
    pairs = sum(patterns.values()) * 2
    shuffled = Random(seed).sample(list(patterns.items()), len(patterns))
    found = estimate(patterns.items(), start=START, random_u=U, pairs=pairs)
    assert found == estimate(shuffled, start=START, random_u=U, pairs=pairs)
    assert_sound(found)


def assert_sound(found: Estimate) -> None:
    assert 0 < found.prior <= 0.5
    for levels in found.m:
        assert sum(levels) == pytest.approx(1, abs=2e-3)
    for levels in (*found.m, *found.u):
        assert all(0 < share < 1 for share in levels[1:])


def test_shares_are_drawn_to_the_start_where_little_was_counted() -> None:
    start = (0.0, 0.5, 0.5)
    assert smoothed((7, 0, 0), start) == start
    few, many = smoothed((0, 10, 0), start), smoothed((0, 100_000, 0), start)
    assert 0.5 < few[1] < 0.53
    assert many[1] > 0.99
    assert sum(few) == pytest.approx(1)
    assert all(share > 0 for share in many[1:])
