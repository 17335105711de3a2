"""Ids of clusters that stay while clusters grow, part and join."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256

__all__ = ["cluster_ids", "new_cluster_id"]


def cluster_ids(clusters: Sequence[Sequence[str]], known: Mapping[str, str]) -> list[str]:
    """Give each cluster an id, in the order of the clusters.

    A cluster keeps the id that most of its members had before. An id goes to one cluster only: to the one with most of
    its former members. A new cluster's id follows from its least member. So does the result from its arguments, in
    whatever order clusters and members come.

    Args:
        clusters: The members of each cluster; no member is in two.
        known: The former cluster's id by member. Members of none are left out.
    """
    claims = [
        (-number, former, min(members), index)
        for index, members in enumerate(clusters)
        for former, number in Counter(known[member] for member in members if member in known).items()
    ]
    given: dict[int, str] = {}
    taken: set[str] = set()
    for _, former, _, index in sorted(claims):
        if index not in given and former not in taken:
            given[index] = former
            taken.add(former)
    for least, index in sorted((min(members), index) for index, members in enumerate(clusters) if index not in given):
        given[index] = _free_id(least, taken)
    return [given[index] for index in range(len(clusters))]


def new_cluster_id(least_member: str) -> str:
    """Return the id of a new cluster, from its least member."""
    return "c-" + sha256(least_member.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _free_id(least_member: str, taken: set[str]) -> str:
    """Return an id that no other cluster has: a cluster that has lost its least member may have kept the id of it."""
    found = new_cluster_id(least_member)
    while found in taken:
        found = new_cluster_id(found)
    taken.add(found)
    return found
