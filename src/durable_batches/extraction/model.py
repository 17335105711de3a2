"""Models of extraction: chunks, mentions, entities, relations, and one graph per document.

Every model is frozen and holds plain values only, so that each activity's result is recorded exactly as it
is. Offsets count characters within a section of the document: its rendered metadata, or its text.
"""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

__all__ = [
    "Chunk",
    "DocumentRef",
    "Entity",
    "EntityKind",
    "Evidence",
    "KnowledgeGraph",
    "Mention",
    "Relation",
    "RelationKind",
    "Role",
    "Section",
    "entity_id",
]

Section: TypeAlias = Literal["metadata", "text"]
"""A part of a document."""

EntityKind: TypeAlias = Literal["document", "package", "person", "organization", "license", "url"]

RelationKind: TypeAlias = Literal["depends_on", "written_by", "licensed_under", "mentions"]

Role: TypeAlias = Literal["subject", "dependency", "author", "maintainer", "license", "link", "text"]
"""The role of a mention in its document: `subject` is the document's topic, `text` a mention in passing."""


class Record(BaseModel):
    """Base of the models: frozen, and refuses unknown fields."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")


class DocumentRef(Record):
    """A document without its text."""

    id: str
    title: str


class Chunk(Record):
    """A part of one section of a document, small enough to be read by itself."""

    document_id: str
    index: int
    """Ordinal among the document's chunks, from 0."""
    section: Section
    start: int
    """Offset of `text` within the section, in characters."""
    text: str


class Mention(Record):
    """A place in a document that names an entity."""

    kind: EntityKind
    key: str
    """Normal form of the name. Mentions with the same kind and key in one document are one entity."""
    name: str
    """The name as a person would write it."""
    role: Role = "text"
    about: str | None = None
    """Id of the entity that the statement around the mention is about; None: the document's subject."""
    section: Section
    start: int
    end: int
    quote: str
    """The text of the mention, shortened if it is long."""
    attributes: dict[str, str] = {}


class Entity(Record):
    """An entity of a document, which has it once, however many mentions name it."""

    id: str
    """`kind:key`; entities of several documents with one id are the same entity."""
    kind: EntityKind
    name: str
    aliases: list[str] = []
    """Other spellings of the name in the document."""
    attributes: dict[str, list[str]] = {}
    mentions: int = 1
    """Number of mentions."""


class Evidence(Record):
    """The place where a relation is stated."""

    document_id: str
    section: Section
    start: int
    end: int
    quote: str


class Relation(Record):
    """A directed relation of two entities, with the places that state it."""

    kind: RelationKind
    source: str
    target: str
    attributes: dict[str, list[str]] = {}
    evidence: list[Evidence] = []
    mentions: int = 1
    """Number of places that state it; `evidence` holds the first few of them."""


class KnowledgeGraph(Record):
    """The knowledge graph of one document."""

    document: DocumentRef
    entities: list[Entity] = []
    relations: list[Relation] = []


def entity_id(kind: EntityKind, key: str) -> str:
    """Return the id of the entity with this kind and normal form."""
    return f"{kind}:{key}"
