"""Parse people and organisations in fields and texts: several at once, with and without an address."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from email.errors import HeaderParseError
from email.header import decode_header, make_header

__all__ = ["Contact", "canonical_email", "is_organization", "name_key", "pair_contacts", "parse_contacts"]


@dataclass(frozen=True, kw_only=True)
class Contact:
    """A person or organisation in a field: a name, an e-mail address, or both."""

    name: str | None = None
    email: str | None = None
    organization: bool = False


def parse_contacts(value: str) -> list[Contact]:
    """Parse the people and organisations of an author field, in order.

    Understands lists (`A, B and C`), addresses (`A <a@x.org>, "B, Jr." <b@x.org>`), several names before
    one address (which is then nobody's own and left out), and leaves out fillers such as `and
    contributors`.
    """
    contacts: list[Contact] = []
    for item in _split(_decoded(value)):
        contacts += _contacts_of_item(item)
    return list(dict.fromkeys(contacts))


def pair_contacts(named: Sequence[Contact], addressed: Sequence[Contact]) -> list[Contact]:
    """Merge two fields that belong together: names in `Author`, addresses in `Author-email`.

    Addresses without a name are given to the names without an address: in order where there are as many of
    both, else where the address fits the name.
    """
    known = {name_key(contact.name) for contact in addressed if contact.name}
    people = [*addressed, *(contact for contact in named if name_key(contact.name or "") not in known)]
    nameless = [contact for contact in people if not contact.name]
    open_names = [contact for contact in people if contact.name and not contact.email]
    given: dict[Contact, Contact] = {}
    if len(nameless) == len(open_names) or len(open_names) == 1:
        given = dict(zip(nameless, open_names, strict=False))
    else:
        for contact in nameless:
            fits = [name for name in open_names if email_fits_name(contact.email or "", name.name or "")]
            if len(fits) == 1 and fits[0] not in given.values():
                given[contact] = fits[0]
    owners = {owner: contact.email for contact, owner in given.items()}
    paired = [
        replace(contact, email=contact.email or owners.get(contact)) for contact in people if contact not in given
    ]
    return [_settled(contact) for contact in paired if contact.name or not _is_shared(contact.email or "")]


def name_key(name: str) -> str:
    """Normalise a name: no accents, no case, no punctuation, single blanks."""
    letters = unicodedata.normalize("NFKD", name.translate(_UNDECOMPOSED)).casefold()
    letters = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return " ".join(re.sub(r"[^\w]+", " ", letters.replace("'", "").replace("’", "")).split())


def canonical_email(email: str) -> str:
    """Normalise an e-mail address: no case, no `+tag`; for a code forge's no-reply address, the login."""
    local, _, domain = email.strip().casefold().rpartition("@")
    before, plus, after = local.partition("+")
    if plus and before:
        local = after if "noreply" in domain and before.isdigit() else before
    return f"{local}@{domain}"


def email_fits_name(email: str, name: str) -> bool:
    """Return whether the part before the `@` can be derived from the name: `jdoe`, `jane.doe`, `doe`, `jane`."""
    local = re.sub(r"[^a-z]", "", name_key(email.rpartition("@")[0].partition("+")[0]))
    tokens = name_key(name).split()
    if not local or not tokens:
        return False
    first, last = tokens[0], tokens[-1]
    made = {first, last, first + last, last + first, first[0] + last, last + first[0], first + last[0]}
    return local in made | {"".join(tokens)} or (len(last) >= 4 and last in local)


def is_organization(name: str) -> bool:
    """Return whether the words of the name denote a group or a company."""
    return bool(_ORGANIZATION.search(name) or re.match(r"the\s", name, re.IGNORECASE))


def looks_like_person(name: str) -> bool:
    """Return whether prose could name a person so: two to four capitalised words, none of them a common noun."""
    tokens = name.split()
    if not 2 <= len(tokens) <= 4 or is_organization(name):
        return False
    capitals = [token for token in tokens if token not in _PARTICLES]
    return len(capitals) >= 2 and all(map(looks_like_name_part, capitals))


def looks_like_name_part(word: str) -> bool:
    """Return whether the word can be part of a person's name: capitalised, and not a usual start of sentences."""
    if re.fullmatch(r"[^\W\d_]\.", word):
        return word.isupper()
    shouted = len(word) > 2 and word.isupper()
    is_word = word[0].isupper() and not shouted and not any(map(str.isdigit, word))
    return is_word and word.strip(".,").lower() not in _NO_NAMES


# Letters that NFKD does not decompose, as they are spelled on other keyboards.
_UNDECOMPOSED = str.maketrans(
    {"ł": "l", "Ł": "L", "ø": "o", "Ø": "O", "đ": "d", "Đ": "D", "ı": "i", "æ": "ae", "Æ": "Ae"}
)

_PARTICLES = frozenset("van von der den de del della da di dos du la le bin ibn al ter ten zu".split())

_NO_NAMES = frozenset(
    """
    a about all an and any api apache author authors beta bsd bug by changelog class code community contact
    contributors copyright core data developer developers documentation example features file first for free
    from general github gnu guide how in install installation inc is issue it license licence linux list mac
    mailing mit module new no note of on open or package please public python quick read release released
    request see server software source standard start support test the this thanks to tutorial unix
    unreleased usage use user version web what windows with you your
    """.split()
)

_ORGANIZATION = re.compile(
    r"""\b(?:
        team | developers? | devs | contributors | maintainers | authors | authority | foundation |
        projects? | community
      | group | organi[sz]ations? | inc | llc | llp | ltd | gmbh | corp | corporation | company | labs? |
      software | technologies | technology | systems | solutions | university | institute | society |
      association | consortium | committee | collective | plc | services | studios? | network | research |
      center | centre | google | microsoft | amazon | facebook | nvidia | anthropic | openai | pallets |
      jupyter | numfocus
    )\b""",
    re.VERBOSE | re.IGNORECASE,
)

_FILLER = re.compile(
    r"""^(?:and\s+|with\s+)?(?:
        (?:many\s+|all\s+|the\s+|several\s+|various\s+|individual\s+|other\s+|its\s+)*(?:others?|contributors?|people)
      | et\.?\s+al\.? | see\s.* | various | several | more | unknown | none | n/?a | anonymous | author |
      authors | me | your\s+name
    )\.?$""",
    re.VERBOSE | re.IGNORECASE,
)

_SUFFIX = re.compile(r"^(?:(?:jr|sr)\.?|i{2,3}|iv|(?:ph\.?\s?d|m\.?\s?sc|m\.?\s?d|b\.?\s?sc|dr)\.?)$", re.IGNORECASE)
_EMAIL = re.compile(r"^[^\s@<>()\"',;]+@[^\s@<>()\"',;]+\.[^\s@<>()\"',;]+$")
# Bounded, and without blanks that two parts could take: foreign text must not make it look for long.
_ADDRESS = re.compile(r"^(?P<name>.*?)[<(](?:mailto:)?(?P<email>[^<>()\s]{1,254}@[^<>()\s]{1,254})[>)]\s*$", re.DOTALL)

_ROLE = re.compile(
    r"""^(?:contact|info|team|devs?|support|admin|help|hello|hey|hi|maintainers?|open-?source|oss|packag(?:es|ing)
        |community|core|no-?reply|security|office|mail|email)$""",
    re.VERBOSE,
)
_LIST = re.compile(r"-(?:dev|devel|sig|users|list|announce|discuss)@|@(?:lists?\.|googlegroups\.)", re.IGNORECASE)


def _decoded(value: str) -> str:
    if "=?" in value:
        try:
            return str(make_header(decode_header(value)))
        except (HeaderParseError, LookupError, UnicodeError):
            return value
    return value


def _split(value: str) -> list[str]:
    """Split at commas, semicolons and line ends that are not within quotes or brackets."""
    items, closing = [""], ""
    for letter in value:
        if closing:
            closing = "" if letter == closing else closing
        elif letter in '"<(':
            closing = {'"': '"', "<": ">", "(": ")"}[letter]
        elif letter in ",;\n":
            items.append("")
            continue
        items[-1] += letter
    return _last_names_first([item.strip() for item in items if item.strip()])


def _last_names_first(parts: list[str]) -> list[str]:
    """Join parts that a comma should not have split: `Doe, Jane` and `Jane Doe, Jr.`."""
    joined: list[str] = []
    for part in parts:
        if joined and _SUFFIX.match(part):
            continue
        joined.append(part)
    single = all(re.fullmatch(r"[^\W\d_][\w'’-]*", part) for part in joined)
    if len(joined) == 2 and single and not any(is_organization(part) or part.islower() for part in joined):
        return [f"{joined[1]} {joined[0]}"]
    return joined


def _contacts_of_item(item: str) -> list[Contact]:
    address = _ADDRESS.match(item)
    if address is None:
        bare = item.strip().strip("<>").removeprefix("mailto:")
        if _EMAIL.match(bare):
            return [Contact(email=bare)]
        return [_named(name) for name in _names(item)]
    email = address["email"] if _EMAIL.match(address["email"]) else None
    written = address["name"].rstrip()
    names = _names(written)
    if not names:
        return [Contact(email=email)] if email else []
    if len(names) == 1 and not _has_filler(written):
        return [_settled(replace(_named(names[0]), email=email))]
    return [_named(name) for name in names]


def _names(text: str) -> list[str]:
    """Find the names in a text without addresses, omitting filler words."""
    text = text.strip().strip("\"'").strip()
    text = re.sub(r"\([^()]*\)|\[[^\]]*\]|https?://\S+", " ", text)
    if is_organization(text) and not _has_filler(text) and "," not in text:
        parts = [text]
    else:
        parts = [name for part in _split(text) for name in re.split(r"\s+(?:and|&|\+)\s+|\s+/\s+|\s+with\s+", part)]
    cleaned = [" ".join(part.split()).strip(" .,;:\"'") if part else "" for part in parts]
    return [name for name in cleaned if name and not _FILLER.match(name) and re.search(r"[^\W\d_]", name)]


def _has_filler(text: str) -> bool:
    return any(_FILLER.match(part.strip()) for part in re.split(r",|\band\b|&", text.strip("\"' ")) if part.strip())


def _named(name: str) -> Contact:
    return Contact(name=name, organization=is_organization(name))


def _settled(contact: Contact) -> Contact:
    """Refine a contact by name and address together: one-word team names, mailing lists as addresses."""
    if contact.name and not contact.organization and " " not in contact.name and contact.email:
        local = contact.email.partition("@")[0].lower()
        contact = replace(contact, organization=bool(_ROLE.match(local) or _LIST.search(contact.email)))
    if contact.email and not contact.organization and _LIST.search(contact.email) and contact.name:
        contact = replace(contact, email=None)
    return contact


def _is_shared(email: str) -> bool:
    """Return whether a mailbox by itself does not identify its reader."""
    return bool(_ROLE.match(email.partition("@")[0].lower()) or _LIST.search(email))
