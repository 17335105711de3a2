"""Names and ids that users give."""

from __future__ import annotations

import pytest

from durable_batches.lifecycle.primitives import LONGEST_NAME, problem_with_name


@pytest.mark.parametrize("name", ["a", "Größe #1", "a:b", " ", "\n", "\U0001f600", "x" * LONGEST_NAME])
def test_what_can_be_a_name(name: str) -> None:
    assert problem_with_name(name) is None


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "must have 1 to 512 characters, not 0"),
        ("x" * 513, "must have 1 to 512 characters, not 513"),
        ("a\0b", "must not contain NUL or lone surrogates"),
        ("\ud800", "must not contain NUL or lone surrogates"),
        ("a\udfff", "must not contain NUL or lone surrogates"),
        (b"bytes", "must be a str, not 'bytes'"),
        (None, "must be a str, not 'NoneType'"),
    ],
)
def test_what_cannot(name: object, problem: str) -> None:
    assert problem_with_name(name) == problem


@pytest.mark.parametrize("name", ["\ud7ff", "\ue000"])
def test_characters_beside_the_surrogates_can(name: str) -> None:
    assert problem_with_name(name) is None
