"""Failures that differ only in what is each document's own are one group, and others are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_batches.lifecycle.failures import MESSAGE_LIMIT
from durable_batches.lifecycle.fingerprints import fingerprint_of, without_particulars

ALIKE = [
    ("timeout after 30 s", "timeout after 2.5 s"),
    ("no such file: 'a.txt'", "no such file: 'some other one.txt'"),
    ('field "name" is missing', 'field "price" is missing'),
    ("request req_8fK2x failed", "request req_11ZzQ failed"),
    ("document 5f0c2b9d-7a5e-4c1f-8a3b-000000000001 is gone", "document 77777777-aaaa-4c1f-8a3b-000000000002 is gone"),
    ("<Client object at 0x7f1b2c3d4e50> is closed", "<Client object at 0x7f0000000010> is closed"),
    ("cannot reach https://a.example/x?y=1: refused", "cannot reach http://b.example/: refused"),
    ("no mailbox of ada@example.org", "no mailbox of charles.b@mail.example.com"),
    ("10.0.0.1:5432 refused the connection", "db-7.internal:5432 refused the connection"),
    ("at 2031-05-01T12:00:00Z nobody answered", "at 2032-11-30T01:02:03Z nobody answered"),
    ("two\n  lines", "two lines"),
    ("can't read 'a', won't read 'b'", "can't read 'x', won't read 'y z'"),
]

DIFFERENT = [
    ("the connection was refused", "the connection was reset"),
    ("can't read it", "won't read it"),
    ("field 'a' is missing", "field 'a' is empty"),
]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_particulars_make_no_difference(one: str, other: str) -> None:
    assert without_particulars(one) == without_particulars(other)
    assert fingerprint_of("ValueError", "ask", one) == fingerprint_of("ValueError", "ask", other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_is_said_makes_one(one: str, other: str) -> None:
    assert fingerprint_of("ValueError", "ask", one) != fingerprint_of("ValueError", "ask", other)


def test_the_kind_and_the_activity_make_one() -> None:
    prints = {fingerprint_of(kind, activity, "no") for kind in ("A", "B") for activity in ("x", "y", None)}
    assert len(prints) == 6


def test_they_do_not_change() -> None:
    """They are stored, and compared with those of other releases: other rules want another prefix."""
    assert fingerprint_of("ValueError", "ask", "no answer after 30 s from 'a'") == "fp1:1c823a0d8e0e664e"


@given(st.text(max_size=200))
def test_any_message_has_one_and_what_is_taken_out_stays_out(message: str) -> None:
    once = without_particulars(message)
    assert without_particulars(once) == once
    assert "\n" not in once


@pytest.mark.parametrize(
    "part", ["'", '"', "a", "1", "@", "a@", ".", ":", "a.", "://", "“", "a://", "a b@", "'a ", "«"]
)
def test_no_message_takes_long(part: str) -> None:
    """A hundred times as long as a message can be: what takes the square of it would not end in time."""
    long = part * (100 * MESSAGE_LIMIT // len(part))
    assert len(without_particulars(long)) <= 4 * len(long)
