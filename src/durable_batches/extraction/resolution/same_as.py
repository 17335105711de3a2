"""Clusters as statements: the record that stands for all, `owl:sameAs`, and its closure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from typing import Final
from urllib.parse import quote

from durable_batches import ConfigurationError
from durable_batches.extraction.resolution.links import Cluster
from durable_batches.options import check_callable, check_text

__all__ = ["SameAsLinker"]

_SAME_AS: Final = "<http://www.w3.org/2002/07/owl#sameAs>"

_NOT_IN_IRIS: Final = frozenset('<>"{}|^`\\')


class SameAsLinker:
    """State which records are the same, by the record that stands for each cluster.

    Args:
        canonical: Chooses that record's id among the members of a cluster; None: what the cluster says.
    """

    def __init__(self, *, canonical: Callable[[Cluster], str] | None = None) -> None:
        check_callable("canonical", canonical, optional=True)
        self._choose = canonical

    def canonical(self, cluster: Cluster) -> str:
        """Return the id of the record that stands for a cluster.

        Raises:
            ConfigurationError: The user's function has chosen a record that is no member.
        """
        if self._choose is None:
            return cluster.canonical
        chosen = self._choose(cluster)
        if chosen not in cluster.members:
            raise ConfigurationError(f"canonical= has chosen {chosen!r}, which is no member of cluster {cluster.id!r}")
        return chosen

    def same_as(self, clusters: Iterable[Cluster]) -> Iterator[tuple[str, str]]:
        """Yield each record that another one stands for, and that one: all that is needed to find what is the same."""
        for cluster in clusters:
            canonical = self.canonical(cluster)
            for member in cluster.members:
                if member != canonical:
                    yield member, canonical

    def closure(self, clusters: Iterable[Cluster]) -> Iterator[tuple[str, str]]:
        """Yield every pair of records that are the same, the lesser id first: quadratic in a cluster's size."""
        for cluster in clusters:
            yield from combinations(sorted(cluster.members), 2)

    def n_quads(self, clusters: Iterable[Cluster], *, base: str) -> Iterator[str]:
        """Yield a line of N-Quads for each statement of `same_as`, without its line break.

        The graph of each statement is the cluster: its IRI is the base with the cluster's id.

        Args:
            clusters: The clusters.
            base: The beginning of all IRIs, such as "https://example.org/people/"; ids are percent-encoded behind it.

        Raises:
            ConfigurationError: `base` is no beginning of an absolute IRI.
        """
        check_text("base", base)
        scheme, colon, rest = base.partition(":")
        valid = scheme[:1].isalpha() and colon and rest and not any(c in _NOT_IN_IRIS or c <= " " for c in base)
        if not valid:
            raise ConfigurationError(f"base must be the beginning of an absolute IRI, not {base!r}")
        return self._n_quads(clusters, base)

    def _n_quads(self, clusters: Iterable[Cluster], base: str) -> Iterator[str]:
        for cluster in clusters:
            graph = _iri(base, cluster.id)
            for member, canonical in self.same_as([cluster]):
                yield f"{_iri(base, member)} {_SAME_AS} {_iri(base, canonical)} {graph} ."


def _iri(base: str, identity: str) -> str:
    return f"<{base}{quote(identity, safe='', errors='surrogatepass')}>"
