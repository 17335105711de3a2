"""What extraction works on and produces: chunks, mentions, entities, relations, and one graph a document.

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
"""The part of a document that something was found in."""

EntityKind: TypeAlias = Literal["document", "package", "person", "organization", "license", "url"]

RelationKind: TypeAlias = Literal["depends_on", "written_by", "licensed_under", "mentions"]

Role: TypeAlias = Literal["subject", "dependency", "author", "maintainer", "license", "link", "text"]
"""What a mention is to its document: `subject` is what the document is about, `text` is said in passing."""


class Record(BaseModel):
    """Base of the models: frozen, and strict about what it does not know."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")


class DocumentRef(Record):
    """A document without its text."""

    id: str
    title: str


class Chunk(Record):
    """A piece of one section of a document, small enough to be looked at by itself."""

    document_id: str
    index: int
    """Position among the document's chunks, from 0."""
    section: Section
    start: int
    """Offset of `text` within the section, in characters."""
    text: str


class Mention(Record):
    """One place of a document that names something."""

    kind: EntityKind
    key: str
    """Normal form of the name. Two mentions of one document with one kind and key are one entity."""
    name: str
    """The name as a person would write it."""
    role: Role = "text"
    about: str | None = None
    """Id of the entity that the statement around the mention is about; None: the document's subject."""
    section: Section
    start: int
    end: int
    quote: str
    """The place as it is written, shortened where it is long."""
    attributes: dict[str, str] = {}


class Entity(Record):
    """Something that a document names, once, however often it is named there."""

    id: str
    """`kind:key`; entities of several documents with one id are the same entity."""
    kind: EntityKind
    name: str
    aliases: list[str] = []
    """The other ways in which the document writes the name."""
    attributes: dict[str, list[str]] = {}
    mentions: int = 1
    """Number of places that name it."""


class Evidence(Record):
    """Where a relation was read."""

    document_id: str
    section: Section
    start: int
    end: int
    quote: str


class Relation(Record):
    """A directed statement about two entities, with the places that make it."""

    kind: RelationKind
    source: str
    target: str
    attributes: dict[str, list[str]] = {}
    evidence: list[Evidence] = []
    mentions: int = 1
    """Number of places that state it; `evidence` holds the first few of them."""


class KnowledgeGraph(Record):
    """All that one document says."""

    document: DocumentRef
    entities: list[Entity] = []
    relations: list[Relation] = []


def entity_id(kind: EntityKind, key: str) -> str:
    """The id of the entity of this kind and normal form."""
    return f"{kind}:{key}"
