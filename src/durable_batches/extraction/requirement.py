"""One dependency of a package, as core metadata writes it (PEP 508)."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Requirement", "parse_requirement"]


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A parsed `Requires-Dist` value."""

    name: str
    extras: tuple[str, ...] = ()
    """The extras of the other package that are asked for: `uvicorn[standard]`."""
    specifier: str = ""
    """Which versions do, without blanks: `>=2,<3`; empty: any."""
    url: str | None = None
    marker: str = ""
    """The condition under which it counts, less the part that names an extra, where that can be taken out."""
    extra: str | None = None
    """The extra of the requiring package that brings it; None: always required (where the marker holds)."""


_REQUIREMENT = re.compile(
    r"""
    ^\s*(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)
    \s*(?:\[(?P<extras>[^\]]*)\])?
    \s*(?:
        @\s*(?P<url>\S+?)(?:\s+(?=;)|\s*$)      # a blank must part a URL from the marker's semicolon
      | \((?P<old>[^()]*)\)                     # the versions' form before PEP 508: name (>=1)
      | (?P<specifier>(?:(?:~=|===?|!=|<=?|>=?)\s*[A-Za-z0-9][^\s,;<>=!~]*\s*,?\s*)+)
    )?
    \s*(?:;\s*(?P<marker>.*?))?\s*$
    """,
    re.VERBOSE | re.DOTALL,
)

_EXTRA = re.compile(r"""\bextra\s*==\s*(?:'([^']*)'|"([^"]*)") | (?:'([^']*)'|"([^"]*)")\s*==\s*extra\b""", re.VERBOSE)


def parse_requirement(text: str) -> Requirement | None:
    """The requirement that the text states; None where it states none."""
    match = _REQUIREMENT.match(text)
    if match is None:
        return None
    marker = " ".join((match["marker"] or "").split())
    extra = _EXTRA.search(marker)
    return Requirement(
        name=match["name"],
        extras=tuple(sorted(part.strip() for part in (match["extras"] or "").split(",") if part.strip())),
        specifier=re.sub(r"\s+", "", match["specifier"] or match["old"] or "").rstrip(","),
        url=match["url"],
        marker=_without_extra(marker),
        extra=next(filter(None, extra.groups()), None) if extra else None,
    )


def _without_extra(marker: str) -> str:
    """Only `and` binds: from `a or extra == "x"` nothing can be taken out."""
    if not _EXTRA.search(marker) or re.search(r"\bor\b", _operators_outside_parentheses(marker)):
        return marker
    rest = _EXTRA.sub("\0", marker, count=1)
    rest = re.sub(r"\(\s*\0\s*\)", "\0", rest)
    taken = re.sub(r"\s+and\s+\0|\0\s+and\s+|^\0$", "", rest)
    if "\0" in taken:
        return marker
    single = re.fullmatch(r"\(([^()]*)\)", taken)
    return single[1] if single else taken


def _operators_outside_parentheses(marker: str) -> str:
    marker = re.sub(r"'[^']*'|\"[^\"]*\"", "", marker)
    while (stripped := re.sub(r"\([^()]*\)", "", marker)) != marker:
        marker = stripped
    return marker
