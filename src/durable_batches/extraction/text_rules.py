"""Rules for prose: READMEs, and any other text that people write.

They would rather miss a name than invent one: most names of packages are words of English, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from durable_batches.extraction import licenses
from durable_batches.extraction.metadata_rules import person_mention, shortened
from durable_batches.extraction.model import Chunk, EntityKind, Mention, Role, entity_id
from durable_batches.extraction.names import Vocabulary, canonical_package_name
from durable_batches.extraction.package_rules import find_packages
from durable_batches.extraction.people import Contact, looks_like_name_part, looks_like_person, parse_contacts
from durable_batches.extraction.urls import canonical_url, find_urls, public_form

__all__ = ["text_mentions"]


def text_mentions(chunk: Chunk, vocabulary: Vocabulary) -> Iterator[Mention]:
    """Find the mentions in a chunk of prose: packages of the vocabulary, people, licences and URLs, in order."""
    # URLs are blanked rather than removed, because offsets count from the chunk's start.
    prose = re.sub(r"https?://[^\s<>()\[\]`\"']+", lambda match: "\1" * len(match[0]), chunk.text)
    found = list(_urls(chunk))
    packages = [
        _Place(chunk, package.start, package.end).mention(
            "package", canonical_package_name(package.name), package.name, "text"
        )
        for package in find_packages(chunk.text, prose, vocabulary)
    ]
    statements = _Statements(prose, chunk.start, packages)
    found += statements.dependencies()
    found += _licenses(chunk, prose, statements)
    found += _people(chunk, prose, statements)
    yield from sorted(found, key=lambda mention: (mention.start, mention.end, mention.kind))


def _urls(chunk: Chunk) -> Iterator[Mention]:
    for url in find_urls(chunk.text):
        key = canonical_url(url.url)
        if key is not None:
            place = _Place(chunk, url.start, url.end)
            attributes = {"label": url.label} if url.label else {}
            yield place.mention("url", key, public_form(url.url), "link", **attributes)


@dataclass(frozen=True)
class _Place:
    chunk: Chunk
    start: int
    end: int

    def mention(
        self, kind: EntityKind, key: str, name: str, role: Role, about: str | None = None, **attributes: str
    ) -> Mention:
        return Mention(
            kind=kind,
            key=key,
            name=name,
            role=role,
            about=about,
            section="text",
            start=self.chunk.start + self.start,
            end=self.chunk.start + self.end,
            quote=shortened(self.chunk.text[self.start : self.end]),
            attributes=attributes,
        )


# ---- statements ------------------------------------------------------------------------------------------

_SENTENCE_END = re.compile(r"[.!?](?=\s+(?:[A-Z`*\[]|$))|\n\s*\n|\n(?=\s*(?:[-*+]|\d+\.|#+)\s)|\Z")
_DEPENDS = re.compile(
    r"\b(?:depends?\s+(?:up)?on|requires|relies\s+on|(?:is\s+)?built\s+(?:on\s+)?top\s+of|is\s+powered\s+by)\b"
)


class _Statements:
    """Find the package that a sentence is about, and the sentence's statements."""

    def __init__(self, prose: str, offset: int, packages: list[Mention]) -> None:
        self._prose = prose
        self._offset = offset
        self._packages = packages

    def about(self, position: int) -> str | None:
        """Return the package that the sentence names last before this offset."""
        # `\Z` matches at the offset itself, which is not the end of a sentence.
        ends = [match.end() for match in _SENTENCE_END.finditer(self._prose, 0, position) if match[0]]
        named = self._between(ends[-1] if ends else 0, position)
        return entity_id(named[-1].kind, named[-1].key) if named else None

    def dependencies(self) -> list[Mention]:
        """Return the packages; those that a sentence states as needed, as dependencies of the sentence's subject."""
        stated: dict[int, str | None] = {}
        for verb in _DEPENDS.finditer(self._prose):
            end = _SENTENCE_END.search(self._prose, verb.end())
            about = self.about(verb.start())
            for mention in self._between(verb.end(), end.start() if end else len(self._prose)):
                stated.setdefault(mention.start, about)
        return [
            mention.model_copy(update={"role": "dependency", "about": stated[mention.start]})
            if mention.start in stated
            else mention
            for mention in self._packages
        ]

    def _between(self, start: int, end: int) -> list[Mention]:
        return [mention for mention in self._packages if start <= mention.start - self._offset < end]


# ---- licences --------------------------------------------------------------------------------------------

