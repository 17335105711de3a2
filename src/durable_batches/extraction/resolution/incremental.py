"""Clusters that later batches join, and that decisions part and join, always as a function of all links there are."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from durable_batches import ConfigurationError
from durable_batches.extraction.resolution.clustering import ClusteringRules, Pair, components, group
from durable_batches.extraction.resolution.ids import cluster_ids
from durable_batches.extraction.resolution.links import Decision, LinkStatus
from durable_batches.options import check_number

__all__ = ["IncrementalClusterer", "MemberGroup", "effective", "weight_at"]


@dataclass(frozen=True)
class MemberGroup:
    """Records that are the same.

    Attributes:
        id: The cluster's id.
        members: Their ids, sorted; two or more.
    """

    id: str
    members: tuple[str, ...]


class IncrementalClusterer:
    """Group records by the weights of their pairs: a later batch joins, and decisions hold for all that come after.

    What it says follows from the pairs, the decisions and the clusters that were there before, and not from the order
    in which they came: two batches one after the other give the groups that both at once would give. Only a component,
    the records that links connect, is grouped anew when one of its pairs or decisions changes.

    Args:
        threshold: The probability from which a pair is a link; between 0 and 1.
        known: The clusters of an earlier batch, whose ids are kept: the cluster's id by member.
        margin: See `ClusteringRules`.
        against: See `ClusteringRules`.

    Raises:
        ConfigurationError: `threshold` is not between 0 and 1.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.5,
        known: Mapping[str, str] | None = None,
        margin: float = ClusteringRules.margin,
        against: float = ClusteringRules.against,
    ) -> None:
        self._rules = ClusteringRules(cut=weight_at(threshold), margin=margin, against=against)
        self._known = dict(known or {})
        self._weights: dict[tuple[str, str], float] = {}
        self._decisions: dict[tuple[str, str], Decision] = {}
        self._components: dict[tuple[str, ...], _Component] = {}
        self._changed: set[str] = set()

    def add(self, pairs: Iterable[tuple[str, str, float]]) -> None:
        """Add scored pairs: two ids, and the weight in bits with the prior. A pair that is there gets the new weight.

        Pairs below the threshold count, too: they speak against joining what others would join.

        Raises:
            ConfigurationError: A pair is of one record with itself, or its weight is no finite number.
        """
        for a, b, weight in pairs:
            if a == b or not math.isfinite(weight):
                raise ConfigurationError(f"a pair is of two records and has a finite weight, not {(a, b, weight)!r}")
            self._weights[(a, b) if a < b else (b, a)] = weight
            self._changed.update((a, b))

    def remove(self, records: Iterable[str]) -> None:
        """Forget records with all of their pairs: their document has changed. Decisions on them are kept."""
        gone = frozenset(records)
        for pair in [pair for pair in self._weights if not gone.isdisjoint(pair)]:
            del self._weights[pair]
            self._changed.update(pair)

    def decide(self, decision: Decision) -> None:
        """Take a decision in: it holds for all that is there and all that comes, until it is undone.

        Of two decisions on one pair, the one with the later time holds; one without a time is the earliest.
        """
        there = self._decisions.get(decision.pair)
        if there is None or _order(decision) > _order(there):
            self._override(decision)

    def split(self, a: str, b: str) -> Decision:
        """Keep two records apart from now on; return the decision, to be kept."""
        return self._override(Decision(a=a, b=b, verdict="apart"))

    def join(self, a: str, b: str) -> Decision:
        """Join two records from now on; return the decision, to be kept."""
        return self._override(Decision(a=a, b=b, verdict="together"))

    def undo(self, a: str, b: str) -> bool:
        """Take the decision on two records back; return whether there was one."""
        self._changed.update((a, b))
        return self._decisions.pop((min(a, b), max(a, b)), None) is not None

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The decisions that hold, by their pairs."""
        return tuple(self._decisions[pair] for pair in sorted(self._decisions))

    def clusters(self) -> Iterator[MemberGroup]:
        """Yield the groups of two or more, by their least members."""
        found = sorted(members for component in self._current() for members in component.groups if len(members) > 1)
        for identity, members in zip(cluster_ids(found, self._known), found, strict=True):
            yield MemberGroup(identity, members)

    def refused(self) -> Mapping[tuple[str, str], LinkStatus]:
        """Return the links whose records are in two groups, and why."""
        return {pair: status for component in self._current() for pair, status in component.refused.items()}

    def _override(self, decision: Decision) -> Decision:
        self._decisions[decision.pair] = decision
        self._changed.update(decision.pair)
        return decision

    def _pairs(self, verdict: Literal["apart", "together"]) -> list[tuple[str, str]]:
        return [pair for pair, decision in self._decisions.items() if decision.verdict == verdict]

    def _current(self) -> Collection[_Component]:
        """Group the components that have changed; the others are as they were."""
        if not self._changed:
            return self._components.values()
        together = self._pairs("together")
        edges = [pair for pair, weight in self._weights.items() if weight >= self._rules.cut] + together
        rank = {record: number for number, record in enumerate(sorted({record for edge in edges for record in edge}))}
        records = list(rank)
        before, self._components = self._components, {}
        changed: dict[int, int] = {}
        parts: list[tuple[str, ...]] = []
        for numbers in components((rank[a], rank[b]) for a, b in edges):
            members = tuple(records[number] for number in numbers)
            kept = before.get(members)
            if kept is not None and self._changed.isdisjoint(members):
                self._components[members] = kept
            else:
                changed.update(dict.fromkeys(numbers, len(parts)))
                parts.append(members)
        within = self._within(parts, rank, changed)
        for members, inside in zip(parts, within, strict=True):
            numbers = [rank[member] for member in members]
            grouping = group(numbers, inside.weights, self._rules, apart=inside.apart, together=inside.together)
            self._components[members] = _Component(
                tuple(tuple(records[number] for number in one) for one in grouping.groups),
                {(records[a], records[b]): status for (a, b), status in grouping.refused.items()},
            )
        self._changed.clear()
        return self._components.values()

    def _within(
        self, parts: Sequence[tuple[str, ...]], rank: Mapping[str, int], part_of: Mapping[int, int]
    ) -> list[_Within]:
        """Find the weights and the decisions within each part."""
        found = [_Within() for _ in parts]

        def placed(pair: tuple[str, str]) -> tuple[Pair, int] | None:
            a, b = rank.get(pair[0], -1), rank.get(pair[1], -1)
            part = part_of.get(a)
            return None if part is None or part != part_of.get(b) else ((a, b), part)

        for pair, weight in self._weights.items():
            if (place := placed(pair)) is not None:
                found[place[1]].weights[place[0]] = weight
        for pair in self._pairs("apart"):
            if (place := placed(pair)) is not None:
                found[place[1]].apart.append(place[0])
        for pair in self._pairs("together"):
            if (place := placed(pair)) is not None:
                found[place[1]].together.append(place[0])
        return found


@dataclass(frozen=True)
class _Within:
    """What is known of the pairs within a component."""

    weights: dict[Pair, float] = field(default_factory=dict[Pair, float])
    apart: list[Pair] = field(default_factory=list[Pair])
    together: list[Pair] = field(default_factory=list[Pair])


@dataclass(frozen=True)
class _Component:
    """The groups of records that links connect, and the links between the groups."""

    groups: tuple[tuple[str, ...], ...]
    refused: Mapping[tuple[str, str], LinkStatus]


def weight_at(probability: float) -> float:
    """Return the bits of a probability.

    Raises:
        ConfigurationError: It is not between 0 and 1.
    """
    check_number("threshold", probability)
    if not 0 < probability < 1:
        raise ConfigurationError("threshold must be above 0 and below 1")
    return math.log2(probability / (1 - probability))


def effective(decisions: Iterable[Decision]) -> list[Decision]:
    """Return the decisions that hold, by their pairs: of two on one pair, the later one."""
    found: dict[tuple[str, str], Decision] = {}
    for decision in decisions:
        there = found.get(decision.pair)
        if there is None or _order(decision) > _order(there):
            found[decision.pair] = decision
    return [found[pair] for pair in sorted(found)]


def _order(decision: Decision) -> tuple[bool, datetime, str]:
    """The later of two decisions is the greater one; of two at once, one in all orders."""
    at = decision.at or datetime.min.replace(tzinfo=UTC)
    return decision.at is not None, at, decision.model_dump_json()
