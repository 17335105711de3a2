"""Patterns on foreign text look at each part of it a bounded number of times: a long text that fits none ends soon.

Each text has a length at which a pattern that looks at all of it from each place would take many minutes.
"""

from __future__ import annotations

import re

import pytest

from durable_batches.extraction import people, text_rules

HALF: int = 200_000


@pytest.mark.parametrize("blank", [" ", "\t", "\n"])
def test_an_address_after_many_blanks(blank: str) -> None:
    assert people._ADDRESS.match(blank * 2 * HALF) is None
    found = people._ADDRESS.match(f"A. Writer{blank * HALF}<a@example.org>{blank * HALF}")
    assert found is not None
    assert found["email"] == "a@example.org"


def test_an_address_of_many_signs() -> None:
    assert people._ADDRESS.match("<" + "@a" * HALF) is None


@pytest.mark.parametrize(
    ("pattern", "part"), [(text_rules._ADDRESSED, "a-"), (text_rules._NAMED, "A."), (text_rules._NAMED, "1.")]
)
def test_words_without_an_end(pattern: re.Pattern[str], part: str) -> None:
    assert pattern.search(part * HALF) is None