_GRANT = re.compile(
    r"\b(?:dual[- ])?(?:licen[cs]ed|released|distributed|made\s+available|offered)\s+under\s+"
    r"(?P<what>[^\n]{1,120}(?:\n(?!\s*\n)[^\n]{1,120})?)",
    re.IGNORECASE,
)
_HEADING = re.compile(
    r"""^(?:\#{1,6}[ ]*)?(?:the[ ]+)?licen[cs](?:e|es|ing)[ ]*:?[ ]*\#*\n  # the heading
        (?:[=\-~^"*+\#]{3,}\n)?  # its underline, in reStructuredText
        \s*(?P<what>[^\n\#][^\n]{1,160})""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_NAMED = re.compile(
    r"\b(?:the\s+)?(?P<what>(?:[A-Z0-9][\w.-]{0,60}[ ]){1,4}Licen[cs]e(?:[, ]+(?:[Vv]ersion[ ]|v)?\d(?:\.\d)*)?)"
    r"|(?<![\w/-])(?P<id>[A-Z][A-Za-z0-9]*-\d\.\d(?:-only|-or-later)?|BSD-[234]-Clause)(?![\w/-])"
)


def _licenses(chunk: Chunk, prose: str, statements: _Statements) -> Iterator[Mention]:
    taken: list[range] = []
    patterns: tuple[tuple[re.Pattern[str], Role], ...] = (
        (_GRANT, "license"),
        (_HEADING, "license"),
        (_NAMED, "text"),
    )
    for pattern, role in patterns:
        for match in pattern.finditer(prose):
            group = "what" if match["what"] else "id"
            what = match[group]
            sentence_end = _SENTENCE_END.search(what)
            start = match.start(group)
            end = start + (sentence_end.start() if sentence_end else len(what))
            if any(start < other.stop and other.start < end for other in taken):
                continue
            names = licenses.licenses_in(prose[start:end])
            if names:
                taken.append(range(start, end))
            about = statements.about(start) if pattern is _GRANT else None
            for name in names:
                yield _Place(chunk, match.start(), end).mention("license", name.lower(), name, role, about)


# ---- people ----------------------------------------------------------------------------------------------

_NAME_PART = r"(?:(?:[^\W\d_]\.)+|[^\W\d_][\w'’-]{0,60})"
_PERSON = rf"(?<![\w.]){_NAME_PART}(?:[ ]+{_NAME_PART}){{1,4}}"
_ADDRESSED = re.compile(rf"(?P<name>{_PERSON})[ ]+<(?P<email>[^\s<>@]+@[^\s<>@]+\.[^\s<>@]+)>")
_BY = re.compile(
    r"""(?<!\w)(?:
        (?P<verb>written|created|developed|maintained|authored|contributed)
        (?:[ ]+(?:and|&)[ ]+(?:written|created|developed|maintained))?
        (?:[ ]+(?:originally|primarily|mainly))?\s+by[ ]+
      | (?:copyright|\(c\)|©)(?:[ ]*(?:\(c\)|©))?[ ]+(?:[\d, –-]{4,}(?:present)?[ ,]*)?(?:by[ ]+)?
    )
    (?P<names>[^\n.;:(]{3,120}(?:(?<=[ ][A-Z])\.[^\n.;:(]{2,60})?)  # the dot of an initial ends no sentence
    """,
    re.IGNORECASE | re.VERBOSE,
)
_AUTHOR_LINE = re.compile(
    r"""^[ \t:*\#-]*(?P<verb>authors?|maintainers?|created[ ]by|written[ ]by)\W{0,3}:[ ]*
        (?P<names>[^\n]{3,160})$""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)


def _people(chunk: Chunk, prose: str, statements: _Statements) -> Iterator[Mention]:
    taken: set[tuple[int, str]] = set()
    for match in (*_AUTHOR_LINE.finditer(prose), *_BY.finditer(prose), *_ADDRESSED.finditer(prose)):
        groups = match.groupdict()
        role = _role_of(groups.get("verb") or "")
        start = match.start("names") if "names" in groups else match.start() + _words_before_name(match["name"])
        written = prose[start : match.end()]
        about = statements.about(match.start()) if role != "text" else None
        for contact, where in _contacts(written):
            at = start + where
            if contact.name and (at, contact.name) not in taken:
                taken.add((at, contact.name))
                yield person_mention(
                    contact,
                    role,
                    document_id=chunk.document_id,
                    section="text",
                    start=chunk.start + at,
                    end=chunk.start + at + len(contact.name),
                    quote=chunk.text[match.start() : match.end()],
                    about=about,
                )


def _role_of(verb: str) -> Role:
    if verb.lower().startswith(("written", "created", "developed", "author")):
        return "author"
    return "maintainer" if verb.lower().startswith("maint") else "text"


def _words_before_name(text: str) -> int:
    """Return the length of the words before a name: `contact Jane Doe`."""
    return next((word.start() for word in re.finditer(r"\S+", text) if looks_like_name_part(word[0])), len(text))


def _contacts(written: str) -> Iterator[tuple[Contact, int]]:
    """Yield the people at the start of a text, up to the first name that does not look like a person's."""
    plain = re.sub(r"\[([^\[\]]+)\](?:\([^()]*\)?)?", r"\1", written)
    plain = re.sub(r"`([^`<]+?)\s*<[^>]*>`_+", r"\1", plain).replace("*", "").replace("\1", " ")
    for contact in parse_contacts(plain):
        if not contact.name or contact.organization or not looks_like_person(contact.name):
            return
        yield contact, max(written.find(contact.name), 0)
