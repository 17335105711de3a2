"""By how much the rate is lowered, from the share of calls that the provider has refused. Pure.

Refusals have two causes. A limit lower than the rate: then fewer calls mean fewer refusals, and the rate goes down to
what was accepted. Or they come at random, whatever the rate: then calling less only wastes the limit. So:

1. The rate is lowered by the share that was refused, where that is more than chance (Wilson's interval of two standard
   errors); of few answers, by the least that it may be. A few in a hundred are tolerated.
2. Where the share does not fall with the rate, it is tolerated from then on, and the rate is what it was before.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

__all__ = ["LEAST_RATE", "Refusals", "least_share"]

LEAST_RATE: Final = 0.05
"""The least share of the limit that the rate is lowered to."""
_TOLERATED: Final = 0.03
"""A share of refusals that lowers nothing."""
_MOST_TOLERATED: Final = 0.5
_ENOUGH: Final = 20
"""Answers after which a share is known well enough."""
_OBVIOUS: Final = 0.25
"""Of fewer answers, the share beyond what is tolerated with which the rate is lowered at once."""
_FAR: Final = 0.8
"""Of the rate before: from here on, a limit shows by fewer refusals."""
_REMEMBERED: Final = 200
"""Answers; of more than these, the older count less."""


class _Lowering(NamedTuple):
    rate: float
    """The rate before."""
    share: float
    """The share of refusals at that rate."""


class Refusals:
    """Counts what became of the calls that have begun since the rate was last lowered."""

    __slots__ = ("_answered", "_before", "_refused", "_tolerated")

    def __init__(self) -> None:
        self._answered = 0
        self._refused = 0
        self._tolerated = _TOLERATED
        self._before: _Lowering | None = None

    def accepted(self) -> None:
        """Count a call that the provider has not refused."""
        self._count(0)

    def refused(self, rate: float) -> float | None:
        """Count a call that the provider has refused.

        Args:
            rate: The share of the limits that is used, in (0, 1].

        Returns:
            The rate from here on, which may be that of before an earlier lowering; None: it stays.
        """
        self._count(1)
        least = least_share(self._refused, self._answered)
        if self._answered < _ENOUGH:
            if least < self._tolerated + _OBVIOUS:
                return None
        elif least <= self._tolerated:
            return None
        share, before = self._refused / self._answered, self._before
        is_known = self._answered >= _ENOUGH
        if is_known and before is not None and rate <= before.rate * _FAR:
            # What a limit would refuse at this rate, if it accepts as much as it did before.
            expected = max(0.0, 1 - (1 - before.share) * before.rate / rate)
            middle = (expected + before.share) / 2
            if least > middle:
                self._tolerated = min(share, _MOST_TOLERATED)
                self._before = None
                self._answered = self._refused = 0
                return before.rate
            if share > middle and self._answered < _REMEMBERED:
                # It may be either; more answers will tell.
                return None
        if is_known and before is None:
            self._before = _Lowering(rate, share)
        self._answered = self._refused = 0
        return max(LEAST_RATE, rate * (1 - (share if is_known else least)))

    def recovered(self) -> None:
        """Forget how it was lowered: the rate is the whole limit again."""
        self._before = None

    def _count(self, refused: int) -> None:
        if self._answered >= _REMEMBERED:
            share = self._refused / self._answered
            self._tolerated = max(_TOLERATED, min(self._tolerated, (self._tolerated + share) / 2))
            self._answered //= 2
            self._refused //= 2
        self._answered += 1
        self._refused += refused


def least_share(refused: int, answered: int) -> float:
    """Return the lower end of Wilson's interval of a share, of two standard errors."""
    share, spread = refused / answered, 4 / answered
    width = 2 * math.sqrt(share * (1 - share) / answered + 1 / answered**2)
    return max(0.0, (share + spread / 2 - width) / (1 + spread))
