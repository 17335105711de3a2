"""Ids in URLs: one segment each, which nothing on the way reads as anything else."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_batches.web.urls import id_of, segment_of


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_every_id_has_one_segment(name: str) -> None:
    segment = segment_of(name)
    assert id_of(segment) == name
    assert re.fullmatch(r"[A-Za-z0-9_.:@~-]+", segment)
    assert segment not in (".", "..")
    assert unquote(quote(segment, safe="")) == segment


@given(st.text(max_size=12))
def test_no_two_segments_name_the_same(segment: str) -> None:
    name = id_of(segment)
    assert name is None or segment_of(name) == segment


@pytest.mark.parametrize("segment", ["", "~", ".", "..", "a/b", "~YQ", "~YQ==", "~*", "a b", "~/w", "~_w", "é"])
def test_what_is_no_segment_names_nothing(segment: str) -> None:
    assert id_of(segment) is None


def test_plain_ids_stay_as_they_are() -> None:
    assert segment_of("invoices-2026:11@west.1") == "invoices-2026:11@west.1"
