"""Group mentions into entities and relations: pure, for every extractor whose mentions have roles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from durable_batches.extraction.model import (
    DocumentRef,
    Entity,
    Evidence,
    Mention,
    Relation,
    RelationKind,
    Role,
    entity_id,
)
from durable_batches.extraction.people import name_key

__all__ = ["group_mentions", "relate"]

MAX_EVIDENCE = 3
"""Places kept per relation: enough to check it; a README may repeat itself a hundred times."""

_ENTITY_ATTRIBUTES = frozenset({"email", "version", "summary", "requires_python"})
"""Attributes of the entity itself; all others belong to its relation to the document."""

_RELATION_OF_ROLE: dict[Role, RelationKind] = {
    "dependency": "depends_on",
    "author": "written_by",
    "maintainer": "written_by",
    "license": "licensed_under",
    "link": "mentions",
    "text": "mentions",
}


def group_mentions(document: DocumentRef, mentions: Iterable[Mention]) -> list[Entity]:
    """List the entities that the mentions name: the document's subject, then the others by first mention.

    The subject is what a mention of that role names; where there is none, the document itself.
    """
    groups: dict[str, list[Mention]] = {}
    for mention in _unified(mentions):
        groups.setdefault(entity_id(mention.kind, mention.key), []).append(mention)
    entities = [_entity(key, group) for key, group in groups.items()]
    subject = _subject(document, mentions)
    if subject not in groups:
        entities.insert(0, Entity(id=subject, kind="document", name=document.title, mentions=0))
    return sorted(entities, key=lambda entity: entity.id != subject)


def relate(document: DocumentRef, entities: Iterable[Entity], mentions: Iterable[Mention]) -> list[Relation]:
    """List the relations that the mentions' roles state, each pair and kind once, by first statement.

    What a package's metadata says about its licences, dependencies and authors is taken as the whole truth:
    the same said in passing by its README is a mention, for a README also speaks of other projects.
    """
    mentions = list(mentions)
    known = {entity.id for entity in entities}
    subject = _subject(document, mentions)
    stated: set[Role] = {mention.role for mention in mentions if mention.section == "metadata"}
    edges: dict[tuple[str, RelationKind, str], _Edge] = {}
    for mention in _unified(mentions):
        target = entity_id(mention.kind, mention.key)
        source = mention.about if mention.about in known else None
        source = source or subject
        kind = _RELATION_OF_ROLE.get(mention.role)
        if kind is None or source == target or target not in known:
            continue
        if mention.section == "text" and source == subject and _is_settled(mention.role, stated):
            kind = "mentions"
        edges.setdefault((source, kind, target), _Edge()).add(mention, document.id)
    return [edge.relation(*key) for key, edge in edges.items()]


def _subject(document: DocumentRef, mentions: Iterable[Mention]) -> str:
    named = next((mention for mention in mentions if mention.role == "subject"), None)
    return entity_id(named.kind, named.key) if named else entity_id("document", document.id)


def _is_settled(role: Role, stated: set[Role]) -> bool:
    return "subject" in stated and (role == "dependency" or role in stated)


def _unified(mentions: Iterable[Mention]) -> list[Mention]:
    """Give one key to a person who is named with an address, without one, or by the address alone."""
    mentions = list(mentions)
    key_of_name: dict[str, str] = {}
    key_of_email: dict[str, str] = {}
    for mention in mentions:
        email = mention.attributes.get("email")
        if mention.kind == "person" and email and mention.name != email:
            key_of_name.setdefault(name_key(mention.name), mention.key)
            key_of_email.setdefault(email, mention.key)
    unified: list[Mention] = []
    for mention in mentions:
        key = None
        if mention.kind == "person":
            nameless = mention.name == mention.attributes.get("email")
            key = key_of_email.get(mention.name) if nameless else key_of_name.get(name_key(mention.name))
        unified.append(mention if key is None else mention.model_copy(update={"key": key}))
    return unified


def _entity(key: str, group: list[Mention]) -> Entity:
    names = [mention.name for mention in sorted(group, key=_name_quality)]
    attributes: dict[str, dict[str, None]] = {}
    for mention in group:
        for attribute, value in mention.attributes.items():
            if attribute in _ENTITY_ATTRIBUTES:
                attributes.setdefault(attribute, {})[value] = None
    return Entity(
        id=key,
        kind=group[0].kind,
        name=names[0],
        aliases=[name for name in dict.fromkeys(names) if name != names[0]],
        attributes={attribute: list(values) for attribute, values in attributes.items()},
        mentions=len(group),
    )


def _name_quality(mention: Mention) -> tuple[bool, bool]:
    """Choose the name: the subject's own spelling is best, an e-mail address is not a name."""
    return mention.role != "subject", "@" in mention.name


@dataclass
class _Edge:
    mentions: list[Mention] = field(default_factory=list["Mention"])
    evidence: list[Evidence] = field(default_factory=list["Evidence"])

    def add(self, mention: Mention, document_id: str) -> None:
        self.mentions.append(mention)
        if len(self.evidence) < MAX_EVIDENCE:
            self.evidence.append(
                Evidence(
                    document_id=document_id,
                    section=mention.section,
                    start=mention.start,
                    end=mention.end,
                    quote=mention.quote,
                )
            )

    def relation(self, source: str, kind: RelationKind, target: str) -> Relation:
        attributes: dict[str, dict[str, None]] = {}
        for mention in self.mentions:
            if mention.role in ("author", "maintainer"):
                attributes.setdefault("role", {})[mention.role] = None
            for attribute, value in mention.attributes.items():
                if attribute not in _ENTITY_ATTRIBUTES:
                    attributes.setdefault(attribute, {})[value] = None
        if kind == "depends_on" and all("extra" in mention.attributes for mention in self.mentions):
            attributes["optional"] = {"true": None}
        return Relation(
            kind=kind,
            source=source,
            target=target,
            attributes={attribute: list(values) for attribute, values in attributes.items()},
            evidence=self.evidence,
            mentions=len(self.mentions),
        )
