from __future__ import annotations

from durable_batches.lifecycle.failures import (
    MESSAGE_LIMIT,
    ActivityFailure,
    DocumentFailureRecord,
    message_of,
)


class Refused(ConnectionError):
    pass


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def test_an_activitys_failure_is_the_same_on_every_read() -> None:
    failure = ActivityFailure.of("ask", Refused("nö\x00"), 3, retryable=True)
    assert ActivityFailure.decode(failure.encode()) == failure
    error = ActivityFailure.decode(failure.encode()).error()
    assert (error.activity, error.error_type, error.message, error.attempts) == ("ask", "Refused", "nö\x00", 3)
    assert error.retryable


def test_a_recorded_failure_knows_its_kin() -> None:
    failure = ActivityFailure.of("ask", Refused("no"), 1, retryable=False)
    error = ActivityFailure.decode(failure.encode()).error()
    assert error.caused_by(Refused)
    assert error.caused_by(OSError)
    assert error.caused_by(Exception)
    assert not error.caused_by(TimeoutError)
    assert not error.retryable


def test_a_documents_failure_is_the_same_on_every_read() -> None:
    for activity in (None, "ask"):
        record = DocumentFailureRecord("no\ud83d\udcc4".encode(errors="replace").decode(), "Refused", activity, 2)
        assert DocumentFailureRecord.decode(record.encode()) == record


def test_messages_are_bounded_and_never_fail() -> None:
    assert message_of(Refused("no")) == "no"
    assert message_of(Refused()) == "Refused"
    assert message_of(Unspeakable()) == "Unspeakable"
    long = message_of(Refused("x" * 10_000))
    assert len(long) == MESSAGE_LIMIT
    assert long.endswith("…")


def test_a_message_that_utf8_cannot_hold_is_made_to_fit() -> None:
    assert message_of(Refused("a\ud800b")) == "a?b"
