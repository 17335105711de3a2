from __future__ import annotations

from datetime import timedelta

from durable_batches import RetryLater
from durable_batches.lifecycle.failures import (
    MESSAGE_LIMIT,
    ActivityFailure,
    DocumentFailureRecord,
    in_a_line,
    message_of,
    message_of_group,
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
    assert (error.batch_id, error.document_id) == ("", "")


def test_a_replayed_failure_is_told_where_it_happens() -> None:
    error = ActivityFailure.of("ask", Refused("no"), 3, retryable=True).error("batch", "document")
    assert (error.batch_id, error.document_id) == ("batch", "document")


def test_failures_are_stored_in_a_form_that_stays() -> None:
    """What is in databases by now has to be read by every later version; and it is compact."""
    activity = ActivityFailure("ask", "Refused", "nö", 3, True, ("Refused", "OSError"))
    assert activity.encode() == (
        b'{"activity":"ask","error_type":"Refused","message":"n\\u00f6","attempts":3,"retryable":true,'
        b'"kinds":["Refused","OSError"]}'
    )
    document = DocumentFailureRecord("no", "Refused", None, 2)
    assert document.encode() == b'{"error":"no","error_type":"Refused","activity":null,"attempts":2}'


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
    assert message_of(Refused("x" * MESSAGE_LIMIT)) == "x" * MESSAGE_LIMIT
    assert message_of(Refused("x" * (MESSAGE_LIMIT + 1))) == "x" * (MESSAGE_LIMIT - 1) + "…"


def test_a_message_that_utf8_cannot_hold_is_made_to_fit() -> None:
    assert message_of(Refused("a\ud800b")) == "a?b"


def test_the_message_of_a_group_names_its_first_error() -> None:
    first = Refused("no\nway")
    group = ExceptionGroup("two failed", [first, Unspeakable()])
    assert message_of_group(group, first) == "two failed (2 sub-exceptions): Refused: no way"
    assert len(message_of_group(ExceptionGroup("x" * MESSAGE_LIMIT, [first]), first)) == MESSAGE_LIMIT


def test_a_group_that_was_given_the_message_of_its_error_says_it_once() -> None:
    first = Refused("no way")
    assert message_of_group(ExceptionGroup("no way", [first]), first) == "no way (1 sub-exception): Refused"


def test_an_error_in_a_line() -> None:
    assert in_a_line("Refused", "no\n  way\x1b") == "Refused: no way"
    assert in_a_line("Refused", "") == "Refused"
    assert in_a_line("Refused", "Refused") == "Refused"
    assert in_a_line("", "no") == "no"
    assert in_a_line("", "") == ""
    assert in_a_line("Refused", "x" * 401) == f"Refused: {'x' * 399}…"
    assert in_a_line("Refused", "x" * 400) == f"Refused: {'x' * 400}"


def test_the_class_of_an_error_is_said_once() -> None:
    failed = ActivityFailure.of("ask", Refused("no"), 3, retryable=True).error()
    assert in_a_line("Refused", str(failed)) == "activity 'ask' failed after 3 attempts: Refused: no"
    bare = ActivityFailure.of("ask", Refused(), 3, retryable=True).error()
    assert in_a_line("Refused", str(bare)) == "activity 'ask' failed after 3 attempts: Refused"
    assert in_a_line("Refused", "Refused: no") == "Refused: no"
    assert ActivityFailure.of("ask", Refused("Refused: no"), 1, retryable=True).error().args == (
        "activity 'ask' failed after 1 attempt: Refused: no",
    )
    # Only where messages say it.
    assert in_a_line("Refused", "Refused by the host") == "Refused: Refused by the host"
    assert in_a_line("Refused", "NotRefused: no") == "Refused: NotRefused: no"


def test_of_an_error_that_only_asks_for_a_delay_the_one_behind_it_is_recorded() -> None:
    later = RetryLater(timedelta(seconds=2))
    alone = ActivityFailure.of("ask", later, 3, retryable=True)
    assert (alone.error_type, alone.message) == ("RetryLater", "retry after 2 s")
    later.__cause__ = ConnectionError("overloaded")
    record = ActivityFailure.of("ask", later, 3, retryable=True)
    assert (record.error_type, record.message) == ("ConnectionError", "overloaded")
    error = record.error()
    assert all(error.caused_by(kind) for kind in (ConnectionError, OSError, RetryLater))
    assert not error.caused_by(ValueError)

    class Overloaded(RetryLater):
        pass

    own = Overloaded(timedelta(seconds=2))
    own.__cause__ = ConnectionError("overloaded")
    assert ActivityFailure.of("ask", own, 3, retryable=True).error_type == "Overloaded"
