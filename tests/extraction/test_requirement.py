from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.extraction.examples import quick

from durable_batches.extraction.requirement import Requirement, parse_requirement


@pytest.mark.parametrize(
    ("text", "requirement"),
    [
        ("click", Requirement(name="click")),
        ("click>=8.0", Requirement(name="click", specifier=">=8.0")),
        ("click >= 8.0 , < 9", Requirement(name="click", specifier=">=8.0,<9")),
        ("numpy (>=1.21,<3)", Requirement(name="numpy", specifier=">=1.21,<3")),
        (
            "numpy (>=1.21) ; python_version < '3'",
            Requirement(name="numpy", specifier=">=1.21", marker="python_version < '3'"),
        ),
        (
            "uvicorn[standard, http2]~=0.30",
            Requirement(name="uvicorn", extras=("http2", "standard"), specifier="~=0.30"),
        ),
        ("zope.interface===5.0-custom", Requirement(name="zope.interface", specifier="===5.0-custom")),
        ("pytest; extra == 'test'", Requirement(name="pytest", extra="test")),
        ('pytest>=7 ; extra=="test"', Requirement(name="pytest", specifier=">=7", extra="test")),
        ("pytest; 'test' == extra", Requirement(name="pytest", extra="test")),
        (
            'tomli ; python_version < "3.11" and extra == "toml"',
            Requirement(name="tomli", marker='python_version < "3.11"', extra="toml"),
        ),
        (
            'tomli ; (python_version < "3.11") and extra == "toml"',
            Requirement(name="tomli", marker='python_version < "3.11"', extra="toml"),
        ),
        (
            'a ; (os_name == "nt" or os_name == "posix") and extra == "all"',
            Requirement(name="a", marker='os_name == "nt" or os_name == "posix"', extra="all"),
        ),
        (
            # Nothing can be taken out of an `or`.
            'a ; os_name == "nt" or extra == "all"',
            Requirement(name="a", marker='os_name == "nt" or extra == "all"', extra="all"),
        ),
        (
            "parrot @ https://git.example.org/parrot.git#egg=parrot ; os_name == 'posix'",
            Requirement(
                name="parrot",
                url="https://git.example.org/parrot.git#egg=parrot",
                marker="os_name == 'posix'",
            ),
        ),
    ],
)
def test_a_requirement_is_parsed(text: str, requirement: Requirement) -> None:
    assert parse_requirement(text) == requirement


@pytest.mark.parametrize("text", ["", " ", "-r other.txt", ">=1.0", "two words", "click >>", "[extra]", "click~=8"])
def test_an_invalid_requirement_is_none(text: str) -> None:
    assert parse_requirement(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "click" + ">=1     " * 14 + "!",  # 118 characters, over which a pattern of our own took for ever
        "click" + ">=1     " * 2_000 + "!",
        "click;" + "(" * 2_000 + "os_name == 'nt'" + ")" * 2_000,
    ],
)
def test_a_hostile_requirement_is_refused_at_once(text: str) -> None:
    assert parse_requirement(text) is None


names = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,10}[A-Za-z0-9])?", fullmatch=True)
words = st.text(string.ascii_lowercase, min_size=1, max_size=6)
versions = st.lists(st.integers(0, 99), min_size=1, max_size=3).map(lambda parts: ".".join(map(str, parts)))
operators = st.sampled_from(["==", ">=", "<=", "<", ">", "!="])
compatible = st.tuples(st.just("~="), versions.map("1.{}".format))  # needs two numbers
specifiers = st.lists(st.tuples(operators, versions) | compatible, max_size=3)
blanks = st.sampled_from(["", " ", "  "])


@quick
@given(names, st.sets(words, max_size=3), specifiers, st.none() | words, st.data())
def test_what_is_written_is_read(
    name: str, extras: set[str], specifier: list[tuple[str, str]], extra: str | None, data: st.DataObject
) -> None:
    blank = data.draw(blanks)
    text = name + blank
    if extras:
        text += f"[{(blank + ',').join(extras)}]{blank}"
    text += f"{blank},{blank}".join(f"{operator}{blank}{version}" for operator, version in specifier)
    if extra is not None:
        text += f"{blank};{blank}python_version{blank}<{blank}'3.11' and extra{blank}=={blank}'{extra}'"
    requirement = parse_requirement(text)
    assert requirement is not None
    assert requirement.name == name
    assert requirement.extras == tuple(sorted(extras))
    assert requirement.specifier == ",".join(operator + version for operator, version in specifier)
    assert requirement.extra == extra
    assert ("3.11" in requirement.marker) == (extra is not None)
    assert "extra" not in requirement.marker


@quick
@given(st.text())
def test_any_text_is_answered(text: str) -> None:
    requirement = parse_requirement(text)
    assert requirement is None or requirement.name in text
