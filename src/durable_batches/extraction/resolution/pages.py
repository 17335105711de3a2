"""What a resolution records: pages of bytes, by their names, and what readers see of them."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel

from durable_batches.extraction.resolution.links import Cluster, SameAsLink

__all__ = ["LARGEST_PAGE", "ClusterPage", "Clustering", "Known", "LinkPlan", "page_name"]

LARGEST_PAGE: Final = 4 << 20
"""Bytes of a page, at most."""


def page_name(step: str, number: int = 0) -> str:
    """Return the name of a page: names of one step sort by their numbers."""
    return f"{step}-{number:06}"


class Known(BaseModel, frozen=True, extra="forbid"):
    """What an earlier batch has left, in pages.

    Attributes:
        records: Pages of records that have not changed.
        links: Pages of links among them.
        members: Pages of the clusters that records were in.
        retrain: Whether the model is made anew: it is of another version, or of half as many records.
    """

    records: int = 0
    links: int = 0
    members: int = 0
    retrain: bool = True


class LinkPlan(BaseModel, frozen=True, extra="forbid"):
    """The components that links connect.

    Attributes:
        components: Their number.
        largest: The records of the largest one.
        unfilled: Components so large that not all of their pairs are scored.
        gap_pages: Pages of pairs within components that were no candidates.
    """

    components: int
    largest: int
    unfilled: int
    gap_pages: int


class Clustering(BaseModel, frozen=True, extra="forbid"):
    """What came of the clustering.

    Attributes:
        clusters: Clusters of two records or more.
        members: Their records.
        refused: Links whose records are in two clusters.
        pages: Pages of both.
    """

    clusters: int
    members: int
    refused: int
    pages: int


class ClusterPage(BaseModel, frozen=True, extra="forbid"):
    """A page of the result.

    Attributes:
        clusters: Clusters, by their least members.
        refused: Links whose records are in two clusters, and why.
    """

    clusters: tuple[Cluster, ...] = ()
    refused: tuple[SameAsLink, ...] = ()
