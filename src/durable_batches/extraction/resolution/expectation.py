"""The model of Fellegi and Sunter, estimated without labels: how often each level occurs among matches and others.

Pairs are known by their patterns: for each field, the level at which its two values agree. Estimates are drawn to
starting values, strongly where there are few pairs, so that ten records give a sensible model and a million their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

__all__ = [
    "MISSING",
    "PSEUDO_RANDOM_PAIRS",
    "Estimate",
    "LevelProbabilities",
    "Pattern",
    "estimate",
    "smoothed",
    "weight_of",
]

Pattern: TypeAlias = tuple[int, ...]
"""The level of each field; `MISSING` where one of the two values is missing."""

LevelProbabilities: TypeAlias = tuple[tuple[float, ...], ...]
"""For each field, a probability a level; the first one, of `MISSING`, is not used."""

MISSING: Final = 0

_PSEUDO_MATCHES: Final = 20.0
"""Matches that the starting values count for, however many there are."""
_SHARE_OF_START: Final = 0.5
"""What the starting values count for beside each match that is found."""
_PSEUDO_PAIRS: Final = 50.0
_PSEUDO_MATCHES_OF_PRIOR: Final = 0.3
"""The prior is drawn to a small one: of five records, two do not become one on a common name alone."""
PSEUDO_RANDOM_PAIRS: Final = 200.0
"""Random pairs that the starting values of u count for."""
_LEAST_M: Final = 1e-4
_LEAST_SHARE_OF_U: Final = 0.02
_ROUNDS: Final = 100
_CONVERGED: Final = 1e-4


@dataclass(frozen=True)
class Estimate:
    """An estimated model.

    Attributes:
        m: How often each level occurs among pairs that match.
        u: How often it occurs among pairs that do not.
        prior: The probability that two records match of which nothing is known.
        rounds: The rounds of the estimation.
        converged: Whether the last one changed next to nothing.
    """

    m: LevelProbabilities
    u: LevelProbabilities
    prior: float
    rounds: int
    converged: bool


def estimate(
    patterns: Iterable[tuple[Pattern, float]],
    *,
    start: LevelProbabilities,
    random_u: LevelProbabilities,
    sampled: float = math.inf,
    pairs: float,
) -> Estimate:
    """Estimate m, u and the prior from counted patterns, by expectation and maximisation.

    Args:
        patterns: The patterns of candidate pairs, and the number of pairs that have each. In any order.
        start: m before anything was seen; each field's levels sum to 1.
        random_u: u as `smoothed` from random pairs, of which few match.
        sampled: The number of those random pairs.
        pairs: All pairs there are. Those that are no candidates are taken for no match.
    """
    counted = sorted(patterns)
    # What smoothing has added to the random pairs has no matches in it.
    real = 1.0 if math.isinf(sampled) else sampled / (sampled + PSEUDO_RANDOM_PAIRS)
    m, u = start, random_u
    prior = min(0.01, 1 / max(math.sqrt(2 * pairs), 2.0))
    matches, rounds, converged = 0.0, 0, False
    while rounds < _ROUNDS and not converged:
        rounds += 1
        drawn = _PSEUDO_MATCHES + _SHARE_OF_START * matches
        sums = [[drawn * share for share in levels] for levels in start]
        matches = 0.0
        for pattern, number in counted:
            expected = number * _probability(pattern, m, u, prior)
            matches += expected
            for field, level in enumerate(pattern):
                if level != MISSING:
                    sums[field][level] += expected
        before, prior = prior, (matches + _PSEUDO_MATCHES_OF_PRIOR) / (pairs + _PSEUDO_PAIRS)
        prior = min(prior, 0.5)
        m = tuple(_shares(levels) for levels in sums)
        u = tuple(map(_without_matches, random_u, m, [prior * real] * len(m)))
        converged = abs(math.log(prior / before)) < _CONVERGED
    return Estimate(_rounded(m), _rounded(u), _digits(prior), rounds, converged)


def weight_of(pattern: Pattern, m: LevelProbabilities, u: LevelProbabilities) -> float:
    """Return the evidence of a pattern, in bits: above 0 it speaks for a match. What is missing says nothing."""
    return sum(math.log2(m[field][level] / u[field][level]) for field, level in enumerate(pattern) if level != MISSING)


def smoothed(counts: Sequence[float], start: Sequence[float]) -> tuple[float, ...]:
    """Return shares of counts, drawn to starting values that count for `PSEUDO_RANDOM_PAIRS` observations.

    Args:
        counts: The observations of each level of a field; the first one, of missing values, does not count.
        start: The shares before anything was seen.
    """
    total = sum(counts[1:]) + PSEUDO_RANDOM_PAIRS
    return (
        0.0,
        *((count + PSEUDO_RANDOM_PAIRS * share) / total for count, share in zip(counts[1:], start[1:], strict=True)),
    )


def _probability(pattern: Pattern, m: LevelProbabilities, u: LevelProbabilities, prior: float) -> float:
    odds = prior / (1 - prior)
    for field, level in enumerate(pattern):
        if level != MISSING:
            odds *= m[field][level] / u[field][level]
    return odds / (1 + odds)


def _shares(sums: Sequence[float]) -> tuple[float, ...]:
    total = sum(sums[1:])
    return (0.0, *(max(number / total, _LEAST_M) for number in sums[1:]))


def _without_matches(random_u: Sequence[float], m: Sequence[float], prior: float) -> tuple[float, ...]:
    """Take the matches out of what was counted among random pairs: where records are few, they are many of those."""
    return tuple(
        max((counted - prior * matching) / (1 - prior), counted * _LEAST_SHARE_OF_U)
        for counted, matching in zip(random_u, m, strict=True)
    )


def _rounded(levels: LevelProbabilities) -> LevelProbabilities:
    return tuple(tuple(map(_digits, shares)) for shares in levels)


def _digits(number: float) -> float:
    """Round to four digits: the order of a sum's terms, and the machine, change none of them."""
    return float(f"{min(number, 0.9999):.4g}")
