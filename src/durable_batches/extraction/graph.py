"""The graph of a whole batch: the documents' graphs merged under the resolver's ids, and its file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from durable_batches.extraction.document_links import Resolution
from durable_batches.extraction.model import (
    DocumentRef,
    Entity,
    EntityKind,
    Evidence,
    KnowledgeGraph,
    Record,
    Relation,
    RelationKind,
)
from durable_batches.options import check_instance

__all__ = ["Edge", "GraphBuilder", "MergedGraph", "Node", "write_graph"]

MAX_EVIDENCE = 5
"""Places kept per edge."""


class Node(Record):
    """An entity of the batch."""

    id: str
    kind: EntityKind
    name: str
    aliases: list[str]
    attributes: dict[str, list[str]]
    documents: list[str]
    """The ids of the documents that name it."""


class Edge(Record):
    """A relation of the batch."""

    source: str
    target: str
    kind: RelationKind
    attributes: dict[str, list[str]]
    evidence: list[Evidence]
    """The first few places that state it."""


class MergedGraph(Record):
    """The knowledge graph of a batch."""

    documents: list[DocumentRef]
    nodes: list[Node]
    edges: list[Edge]


class GraphBuilder:
    """Merge the documents' graphs one by one, keeping only the merged graph."""

    def __init__(self, resolution: Resolution) -> None:
        check_instance("resolution", resolution, Resolution)
        self._resolution = resolution
        self._people = {person.id: person for person in resolution.people}
        self._documents: list[DocumentRef] = []
        self._nodes: dict[str, _Node] = {}
        self._edges: dict[tuple[str, RelationKind, str], _Edge] = {}

    def add(self, graph: KnowledgeGraph) -> None:
        """Add a document's graph."""
        check_instance("graph", graph, KnowledgeGraph)
        self._documents.append(graph.document)
        for entity in graph.entities:
            key = self._resolution.canonical(entity.id)
            self._nodes.setdefault(key, _Node()).add(entity, graph.document.id)
        for relation in graph.relations:
            source, target = (
                self._resolution.canonical(relation.source),
                self._resolution.canonical(relation.target),
            )
            self._edges.setdefault((source, relation.kind, target), _Edge()).add(relation)

    def build(self) -> MergedGraph:
        """Return the graph so far, in an order that depends on its content alone."""
        return MergedGraph(
            documents=sorted(self._documents, key=lambda document: document.id),
            nodes=[self._node(key) for key in sorted(self._nodes)],
            edges=[self._edges[key].edge(*key) for key in sorted(self._edges)],
        )

    def _node(self, key: str) -> Node:
        node = self._nodes[key]
        person = self._people.get(key)
        name = person.name if person else node.name
        return Node(
            id=key,
            kind=node.kind,
            name=name,
            aliases=[alias for alias in node.names if alias != name],
            attributes={attribute: list(values) for attribute, values in node.attributes.items()},
            documents=list(node.documents),
        )


def write_graph(graph: MergedGraph, path: str | os.PathLike[str]) -> None:
    """Write the graph as JSON. A reader sees the whole old file or the whole new one, never a part.

    Raises:
        OSError: The file cannot be written.
    """
    check_instance("graph", graph, MergedGraph)
    check_instance("path", path, (str, os.PathLike))
    target = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(graph.model_dump_json(indent=1))
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private to its owner; a graph is as public as any other file of the program.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class _Node:
    def __init__(self) -> None:
        self.kind: EntityKind = "document"
        self.name = ""
        self.names: dict[str, None] = {}
        self.attributes: dict[str, dict[str, None]] = {}
        self.documents: dict[str, None] = {}

    def add(self, entity: Entity, document_id: str) -> None:
        self.kind = entity.kind
        # A package's own document has the best spelling of its name; it is the one with a version.
        if not self.name or "version" in entity.attributes:
            self.name = entity.name
        self.names.update(dict.fromkeys([entity.name, *entity.aliases]))
        self.documents[document_id] = None
        _merge(self.attributes, entity.attributes)


class _Edge:
    def __init__(self) -> None:
        self.attributes: dict[str, dict[str, None]] = {}
        self.evidence: list[Evidence] = []
        self.optional = True

    def add(self, relation: Relation) -> None:
        _merge(self.attributes, relation.attributes)
        self.optional = self.optional and "optional" in relation.attributes
        self.evidence += relation.evidence[: MAX_EVIDENCE - len(self.evidence)]

    def edge(self, source: str, kind: RelationKind, target: str) -> Edge:
        if not self.optional:
            self.attributes.pop("optional", None)
        return Edge(
            source=source,
            target=target,
            kind=kind,
            attributes={attribute: list(values) for attribute, values in self.attributes.items()},
            evidence=self.evidence,
        )


def _merge(into: dict[str, dict[str, None]], attributes: dict[str, list[str]]) -> None:
    for attribute, values in attributes.items():
        into.setdefault(attribute, {}).update(dict.fromkeys(values))
