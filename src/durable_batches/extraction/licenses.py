"""Recognise licences: SPDX expressions, classifiers, and the many spellings of a licence's name."""

from __future__ import annotations

import re

from durable_batches.errors import MissingExtraError

try:
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
except ImportError as _error:
    raise MissingExtraError("extraction", "packaging") from _error

__all__ = ["is_generic_license", "license_family", "license_of_classifier", "licenses_in", "parse_expression"]


def parse_expression(expression: str) -> list[str] | None:
    """List the licences of an SPDX expression, each once and in order; return None for an invalid expression.

    A licence with an exception counts as a licence of its own: `Apache-2.0 WITH LLVM-exception`.
    """
    try:
        canonical = canonicalize_license_expression(expression)
    except InvalidLicenseExpression:
        return None
    found: list[str] = []
    tokens = iter(re.sub(r"[()]", " ", canonical).split())
    for token in tokens:
        if token == "WITH":
            found[-1] = f"{found[-1]} WITH {next(tokens)}"
        elif token not in ("AND", "OR"):
            found.append(token)
    return list(dict.fromkeys(found))


_WHOLE_TEXTS = [
    ("MIT", re.compile(r"permission is hereby granted, free of charge, to any person obtaining a copy")),
    ("BSD-3-Clause", re.compile(r"redistribution and use in source and binary forms.*neither the names? ")),
    ("BSD-2-Clause", re.compile(r"redistribution and use in source and binary forms")),
    (
        "ISC",
        re.compile(r"permission to use, copy, modify,? and(?:/or)? distribute this software for any purpose"),
    ),
    ("Apache-2.0", re.compile(r"apache license,? version 2\.0, january 2004")),
    ("MPL-2.0", re.compile(r"mozilla public license,? version 2\.0")),
    ("AGPL-3.0", re.compile(r"gnu affero general public license version 3, 19 november 2007")),
    ("LGPL-3.0", re.compile(r"gnu lesser general public license version 3, 29 june 2007")),
    ("GPL-3.0", re.compile(r"gnu general public license version 3, 29 june 2007")),
    ("GPL-2.0", re.compile(r"gnu general public license version 2, june 1991")),
    ("Unlicense", re.compile(r"this is free and unencumbered software released into the public domain")),
    ("Zlib", re.compile(r"this software is provided 'as-is', without any express or implied warranty")),
    ("PSF-2.0", re.compile(r"python software foundation license version 2")),
]

_GNU = re.compile(
    r"""\b(?:gnu\s+)?(?:
            (?P<agpl>agpl|affero(?:\s+general\s+public\s+licen[cs]e)?)
          | (?P<lgpl>lgpl|(?:lesser|library)(?:\s+or\s+lesser)?\s+general\s+public\s+licen[cs]e)
          | (?P<gpl>gpl|general\s+public\s+licen[cs]e)
        )
        (?:[\s,(:-]*(?:version\s*|v\.?\s*)?(?P<version>[123](?:\.[01])?)(?![\d.]*\d))?
        (?P<later>\s*\+|[\s,(-]*or[\s-]+(?:\(at\s+your\s+option\)\s+)?(?:any\s+)?(?:later|newer|above))?
    """,
    re.VERBOSE,
)

