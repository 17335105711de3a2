"""Disjoint sets: group items by pairs, in any order."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["UnionFind"]


class UnionFind:
    """Groups of strings that are merged; a group's representative is its least item.

    So the outcome depends on the pairs alone, never on their order.
    """

    def __init__(self, items: Iterable[str] = ()) -> None:
        self._parent: dict[str, str] = {item: item for item in items}

    def find(self, item: str) -> str:
        """Return the representative of the item's group; an unknown item becomes a group of its own."""
        root = self._parent.setdefault(item, item)
        while root != self._parent[root]:
            root = self._parent[root]
        while item != root:
            item, self._parent[item] = self._parent[item], root
        return root

    def union(self, first: str, second: str) -> None:
        """Merge the groups of the two items."""
        least, other = sorted((self.find(first), self.find(second)))
        self._parent[other] = least

    def groups(self) -> list[list[str]]:
        """Return all groups, each sorted, in the order of their representatives."""
        groups: dict[str, list[str]] = {}
        for item in sorted(self._parent):
            groups.setdefault(self.find(item), []).append(item)
        return [groups[root] for root in sorted(groups)]
