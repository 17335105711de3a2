"""Find package names in prose: after `pip install`, in imports, code and links, and as plain words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from durable_batches.extraction.names import Vocabulary, canonical_package_name, is_distinctive

__all__ = ["FoundPackage", "find_packages"]


@dataclass(frozen=True, kw_only=True)
class FoundPackage:
    """A package name and its place in a text."""

    name: str
    """The author's spelling, if known."""
    start: int
    end: int


_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_WORD = re.compile(rf"(?<![\w./\\@:#$%&=<+~-]){_NAME}(?![\w/\\@=(-]|\.\w|://)")
_INSTALL = re.compile(
    r"\b(?:pip3?|pipx|uv(?:[ ]pip)?|poetry|pdm|conda|mamba)[ ]+(?:install|add)[ ]+(?P<arguments>[^\n`|&;\1]+)"
)
_ARGUMENT = re.compile(rf"^[\"']?(?P<name>{_NAME})(?:\[[^\]]*\])?(?:[=<>!~].*)?[\"']?$")
_IMPORT = re.compile(
    r"""^[ \t]*(?:>>>[ ]|\.\.\.[ ])?(?:
        from[ ]+(?P<source>[A-Za-z_][\w.]*)[ ]+import[ ]
      | import[ ]+(?P<modules>[A-Za-z_][\w., ]*)
    )""",
    re.MULTILINE | re.VERBOSE,
)
_LINK = re.compile(
    rf"\[`{{0,2}}(?P<markdown>{_NAME})`{{0,2}}\]\((?P<target>[^)\s]+)|`(?P<rst>{_NAME})\s*<(?P<rst_target>[^>\s]+)>`_"
)
_CODE = re.compile(rf"(?<!`)(`{{1,2}})(?P<name>{_NAME})(?:\[[^\]`]*\])?\1(?!`)")
_NOUN = re.compile(
    rf"(?<![\w./-])(?P<tick>`{{0,2}})(?P<name>{_NAME})(?P=tick)[ ]+(?:Python[ ]+)?"
    r"(?:package|library|framework|plugin|distribution|linter|formatter|type[ -]checker|test[ ]runner)\b"
)
_NO_NOUN_NAMES = frozenset(
    """
    a an any each every new other python same single source standard template test testing that the this type
    your
    """.split()
)
_OPTIONS_WITH_VALUE = frozenset(
    "-r --requirement -e --editable -c --constraint -i --index-url --extra-index-url -t --target".split()
)
_AFTER_INSTALL = frozenset(
    """
    and as for from in into it on or that the then this to via when with your you foo bar package packages
    mypackage somepackage some-package your-package yourpackage example-package
    """.split()
)
"""Words that follow `pip install` in prose, and names that stand for any package."""


def find_packages(text: str, prose: str, vocabulary: Vocabulary) -> Iterator[FoundPackage]:
    """Find the places of a text that name a package, each once, in order.

    Args:
        text: The text.
        prose: The same text, as long, with every URL blanked.
        vocabulary: The packages that can be recognised. Only `pip install` and its like can name others.
    """
    found: dict[int, FoundPackage] = {}
    for start, written in _names(text, prose, vocabulary):
        if start not in found:
            module = vocabulary.package_of_module(written) if written not in vocabulary else None
            name = vocabulary.spelling(module or written)
            found[start] = FoundPackage(name=name, start=start, end=start + len(written))
    yield from (found[start] for start in sorted(found))


def _names(text: str, prose: str, vocabulary: Vocabulary) -> Iterator[tuple[int, str]]:
    """Yield the start and the spelling of package names, some more than once."""
    for match in _INSTALL.finditer(prose):
        yield from _installed(match)
    for match in _IMPORT.finditer(prose):
        yield from _imported(match, vocabulary)
    for match in _LINK.finditer(text):
        group = "markdown" if match["markdown"] else "rst"
        target = (match["target"] or match["rst_target"]).lower()
        name = match[group]
        # A link labelled `Coverage` may lead anywhere; a page of that name in its address is evidence.
        if name in vocabulary and (is_distinctive(name) or _is_page_of(name, target)):
            yield match.start(group), name
    for match in _NOUN.finditer(prose):
        if match["name"] in vocabulary and match["name"].lower() not in _NO_NOUN_NAMES:
            yield match.start("name"), match["name"]
    for pattern in (_CODE, _WORD):
        for match in pattern.finditer(prose):
            name = match["name"] if pattern is _CODE else match[0]
            if name in vocabulary and is_distinctive(name):
                yield match.start("name") if pattern is _CODE else match.start(), name


def _is_page_of(name: str, target: str) -> bool:
    key = re.escape(canonical_package_name(name)).replace("\\-", "[-_.]")
    return bool(re.search(rf"(?:/|//){key}(?:[/.#?]|$)", target)) and "codecov" not in target


def _installed(match: re.Match[str]) -> Iterator[tuple[int, str]]:
    """Yield the packages after `pip install`, up to an option with a value or a word that is not a requirement."""
    for word in re.finditer(r"\S+", match["arguments"]):
        text = word[0]
        if text in _OPTIONS_WITH_VALUE:
            return
        if text.startswith("-"):
            continue
        argument = _ARGUMENT.match(text.rstrip(".,:)"))
        if argument is None or not _is_package_argument(argument["name"]):
            return
        yield match.start("arguments") + word.start() + argument.start("name"), argument["name"]


def _is_package_argument(name: str) -> bool:
    is_file = name.endswith((".whl", ".txt", ".gz", ".zip"))
    return len(name) > 1 and name.lower() not in _AFTER_INSTALL and not is_file


def _imported(match: re.Match[str], vocabulary: Vocabulary) -> Iterator[tuple[int, str]]:
    if match["source"]:
        modules = [(match.start("source"), match["source"])]
    else:
        modules = [
            (match.start("modules") + found.start(), found[0])
            for found in re.finditer(r"(?:(?<=^)|(?<=,)|(?<=, ))[A-Za-z_][\w.]*", match["modules"])
        ]
    for start, module in modules:
        if vocabulary.package_of_module(module):
            yield start, module.split(".")[0]
