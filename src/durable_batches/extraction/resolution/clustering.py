"""Clusters out of weighted pairs: best links first, and none that the other pairs of both sides do not bear.

Connected components would make one person of all whom a chain of similar names, or one vague record, connects. Here two
groups join over a link only if all pairs between them that were scored speak for it on average, and only if neither
fits a third group as well which cannot be the same as the other: a record that fits two people proves nothing.

Members are numbers in the order of the records' ids, so that ties are broken alike whatever order records come in.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from durable_batches.extraction.resolution.links import LinkStatus

__all__ = ["ClusteringRules", "Grouping", "Pair", "components", "group"]

Pair: TypeAlias = tuple[int, int]
"""Two members, the lesser one first."""

_CLAMP: Final = 20.0
"""The bits up to which a pair counts in an average: no single pair outvotes all others."""


@dataclass(frozen=True, kw_only=True)
class ClusteringRules:
    """When two groups join.

    Attributes:
        cut: The weight in bits from which a pair is a link.
        margin: A third group is a rival if its best link is within so many bits of the link that is looked at.
        against: Two groups cannot be the same if their pairs average below so many bits.
    """

    cut: float = 0.0
    margin: float = 3.0
    against: float = -3.0


@dataclass(frozen=True)
class Grouping:
    """The groups of some members.

    Attributes:
        groups: The members of each group, sorted; those alone are groups of one.
        refused: The links whose ends are in two groups, and why.
    """

    groups: tuple[tuple[int, ...], ...]
    refused: Mapping[Pair, LinkStatus]


class _Tie(NamedTuple):
    """All pairs between two groups that were scored."""

    total: float
    """The sum of their weights, each clamped; minus infinity: a decision keeps the groups apart."""
    number: int
    best: float

    @property
    def mean(self) -> float:
        return self.total / self.number if self.number else 0.0

    def plus(self, other: _Tie) -> _Tie:
        return _Tie(self.total + other.total, self.number + other.number, max(self.best, other.best))


_NONE: Final = _Tie(0.0, 0, -math.inf)
_APART: Final = _Tie(-math.inf, 1, -math.inf)


def group(
    members: Iterable[int],
    weights: Mapping[Pair, float],
    rules: ClusteringRules,
    *,
    apart: Collection[Pair] = (),
    together: Collection[Pair] = (),
) -> Grouping:
    """Group members by the weights of their pairs. The result does not depend on the order of any argument.

    Args:
        members: The members.
        weights: The weight of each pair that was scored, in bits; pairs with other members are left out.
        rules: When two groups join.
        apart: Pairs that are never in one group.
        together: Pairs that are, unless what they belong to is kept apart.
    """
    known = frozenset(members)
    scored = {pair: weight for pair, weight in weights.items() if known.issuperset(pair)}
    groups = _Groups(known, scored, [pair for pair in apart if known.issuperset(pair)], rules)
    for a, b in sorted(pair for pair in together if known.issuperset(pair)):
        groups.join_decided(a, b)
    links = sorted(
        (pair for pair, weight in scored.items() if weight >= rules.cut), key=lambda pair: (-scored[pair], pair)
    )
    # Again while something joins: what was a rival may have become part of the same group.
    while any([groups.join(a, b, scored[a, b]) for a, b in links]):  # noqa: C419  (each of them, and not up to the first)
        pass
    return Grouping(groups.sorted(), {pair: status for pair in links if (status := groups.refusal(*pair))})


def components(edges: Iterable[Pair]) -> list[list[int]]:
    """Find the connected components of a graph: each one sorted, and all by their least members."""
    parent: dict[int, int] = {}

    def root(member: int) -> int:
        while (above := parent.setdefault(member, member)) != member:
            parent[member] = member = parent[above]
        return member

    for a, b in edges:
        one, other = sorted((root(a), root(b)))
        parent[other] = one
    found: dict[int, list[int]] = defaultdict(list)
    for member in sorted(parent):
        found[root(member)].append(member)
    return list(found.values())


@dataclass
class _Groups:
    """Groups that join, and the ties between them. A group is known by its least member."""

    known: frozenset[int]
    scored: Mapping[Pair, float]
    apart: Collection[Pair]
    rules: ClusteringRules
    of: dict[int, int] = field(init=False)
    members: dict[int, list[int]] = field(init=False)
    ties: dict[int, dict[int, _Tie]] = field(init=False)

    def __post_init__(self) -> None:
        self.of = {member: member for member in self.known}
        self.members = {member: [member] for member in self.known}
        self.ties = {member: {} for member in self.known}
        # In one order: sums of floats depend on theirs.
        for (a, b), weight in sorted(self.scored.items()):
            self._tie(a, b, _Tie(max(-_CLAMP, min(weight, _CLAMP)), 1, weight))
        for a, b in self.apart:
            self._tie(a, b, _APART)

    def _tie(self, one: int, other: int, tie: _Tie) -> None:
        self.ties[one][other] = self.ties[other][one] = tie

    def join_decided(self, a: int, b: int) -> None:
        """Join the groups of two members that belong together, if no decision keeps them apart."""
        one, other = self.of[a], self.of[b]
        if one != other and self._between(one, other).total != -math.inf:
            self._merge(one, other)

    def join(self, a: int, b: int, weight: float) -> bool:
        """Join the groups of a link's ends if nothing speaks against it; return whether it has joined them."""
        one, other = self.of[a], self.of[b]
        if one == other or self._obstacle(one, other, weight) is not None:
            return False
        self._merge(one, other)
        return True

    def refusal(self, a: int, b: int) -> LinkStatus | None:
        """Say why the ends of a link are not in one group; None: they are."""
        one, other = self.of[a], self.of[b]
        return None if one == other else self._obstacle(one, other, self.scored[a, b])

    def sorted(self) -> tuple[tuple[int, ...], ...]:
        """Return the groups by their least members."""
        return tuple(tuple(sorted(self.members[key])) for key in sorted(self.members))

    def _between(self, one: int, other: int) -> _Tie:
        return self.ties[one].get(other, _NONE)

    def _obstacle(self, one: int, other: int, weight: float) -> LinkStatus | None:
        mean = self._between(one, other).mean
        if mean == -math.inf:
            return "decided"
        if mean < 0:
            return "contradicted"
        if self._has_rival(one, other, weight) or self._has_rival(other, one, weight):
            return "ambiguous"
        return None

    def _has_rival(self, one: int, other: int, weight: float) -> bool:
        """Whether a third group fits `one` as well as `other` does, and cannot be the same as `other`."""
        bar = max(weight - self.rules.margin, self.rules.cut)
        return any(
            tie.best >= bar and third != other and self._between(third, other).mean < self.rules.against
            for third, tie in self.ties[one].items()
        )

    def _merge(self, one: int, other: int) -> None:
        kept, gone = min(one, other), max(one, other)
        moved = self.members.pop(gone)
        self.members[kept] += moved
        for member in moved:
            self.of[member] = kept
        for third, tie in self.ties.pop(gone).items():
            del self.ties[third][gone]
            if third != kept:
                self._tie(kept, third, self._between(kept, third).plus(tie))
