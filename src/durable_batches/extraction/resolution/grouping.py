"""Clusters of all links in the database: components, the pairs within them that were no candidates, pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from durable_batches.extraction.resolution.clustering import ClusteringRules, Pair, components, group
from durable_batches.extraction.resolution.database import Connection, load, rows
from durable_batches.extraction.resolution.expectation import MISSING
from durable_batches.extraction.resolution.ids import cluster_ids
from durable_batches.extraction.resolution.incremental import effective, weight_at
from durable_batches.extraction.resolution.links import Cluster, Decision, FieldWeight, LinkStatus, SameAsLink
from durable_batches.extraction.resolution.pages import Clustering, ClusterPage, LinkPlan
from durable_batches.extraction.resolution.settings import Settings
from durable_batches.extraction.resolution.training import all_levels, patterns_of

__all__ = ["Clusterer"]

_LINKS_OF_A_MEMBER: Final = 3
"""The strongest links of a record that its cluster tells; all there are would be quadratic in its size."""
_UNITS_OF_A_PAGE: Final = 2_500
"""Members and links of a page, about."""
_MEMBERS_AT_ONCE: Final = 20_000
"""Records whose pairs are read at once."""


class Clusterer:
    """Cluster the records of the table `rec` by the table `link`.

    Args:
        connection: The database.
        settings: What is computed with.
        decisions: What people have decided.
        former: Gives the former cluster's id by record.
    """

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        decisions: Sequence[Decision],
        former: Callable[[], Mapping[str, str]],
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._former = former
        self._levels = tuple(all_levels(settings).values())
        self._cut = weight_at(settings.threshold)
        self._ids: list[str] = [row[0] for row in rows(connection, "select id from rec order by rid")]
        rank = {identity: number for number, identity in enumerate(self._ids)}
        self._apart: list[Pair] = []
        self._together: list[Pair] = []
        for decision in effective(decisions):
            a, b = (rank.get(identity) for identity in decision.pair)
            if a is not None and b is not None:
                (self._apart if decision.verdict == "apart" else self._together).append((a, b))
        connection.execute(
            "create or replace table scored as select a.rid l, b.rid r, w from link "
            "join rec a on a.id = link.a join rec b on b.id = link.b"
        )
        edges: list[Pair] = [(a, b) for a, b in rows(connection, f"select l, r from scored where w >= {self._cut!r}")]
        self._components = components([*edges, *self._together])
        self._gap_pages = self._plan_gaps()
        self._filled = ""
        self._done: _Done | None = None

    # ---- pairs within components that were no candidates ---------------------------------------------------

    def _plan_gaps(self) -> int:
        arrow = load("pyarrow")
        inside = [part for part in self._components if 2 < len(part) <= self._settings.largest_component]
        numbered = [(index, member) for index, part in enumerate(inside) for member in part]
        self._connection.register(
            "given_members",
            arrow.table(
                {
                    "part": arrow.array([part for part, _ in numbered], arrow.int32()),
                    "member": arrow.array([member for _, member in numbered], arrow.int32()),
                }
            ),
        )
        run = self._connection.execute
        run("create or replace table part as select * from given_members")
        self._connection.unregister("given_members")
        run(
            "create or replace table gap as select part, l, r from (select a.part, a.member l, b.member r from part a "
            "join part b on a.part = b.part and a.member < b.member) anti join scored using (l, r)"
        )
        run(
            "create or replace table gap_page as select part, (sum(n) over (order by part) - n) // "
            f"{self._settings.page_pairs} page from (select part, count(*) n from gap group by part)"
        )
        return int(rows(self._connection, "select coalesce(max(page) + 1, 0) from gap_page")[0][0])

    def link_plan(self) -> LinkPlan:
        """Say which components there are."""
        sizes = [len(part) for part in self._components]
        return LinkPlan(
            components=len(sizes),
            largest=max(sizes, default=0),
            unfilled=sum(size > self._settings.largest_component for size in sizes),
            gap_pages=self._gap_pages,
        )

    def gap_pairs(self, page: int) -> str:
        """Return a query of the pairs of a page of gaps (l, r)."""
        return f"select l, r from gap join gap_page using (part) where page = {page}"

    def fill(self, pages: str) -> None:
        """Take the scored gaps in: a list of pages, in SQL."""
        if pages == self._filled:
            return
        missing = ", ".join(name for name in pages.split(", ") if name not in self._filled.split(", "))
        self._connection.execute(f"insert into link select * from read_parquet([{missing}])")
        self._connection.execute(
            "insert into scored select a.rid l, b.rid r, w from "
            f"read_parquet([{missing}]) g join rec a on a.id = g.a join rec b on b.id = g.b"
        )
        self._filled, self._done = pages, None

    # ---- clusters ----------------------------------------------------------------------------------------

    def clustering(self) -> Clustering:
        """Cluster, and say how many there are of what."""
        done = self._cluster()
        return Clustering(
            clusters=len(done.groups),
            members=sum(map(len, done.groups)),
            refused=len(done.refused),
            pages=len(done.pages),
        )

    def page(self, number: int) -> ClusterPage:
        """Return a page of clusters and refused links."""
        done = self._cluster()
        clusters, refused = done.pages[number]
        groups = [done.groups[index] for index in clusters]
        wanted = [done.refused[index] for index in refused]
        owner = {member: index for index, members in zip(clusters, groups, strict=True) for member in members}
        canonical = self._canonical(groups)
        links: dict[int, list[SameAsLink]] = {index: [] for index in clusters}
        kept: dict[int, int] = {}
        for a, b, link in self._links_within(owner):
            if kept.get(a, 0) < _LINKS_OF_A_MEMBER or kept.get(b, 0) < _LINKS_OF_A_MEMBER:
                kept[a], kept[b] = kept.get(a, 0) + 1, kept.get(b, 0) + 1
                links[owner[a]].append(link)
        return ClusterPage(
            clusters=tuple(
                Cluster(
                    id=done.names[index],
                    members=tuple(self._ids[member] for member in members),
                    canonical=self._ids[canonical[index_of]],
                    links=tuple(links[index]),
                )
                for index_of, (index, members) in enumerate(zip(clusters, groups, strict=True))
            ),
            refused=tuple(self._refused_links(wanted)),
        )

    def _cluster(self) -> _Done:
        if self._done is None:
            groups: list[tuple[int, ...]] = []
            refused: list[tuple[Pair, LinkStatus]] = []
            rules = ClusteringRules(cut=self._cut)
            for part, weights in self._weights():
                found = group(part, weights, rules, apart=self._apart, together=self._together)
                groups.extend(one for one in found.groups if len(one) > 1)
                refused.extend(found.refused.items())
            groups.sort()
            refused.sort()
            names = cluster_ids([[self._ids[member] for member in one] for one in groups], self._former())
            self._done = _Done(groups, refused, names)
        return self._done

    def _weights(self) -> Iterator[tuple[list[int], dict[Pair, float]]]:
        """Yield each component with the weights of its pairs; those of some components in memory at a time."""
        chunk: list[list[int]] = []
        for part in [*self._components, []]:
            if chunk and (not part or sum(map(len, chunk)) + len(part) > _MEMBERS_AT_ONCE):
                owner = {member: index for index, members in enumerate(chunk) for member in members}
                weights: list[dict[Pair, float]] = [{} for _ in chunk]
                with _Members(self._connection, owner) as given:
                    query = (
                        f"select l, r, w from scored semi join {given} g on g.member = l "
                        f"where r in (select member from {given})"
                    )
                    for left, right, weight in rows(self._connection, query):
                        if owner[left] == owner[right]:
                            weights[owner[left]][left, right] = weight
                yield from zip(chunk, weights, strict=True)
                chunk = []
            chunk.append(part)

    def _canonical(self, groups: Sequence[Sequence[int]]) -> list[int]:
        """Choose the record of each group with the most values, of those with the longest, of those the first one."""
        columns = list(self._settings.columns)
        filled = " + ".join(f"({column} is not null)::int" for column in columns)
        length = " + ".join(f"coalesce(length({column}::varchar), 0)" for column in columns)
        with _Members(self._connection, [member for members in groups for member in members]) as given:
            found = rows(self._connection, f"select rid, {filled}, {length} from rec join {given} g on g.member = rid")
        rank = {rid: (-values, -size, rid) for rid, values, size in found}
        return [min(members, key=rank.__getitem__) for members in groups]

    def _links_within(self, owner: Mapping[int, int]) -> Iterator[tuple[int, int, SameAsLink]]:
        """Yield the links whose records are in one group, strongest first."""
        with _Members(self._connection, owner) as given:
            links = self._reasoned(given, f"w >= {self._cut!r}")
            for a, b, *said in rows(self._connection, f"{links} order by w desc, l, r"):
                if owner[a] == owner[b]:
                    yield a, b, self._link(a, b, said, "joined")

    def _refused_links(self, wanted: Sequence[tuple[Pair, LinkStatus]]) -> Iterator[SameAsLink]:
        status = dict(wanted)
        with _Members(self._connection, sorted({member for pair, _ in wanted for member in pair})) as given:
            for a, b, *said in rows(self._connection, f"{self._reasoned(given, 'true')} order by l, r"):
                if (a, b) in status:
                    yield self._link(a, b, said, status[a, b])

    def _reasoned(self, given: str, where: str) -> str:
        """Return a query of the links among some records: the two, the weight, and each field's weight and level."""
        weights = [f"w{index}" for index in range(len(self._settings.fields))]
        pairs = (
            f"select x.rid l, y.rid r, w, {', '.join(weights)} from link "
            "join rec x on x.id = link.a join rec y on y.id = link.b "
            f"join {given} g on g.member = x.rid join {given} h on h.member = y.rid where {where}"
        )
        return patterns_of(self._settings, pairs, "l", "r", "w", *weights)

    def _link(self, a: int, b: int, said: Sequence[Any], status: LinkStatus) -> SameAsLink:
        count = len(self._settings.fields)
        weight = float(said[0])
        weights: Sequence[float] = said[1 : count + 1]
        agreement: Sequence[int] = said[count + 1 :]
        reasons: list[FieldWeight] = []
        fields = zip(self._settings.fields, self._levels, weights, agreement, strict=True)
        for name, known, evidence, level in fields:
            if level != MISSING:
                reasons.append(FieldWeight(field=name, level=known.labels[level], weight=round(evidence, 3)))
        reasons.sort(key=lambda reason: -abs(reason.weight))
        probability = 1 / (1 + 2.0 ** -max(-60.0, min(weight, 60.0)))
        return SameAsLink(
            a=self._ids[a],
            b=self._ids[b],
            probability=round(probability, 6),
            weight=weight,
            reasons=tuple(reasons),
            status=status,
        )


