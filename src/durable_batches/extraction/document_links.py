"""The resolver: links entities across documents and computes statistics.

Packages, licences, organisations and URLs have one normal form each, which is their id: they are linked by
it. People have none, so their records are compared. It reads the results twice and keeps people, ids and
counts, never texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping

from durable_batches import Results, durable_activity, map_activity
from durable_batches.extraction.linking import (
    Link,
    NameBlock,
    PersonCluster,
    PersonRecord,
    certain_links,
    cluster,
    compare,
    name_blocks,
)
from durable_batches.extraction.model import (
    Entity,
    EntityKind,
    KnowledgeGraph,
    Record,
    Relation,
    RelationKind,
)

__all__ = [
    "PeopleCollector",
    "Ranked",
    "Resolution",
    "Summary",
    "SummaryBuilder",
    "link_documents",
    "link_people",
]

RANKED = 10
"""Entries in each ranking."""

SUPPORTING_DOCUMENTS = 20
"""Documents kept per person: enough to find common ground, however many there are."""


class Ranked(Record):
    """An entity and its number in a ranking."""

    id: str
    name: str
    count: int


class Summary(Record):
    """Statistics of the whole batch."""

    documents: int
    occurrences: dict[EntityKind, int]
    """Entities by kind, counted once per document that names them."""
    entities: dict[EntityKind, int]
    """Entities by kind, counted once: occurrences, linked across documents."""
    relations: dict[RelationKind, int]
    most_required: list[Ranked]
    """Packages, by the number of those that always need them."""
    most_depended_on: list[Ranked]
    """Packages, by the number of those that need them always or for an extra."""
    most_packages: list[Ranked]
    """People and organisations, by the number of packages that they have written or maintain."""
    licenses: list[Ranked]
    """Licences, by the number of packages under them."""


class Resolution(Record):
    """The resolver's result: who is who across documents, and the summary."""

    people: list[PersonCluster]
    """The people whom documents name in several ways."""
    links: dict[str, str]
    """The cluster's id by the id of each member; every other id stands for itself."""
    summary: Summary

    def canonical(self, entity_id: str) -> str:
        """Return the id of the entity across all documents."""
        return self.links.get(entity_id, entity_id)


@durable_activity
def compare_names(block: NameBlock) -> list[Link]:
    """Find the pairs in a block that are one person."""
    return compare(block)


async def link_documents(results: Results[KnowledgeGraph]) -> Resolution:
    """Resolve the batch: link people across all documents, then compute statistics."""
    collector = PeopleCollector()
    async for result in results:
        collector.add(result.value)
    people = await link_people(collector.people())
    links = {member: person.id for person in people for member in person.members}
    builder = SummaryBuilder(links, {person.id: person.name for person in people})
    async for result in results:
        builder.add(result.value)
    return Resolution(people=people, links=links, summary=builder.summary())


async def link_people(
    people: list[PersonRecord], comparing: Callable[[NameBlock], Awaitable[list[Link]]] = compare_names
) -> list[PersonCluster]:
    """Find people with several records, by certain links and by comparing names block by block."""
    compared = await map_activity(comparing, name_blocks(people))
    return cluster(people, [*certain_links(people), *(link for links in compared for link in links)])


class PeopleCollector:
    """Collect people document by document: a record per id."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, None]] = {}
        self._emails: dict[str, dict[str, None]] = {}
        self._documents: dict[str, dict[str, None]] = {}

    def add(self, graph: KnowledgeGraph) -> None:
        """Add a document's graph."""
        for entity in graph.entities:
            if entity.kind == "person":
                self._names.setdefault(entity.id, {}).update(dict.fromkeys([entity.name, *entity.aliases]))
                self._emails.setdefault(entity.id, {}).update(dict.fromkeys(entity.attributes.get("email", [])))
                documents = self._documents.setdefault(entity.id, {})
                if len(documents) < SUPPORTING_DOCUMENTS:
                    documents[graph.document.id] = None

    def people(self) -> list[PersonRecord]:
        """Return all people so far, by id."""
        return [
            PersonRecord(
                id=key,
                names=list(self._names[key]),
                emails=list(self._emails[key]),
                documents=list(self._documents[key]),
            )
            for key in sorted(self._names)
        ]


class SummaryBuilder:
    """Count document by document.

    Args:
        links: For the ids that several documents' entities were linked from, the id they were linked to.
        names: The names of the entities that links lead to.
    """

    def __init__(self, links: Mapping[str, str], names: Mapping[str, str]) -> None:
        self._links = links
        self._names: dict[str, str] = dict(names)
        self._documents = 0
        self._occurrences: Counter[EntityKind] = Counter()
        self._entities: dict[EntityKind, set[str]] = {}
        self._relations: dict[RelationKind, set[tuple[str, str]]] = {}
        self._required: set[tuple[str, str]] = set()

    def add(self, graph: KnowledgeGraph) -> None:
        """Add a document's graph."""
        self._documents += 1
        for entity in graph.entities:
            self._add_entity(entity)
        for relation in graph.relations:
            self._add_relation(relation)

    def summary(self) -> Summary:
        """Return the statistics so far."""
        return Summary(
            documents=self._documents,
            occurrences=dict(self._occurrences),
            entities={kind: len(ids) for kind, ids in self._entities.items()},
            relations={kind: len(ends) for kind, ends in self._relations.items()},
            most_required=self._ranking(target for _, target in self._required),
            most_depended_on=self._ranking(target for _, target in self._relations.get("depends_on", ())),
            most_packages=self._ranking(target for _, target in self._relations.get("written_by", ())),
            licenses=self._ranking(target for _, target in self._relations.get("licensed_under", ())),
        )

    def _add_entity(self, entity: Entity) -> None:
        key = self._links.get(entity.id, entity.id)
        self._occurrences[entity.kind] += 1
        self._entities.setdefault(entity.kind, set()).add(key)
        self._names.setdefault(key, entity.name)

    def _add_relation(self, relation: Relation) -> None:
        ends = (
            self._links.get(relation.source, relation.source),
            self._links.get(relation.target, relation.target),
        )
        self._relations.setdefault(relation.kind, set()).add(ends)
        if relation.kind == "depends_on" and "optional" not in relation.attributes:
            self._required.add(ends)

    def _ranking(self, ids: Iterable[str]) -> list[Ranked]:
        counts = Counter(ids)
        best = sorted(counts, key=lambda key: (-counts[key], key))[:RANKED]
        return [Ranked(id=key, name=self._names.get(key, key), count=counts[key]) for key in best]