_FAMILIES = [
    (
        re.compile(r"\bapache(?:[\s-]+software)?(?:[\s-]+licen[cs]e)?[\s,(-]*(?:version\s*|v\.?\s*)?2(?:\.0)?\b"),
        "Apache-2.0",
    ),
    (re.compile(r"\bapache\s+1\.1\b"), "Apache-1.1"),
    (re.compile(r"\bapache\b|\basl\b"), "Apache"),
    (re.compile(r"\b0bsd\b|\bzero[\s-]clause\s+bsd\b"), "0BSD"),
    (
        re.compile(r"\bbsd[\s-]*\(?(?:2|two)[\s-]*clause|\b(?:2|two)[\s-]clause[\s-]bsd\b|\bsimplified\s+bsd\b"),
        "BSD-2-Clause",
    ),
    (
        re.compile(
            r"\bbsd[\s-]*\(?(?:3|three)[\s-]*clause|\b(?:3|three)[\s-]clause[\s-]bsd\b"
            r"|\b(?:new|modified|revised)\s+bsd\b|\bbsd[\s-]new\b"
        ),
        "BSD-3-Clause",
    ),
    (re.compile(r"\bbsd[\s-]*\(?(?:4|four)[\s-]*clause|\boriginal\s+bsd\b"), "BSD-4-Clause"),
    (re.compile(r"\bbsd\b"), "BSD"),
    (re.compile(r"\bmit-0\b|\bmit\s+no\s+attribution\b"), "MIT-0"),
    (re.compile(r"\bmit-cmu\b"), "MIT-CMU"),
    (re.compile(r"\bmit\b|\bexpat\s+licen[cs]e"), "MIT"),
    (re.compile(r"\bisc\b|\biscl\b"), "ISC"),
    (
        re.compile(r"\b(?:mpl|mozilla\s+public\s+licen[cs]e)[\s,(:-]*(?:version\s*|v\.?\s*)?2(?:\.0)?\b"),
        "MPL-2.0",
    ),
    (re.compile(r"\b(?:mpl|mozilla\s+public\s+licen[cs]e)[\s,(:-]*(?:version\s*|v\.?\s*)?1\.1\b"), "MPL-1.1"),
    (re.compile(r"\bmpl\b|\bmozilla\s+public\s+licen[cs]e"), "MPL"),
    (re.compile(r"\bpsfl?\b|\bpython\s+software\s+foundation\s+licen[cs]e"), "PSF-2.0"),
    (re.compile(r"\bzpl\b|\bzope\s+public\s+licen[cs]e"), "ZPL-2.1"),
    (re.compile(r"\bboost\s+software\s+licen[cs]e|\bbsl-1\.0\b"), "BSL-1.0"),
    (re.compile(r"\b(?:the\s+)?unlicense\b"), "Unlicense"),
    (re.compile(r"\bcc0\b"), "CC0-1.0"),
    (re.compile(r"\bcc[\s-]by[\s-]sa(?:[\s-]4\.0)?\b"), "CC-BY-SA-4.0"),
    (re.compile(r"\bcc[\s-]by[\s-]4\.0\b"), "CC-BY-4.0"),
    (re.compile(r"\bpublic\s+domain\b"), "Public Domain"),
    (re.compile(r"\bzlib\b"), "Zlib"),
    (re.compile(r"\bepl[\s-]*2\.0\b|\beclipse\s+public\s+licen[cs]e[\s,-]*(?:version\s*|v)?2"), "EPL-2.0"),
    (re.compile(r"\beupl[\s-]*1\.2\b|\beuropean\s+union\s+public\s+licen[cs]e\s+1\.2"), "EUPL-1.2"),
    (re.compile(r"\bartistic(?:\s+licen[cs]e)?[\s-]*2\.0\b"), "Artistic-2.0"),
    (re.compile(r"\bhpnd\b|\bhistorical\s+permission\s+notice"), "HPND"),
    (re.compile(r"\bwtfpl\b"), "WTFPL"),
    (re.compile(r"\bproprietary\b|\ball\s+rights\s+reserved\b|\bcommercial\s+licen[cs]e"), "Proprietary"),
]

_WHOLE_TEXT_LENGTH = 400
"""The name of a licence is shorter, its text is longer."""


def licenses_in(text: str) -> list[str]:
    """Find the licences that a text names, or the one whose full text it is; each once, in order.

    An SPDX identifier where the licence and its version are known (`BSD-3-Clause`), else the family (`BSD`).
    """
    flat = " ".join(text.lower().split())
    if len(flat) > _WHOLE_TEXT_LENGTH:
        for identifier, pattern in _WHOLE_TEXTS:
            if pattern.search(flat):
                return [identifier]
        flat = flat[:_WHOLE_TEXT_LENGTH]
    found = [(match.start(), _gnu_identifier(match)) for match in _GNU.finditer(flat)]
    # Each match is blanked, so that `BSD` does not match again inside `BSD-3-Clause`.
    flat = _GNU.sub(lambda match: " " * len(match[0]), flat)
    for pattern, identifier in _FAMILIES:
        found += [(match.start(), identifier) for match in pattern.finditer(flat)]
        flat = pattern.sub(lambda match: " " * len(match[0]), flat)
    names = list(dict.fromkeys(identifier for _, identifier in sorted(found)))
    specific = {license_family(name) for name in names if not is_generic_license(name)}
    return [name for name in names if not (is_generic_license(name) and license_family(name) in specific)]


def license_of_classifier(classifier: str) -> list[str]:
    """Find the licences of a `License :: ...` classifier; none for other classifiers and groups of licences."""
    parts = [part.strip() for part in classifier.split("::")]
    if parts[0] != "License" or len(parts) < 2 or parts[-1] in ("OSI Approved", "License"):
        return []
    return licenses_in(parts[-1]) or [re.sub(r"\s*\([^)]*\)$", "", parts[-1])]


def license_family(name: str) -> str:
    """Return the family of a licence: `bsd` of `BSD-3-Clause`."""
    return re.split(r"[-\s]", name.lower(), maxsplit=1)[0]


def is_generic_license(name: str) -> bool:
    """Return whether the name is only a family: `BSD`, `GPL`, `Apache`."""
    return name in ("AGPL", "Apache", "BSD", "GPL", "LGPL", "MPL")


def _gnu_identifier(match: re.Match[str]) -> str:
    family = "AGPL" if match["agpl"] else "LGPL" if match["lgpl"] else "GPL"
    version = match["version"]
    if version is None:
        return family
    number = version if "." in version else f"{version}.0"
    if match["later"]:
        return f"{family}-{number}-or-later"
    # `GPLv3` alone does not state whether later versions are allowed.
    return f"{family}-{number}-only" if "-only" in match.string[match.end() : match.end() + 5] else f"{family}-{number}"
