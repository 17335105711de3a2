"""Rules for a package's core metadata, rendered as lines `Field: value`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from durable_batches.extraction import licenses, people
from durable_batches.extraction.model import Chunk, EntityKind, Mention, Role, Section
from durable_batches.extraction.names import canonical_package_name
from durable_batches.extraction.people import Contact, pair_contacts, parse_contacts
from durable_batches.extraction.requirement import parse_requirement
from durable_batches.extraction.urls import canonical_url, public_form

__all__ = ["metadata_mentions"]

QUOTE_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True)
class _Field:
    name: str
    """In lower case: field names are case-insensitive."""
    value: str
    start: int
    """Of the value, within the section."""
    end: int


def metadata_mentions(chunk: Chunk, spelling: Callable[[str], str]) -> Iterator[Mention]:
    """Find the mentions in a chunk of metadata.

    Args:
        chunk: A chunk of the metadata section.
        spelling: Gives a package's name as its author writes it.
    """
    fields = list(_fields(chunk))
    for field in fields:
        match field.name:
            case "name":
                yield _subject(field, fields)
            case "requires-dist" | "requires":
                yield from _dependency(field, spelling)
            case "home-page" | "download-url" | "project-url" | "docs-url":
                yield from _link(field)
            case _:
                pass
    yield from _people(fields, "author", chunk.document_id)
    yield from _people(fields, "maintainer", chunk.document_id)
    yield from _licenses(fields)


def _fields(chunk: Chunk) -> Iterator[_Field]:
    for match in re.finditer(r"^([A-Za-z][A-Za-z-]*):[ ]?(.*(?:\n[ \t]+.*)*)", chunk.text, re.MULTILINE):
        value = match[2].strip()
        if value and value.upper() != "UNKNOWN":
            start = chunk.start + match.start(2) + len(match[2]) - len(match[2].lstrip())
            yield _Field(name=match[1].lower(), value=value, start=start, end=start + len(value))


def _subject(field: _Field, fields: list[_Field]) -> Mention:
    described = {
        name: next((other.value for other in fields if other.name == name), "")
        for name in ("version", "summary", "requires-python")
    }
    return _mention(
        field,
        "package",
        canonical_package_name(field.value),
        field.value,
        "subject",
        **{name.replace("-", "_"): value for name, value in described.items() if value},
    )


def _dependency(field: _Field, spelling: Callable[[str], str]) -> Iterator[Mention]:
    requirement = parse_requirement(field.value)
    if requirement is not None:
        attributes = {
            "specifier": requirement.specifier,
            "extra": requirement.extra or "",
            "marker": requirement.marker,
            "extras": ",".join(requirement.extras),
        }
        yield _mention(
            field,
            "package",
            canonical_package_name(requirement.name),
            spelling(requirement.name),
            "dependency",
            **{name: value for name, value in attributes.items() if value},
        )


def _link(field: _Field) -> Iterator[Mention]:
    label, _, url = field.value.rpartition(",") if field.name == "project-url" else (field.name, "", field.value)
    key = canonical_url(url)
    if key is not None:
        label = {"home-page": "Homepage", "download-url": "Download", "docs-url": "Documentation"}.get(
            field.name, label.strip()
        )
        yield _mention(field, "url", key, public_form(url), "link", **({"label": label} if label else {}))


def _people(fields: list[_Field], role: Role, document_id: str) -> Iterator[Mention]:
    naming = [field for field in fields if field.name == role]
    addressing = [field for field in fields if field.name == f"{role}-email"]
    contacts = pair_contacts(
        [contact for field in naming for contact in parse_contacts(field.value)],
        [contact for field in addressing for contact in parse_contacts(field.value)],
    )
    for contact in contacts:
        stating = [field for field in [*naming, *addressing] if (contact.name or contact.email or "") in field.value]
        field = (stating or naming or addressing)[0]
        yield person_mention(
            contact,
            role,
            document_id=document_id,
            section="metadata",
            start=field.start,
            end=field.end,
            quote=field.value,
        )


def person_mention(
    contact: Contact,
    role: Role,
    *,
    document_id: str,
    section: Section,
    start: int,
    end: int,
    quote: str,
    about: str | None = None,
) -> Mention:
    """Make the mention of a person or organisation."""
    email = people.canonical_email(contact.email) if contact.email else None
    return Mention(
        kind="organization" if contact.organization else "person",
        key=_contact_key(contact, email, document_id),
        name=contact.name or email or "",
        role=role,
        about=about,
        section=section,
        start=start,
        end=end,
        quote=shortened(quote),
        attributes={"email": email} if email else {},
    )


def _contact_key(contact: Contact, email: str | None, document_id: str) -> str:
    """Choose the most specific key: the resolver can link two keys, but cannot split one."""
    name = people.name_key(contact.name or "")
    if contact.organization:
        return re.sub(r"^the ", "", name)
    if name and email:
        return f"{name} <{email}>"
    if " " in name:
        return name
    # A single word without an address identifies nobody: in another document it is another person.
    return f"{name} ({document_id})" if name else email or ""


def _licenses(fields: list[_Field]) -> Iterator[Mention]:
    """Use the licence expression; without one, the licence field and what classifiers add to it."""
    expressions = [
        (field, names)
        for field in fields
        if field.name == "license-expression" and (names := licenses.parse_expression(field.value))
    ]
    if expressions:
        for field, names in expressions:
            for name in names:
                yield _license(field, name, expression=field.value)
        return
    stated = [(field, name) for field in fields if field.name == "license" for name in _stated_licenses(field.value)]
    classified = [
        (field, name)
        for field in fields
        if field.name == "classifier"
        for name in licenses.license_of_classifier(field.value)
    ]
    found = [*stated, *classified]
    specific = {licenses.license_family(name) for _, name in found if not licenses.is_generic_license(name)}
    for field, name in found:
        if not (licenses.is_generic_license(name) and licenses.license_family(name) in specific):
            yield _license(field, name)


def _stated_licenses(value: str) -> list[str]:
    parsed = licenses.parse_expression(value)
    if parsed and not any(name.partition(" ")[0].endswith("+") for name in parsed):  # `GPL-2.0+` has a newer name
        return parsed
    found = licenses.licenses_in(value)
    if found:
        return found
    # An unknown name is a licence of its own; a pointer to a file is not.
    pointer = re.search(r"\bsee\b|\bfile\b|\.(?:txt|md|rst)$|^licen[cs]e$|://", value, re.IGNORECASE)
    return [] if pointer or len(value) > 60 else [" ".join(value.split())]


def _license(field: _Field, name: str, **attributes: str) -> Mention:
    return _mention(field, "license", name.lower(), name, "license", **attributes)


def _mention(field: _Field, kind: EntityKind, key: str, name: str, role: Role, **attributes: str) -> Mention:
    return Mention(
        kind=kind,
        key=key,
        name=name,
        role=role,
        section="metadata",
        start=field.start,
        end=field.end,
        quote=shortened(field.value),
        attributes=attributes,
    )


def shortened(text: str) -> str:
    """Put a text on one line and limit it to the length of a quote."""
    flat = " ".join(text.split())
    return flat if len(flat) <= QUOTE_CHARACTERS else flat[: QUOTE_CHARACTERS - 1] + "…"
