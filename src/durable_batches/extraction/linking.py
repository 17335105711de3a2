"""Link records of people: by address, by name, and by a similar name with supporting evidence.

A wrong link invents a person, so a similar name alone is never enough.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations

from durable_batches import MissingExtraError
from durable_batches.extraction.model import Record
from durable_batches.extraction.people import name_key
from durable_batches.extraction.unionfind import UnionFind

try:
    from rapidfuzz import fuzz
except ModuleNotFoundError as _error:
    raise MissingExtraError("extraction", "rapidfuzz") from _error

__all__ = [
    "Link",
    "NameBlock",
    "PersonCluster",
    "PersonRecord",
    "certain_links",
    "cluster",
    "compare",
    "name_blocks",
]

MIN_SIMILARITY = 88.0
"""Similarity of two names, 0 to 100: allows one or two different letters in a name of usual length."""

ABBREVIATED = 100.0

MAX_SHARING = 20
"""People per address that are compared: an address with more is a shared mailbox."""

_SHARED_DOMAINS = frozenset(
    """
    aol.com fastmail.com gmail.com gmx.de gmx.net googlemail.com hey.com hotmail.com icloud.com live.com
    mac.com mail.com mail.ru me.com msn.com outlook.com pm.me posteo.de proton.me protonmail.com python.org
    qq.com users.noreply.github.com web.de yahoo.com yandex.ru ymail.com 163.com 126.com
    """.split()
)
"""Domains of public e-mail providers, which are no evidence."""


class PersonRecord(Record):
    """A person, as named by the documents that use the same id."""

    id: str
    names: list[str]
    """As written; an address if there is no name."""
    emails: list[str]
    documents: list[str]
    """Some of the documents' subjects, as evidence: people of one project are more likely to be one person."""


class NameBlock(Record):
    """People to compare: they share a name, and the other name's initial."""

    people: list[PersonRecord]


class Link(Record):
    """Two records that are one person."""

    first: str
    second: str
    reason: str


class PersonCluster(Record):
    """A person with several records."""

    id: str
    """The least of the members' ids."""
    name: str
    """The fullest of the names that most records use."""
    members: list[str]
    names: list[str]
    emails: list[str]
    reasons: list[str]


def certain_links(people: Iterable[PersonRecord]) -> list[Link]:
    """Find links without comparing names: a shared full name, or a shared address if the names allow it.

    An address alone is not enough, for projects have mailboxes that several people answer.
    """
    links: list[Link] = []
    by_name: dict[str, PersonRecord] = {}
    by_email: dict[str, list[PersonRecord]] = {}
    for person in sorted(people, key=lambda person: person.id):
        for key in _full_names(person):
            first = by_name.setdefault(key, person)
            if first is not person:
                links.append(Link(first=first.id, second=person.id, reason="same name"))
        for email in person.emails:
            sharing = by_email.setdefault(email, [])
            fitting = next((other for other in sharing if _names_allow(other, person)), None)
            if fitting:
                links.append(Link(first=fitting.id, second=person.id, reason="same e-mail address"))
            if len(sharing) < MAX_SHARING:
                sharing.append(person)
    return links


def name_blocks(people: Iterable[PersonRecord]) -> list[NameBlock]:
    """List the groups in which `compare` can find links: those with several different names."""
    blocks: dict[tuple[str, str], dict[str, PersonRecord]] = {}
    for person in sorted(people, key=lambda person: person.id):
        for key in _full_names(person):
            first, *_, last = key.split()
            for shared, other in ((first, last), (last, first)):
                if len(shared) > 1:
                    blocks.setdefault((shared, other[0]), {})[person.id] = person
    return [
        NameBlock(people=list(members.values()))
        for _, members in sorted(blocks.items())
        if len({key for person in members.values() for key in _full_names(person)}) > 1
    ]


def compare(block: NameBlock) -> list[Link]:
    """Find the pairs of a block whose names are similar and that share other evidence."""
    links: list[Link] = []
    for first, second in combinations(block.people, 2):
        likeness = max(
            (_likeness(one, other) for one in _full_names(first) for other in _full_names(second)),
            default=0.0,
        )
        if likeness >= MIN_SIMILARITY:
            support = _support(first, second, abbreviated=likeness >= ABBREVIATED)
            if support:
                links.append(Link(first=first.id, second=second.id, reason=f"similar name and {support}"))
    return links


