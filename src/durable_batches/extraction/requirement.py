"""A dependency of a package, as core metadata writes it (PEP 508)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from durable_batches.errors import MissingExtraError

try:
    from packaging import requirements
except ImportError as _error:
    raise MissingExtraError("extraction", "packaging") from _error

__all__ = ["Requirement", "parse_requirement"]


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A parsed `Requires-Dist` value."""

    name: str
    extras: tuple[str, ...] = ()
    """The requested extras of the other package: `uvicorn[standard]`."""
    specifier: str = ""
    """The accepted versions, without blanks: `>=2,<3`; empty: any."""
    url: str | None = None
    marker: str = ""
    """The condition under which it applies, without the part that names an extra, if that part can be removed."""
    extra: str | None = None
    """The extra of the requiring package that adds it; None: always required (if the marker holds)."""


_EXTRA = re.compile(r"""\bextra\s*==\s*(?:'([^']*)'|"([^"]*)") | (?:'([^']*)'|"([^"]*)")\s*==\s*extra\b""", re.VERBOSE)


def parse_requirement(text: str) -> Requirement | None:
    """Parse a requirement, or return None for a text that is not a valid one.

    Versions and marker are returned as they were written: `packaging` sorts the former and rewrites the latter.
    """
    try:
        parsed = requirements.Requirement(text)
    except (requirements.InvalidRequirement, RecursionError):  # the latter for thousands of parentheses in the marker
        return None
    written = re.split(r"\s;" if parsed.url else ";", text, maxsplit=1)
    marker = " ".join(written[1].split()) if len(written) > 1 else ""
    extra = _EXTRA.search(marker)
    return Requirement(
        name=parsed.name,
        extras=tuple(sorted(parsed.extras)),
        specifier="" if parsed.url else _specifier(written[0].strip().removeprefix(parsed.name)),
        url=parsed.url,
        marker=_without_extra(marker),
        extra=next(filter(None, extra.groups()), None) if extra else None,
    )


def _specifier(text: str) -> str:
    """Return the versions behind a name and its extras; the form before PEP 508 has them in parentheses."""
    text = text.lstrip()
    if text.startswith("["):
        text = text.partition("]")[2]
    return re.sub(r"\s+", "", text).removeprefix("(").removesuffix(")").rstrip(",")


def _without_extra(marker: str) -> str:
    """Remove the comparison with an extra, where `and` joins it: `a or extra == "x"` stays as it is."""
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