class _Done:
    """Groups of two or more, refused links, the groups' ids, and how both are packed to pages."""

    def __init__(self, groups: list[tuple[int, ...]], refused: list[tuple[Pair, LinkStatus]], names: list[str]) -> None:
        self.groups: Final = groups
        self.refused: Final = refused
        self.names: Final = names
        self.pages: Final[list[tuple[list[int], list[int]]]] = []
        size = _UNITS_OF_A_PAGE
        for index, members in enumerate(groups):
            # A member and its links.
            units = len(members) * (1 + min(len(members), _LINKS_OF_A_MEMBER))
            if size + units > _UNITS_OF_A_PAGE:
                self.pages.append(([], []))
                size = 0
            self.pages[-1][0].append(index)
            size += units
        for start in range(0, len(refused), _UNITS_OF_A_PAGE):
            self.pages.append(([], list(range(start, min(start + _UNITS_OF_A_PAGE, len(refused))))))


class _Members:
    """A table of some records, by their numbers, while it is needed."""

    def __init__(self, connection: Connection, members: Iterable[int]) -> None:
        self._connection = connection
        self._members = list(members)

    def __enter__(self) -> str:
        arrow = load("pyarrow")
        self._connection.register("given_members", arrow.table({"member": arrow.array(self._members, arrow.int32())}))
        return "given_members"

    def __exit__(self, *_: object) -> None:
        self._connection.unregister("given_members")