def cluster(people: Sequence[PersonRecord], links: Iterable[Link]) -> list[PersonCluster]:
    """List the people with several records; independent of the order of records and links."""
    records = {person.id: person for person in people}
    links = sorted(links, key=lambda link: (link.first, link.second, link.reason))
    joined = UnionFind(records)
    for link in links:
        joined.union(link.first, link.second)
    reasons: dict[str, dict[str, None]] = {}
    for link in links:
        reasons.setdefault(joined.find(link.first), {})[link.reason] = None
    return [
        _cluster([records[member] for member in members], list(reasons[joined.find(members[0])]))
        for members in joined.groups()
        if len(members) > 1
    ]


def _cluster(members: Sequence[PersonRecord], reasons: list[str]) -> PersonCluster:
    uses = Counter(name for person in members for name in person.names if "@" not in name)
    names = sorted(uses, key=lambda name: (-uses[name], -len(name), name))
    emails = list(dict.fromkeys(email for person in members for email in person.emails))
    return PersonCluster(
        id=members[0].id,
        name=names[0] if names else emails[0],
        members=[person.id for person in members],
        names=names,
        emails=emails,
        reasons=reasons,
    )


def _full_names(person: PersonRecord) -> list[str]:
    """Normalise the names of at least two words: too many people share a single one."""
    keys = (name_key(name) for name in person.names if "@" not in name)
    return list(dict.fromkeys(key for key in keys if " " in key))


def _names_allow(first: PersonRecord, second: PersonRecord) -> bool:
    """Return whether two people with one address can be the same: their names share a word, or one has no name."""
    words = [
        {word for name in person.names if "@" not in name for word in name_key(name).split() if len(word) > 1}
        for person in (first, second)
    ]
    return not words[0] or not words[1] or bool(words[0] & words[1])


def _likeness(first: str, second: str) -> float:
    """Return 0 to 100, or `ABBREVIATED` if one is the other name with initials or without middle names."""
    if first == second:
        return 0.0  # Already a certain link.
    ones, others = first.split(), second.split()
    if ones[-1] == others[-1] and (ones[0] == others[0] or _is_initial(ones[0], others[0])):
        return ABBREVIATED
    return fuzz.token_sort_ratio(first, second)


def _is_initial(one: str, other: str) -> bool:
    return one[0] == other[0] and 1 in (len(one), len(other))


def _support(first: PersonRecord, second: PersonRecord, *, abbreviated: bool) -> str | None:
    """Return the evidence that two people with similar names are one person."""
    # Two authors of one package whose names differ by a letter are as likely two people as a typing error.
    if abbreviated and set(first.documents) & set(second.documents):
        return "same package"
    if _spelled_by(first, second) or _spelled_by(second, first):
        return "an e-mail address made of the other's name"
    domains = [{email.rpartition("@")[2] for email in person.emails} - _SHARED_DOMAINS for person in (first, second)]
    if domains[0] & domains[1] and not _told_apart(first, second) and not _told_apart(second, first):
        return "same e-mail domain"
    return None


def _spelled_by(person: PersonRecord, other: PersonRecord) -> bool:
    """Return whether an address of the person spells out the other's name."""
    names = [name.split() for name in _full_names(other)]
    forms = {form for words in names for form in ("".join(words), words[0] + words[-1], words[-1] + words[0])}
    return any(_letters(email) in forms for email in person.emails)


def _told_apart(person: PersonRecord, other: PersonRecord) -> bool:
    """Return whether an address of the person has the person's first name, and not the other's."""
    own = {name.split()[0] for name in _full_names(person)}
    theirs = {name.split()[0] for name in _full_names(other)}
    return any(
        any(len(name) > 1 and name in _letters(email) for name in own)
        and not any(name in _letters(email) for name in theirs)
        for email in person.emails
    )


def _letters(email: str) -> str:
    return re.sub(r"[^a-z]", "", name_key(email.rpartition("@")[0]))
