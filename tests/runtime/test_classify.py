"""What an error means: of the clients that were recorded, of groups and chains, and of objects that misbehave."""

from __future__ import annotations

import asyncio
import email.message
import email.utils
import io
import logging
import math
import urllib.error
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.properties import modest
from tests.runtime.client_errors import CLIENTS, NOW, situations

from durable_batches import (
    CheckpointMismatchError,
    ConfigurationError,
    MachineError,
    NonRetryableError,
    Overloaded,
    PayloadError,
    QuotaExhausted,
    RetryLater,
    Verdict,
    default_classifier,
)
from durable_batches.errors import FactRejectedError
from durable_batches.runtime.classify import classify_by
from durable_batches.runtime.delays import quoted_seconds, seconds_of, seconds_until

SECOND = timedelta(seconds=1)


class ClientError(Exception):
    def __init__(self, text: str = "", **attributes: Any) -> None:
        super().__init__(text)
        vars(self).update(attributes)


def response(status: int | None = None, headers: Any = None) -> SimpleNamespace:
    return SimpleNamespace(status_code=status, headers=headers or {})


def judged(error: BaseException) -> tuple[str, float | None]:
    verdict = classify_by(default_classifier, error, NOW)
    return verdict.kind, None if verdict.retry_after is None else verdict.retry_after.total_seconds()


# ---- recorded errors of clients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", CLIENTS)
def test_errors_of_clients_mean_what_they_say(client: str) -> None:
    recorded = list(situations(client))
    assert recorded
    assert {situation.name: judged(situation.error) for situation in recorded} == {
        situation.name: (situation.kind, situation.retry_after) for situation in recorded
    }


# ---- delays --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (20, 20),
        ("20", 20),
        ("19.5s", 19.5),
        ("6m0s", 360),
        ("1h2m3s", 3723),
        ("120ms", 0.12),
        ("1d", 86_400),
        ("2 minutes", 120),
        ("1 hour 5 secs", 3_605),
        ("1500 milliseconds", 1.5),
        ("5 months", None),
        ("5 s", 5),
        (timedelta(seconds=3), 3),
        ("99999999", 86_400),
        (1e300, 86_400),
        ("", None),
        ("soon", None),
        ("-5", None),
        (-5, None),
        ("nan", None),
        (math.nan, None),
        ("inf", None),
        (math.inf, None),
        ("1e9", None),
        (True, None),
        (None, None),
        (b"20", None),
    ],
    ids=repr,
)
def test_forms_of_durations(value: object, seconds: float | None) -> None:
    assert seconds_of(value) == seconds


def test_forms_of_moments() -> None:
    assert seconds_until(10**400, NOW) == 86_400
    assert seconds_until(email.utils.formatdate(NOW + 20, usegmt=True), NOW) == 20
    assert seconds_until(datetime.fromtimestamp(NOW + 7, UTC).isoformat().replace("+00:00", "Z"), NOW) == 7
    assert seconds_until(datetime.fromtimestamp(NOW + 7, UTC).replace(tzinfo=None).isoformat(), NOW) == 7
    assert seconds_until(str(NOW + 30), NOW) == 30
    assert seconds_until(NOW + 30, NOW) == 30
    # Milliseconds since the epoch; a header that was sent twice.
    assert seconds_until(str((NOW + 30) * 1_000), NOW) == 30
    assert seconds_until("3, 9", NOW) == 9
    assert seconds_until("3, soon", NOW) is None
    assert seconds_until("0, 0", NOW) == 0
    assert seconds_until(f"{NOW + 30:.0f}, {NOW + 30:.0f}", NOW) == 30
    assert seconds_until(f"{NOW - 30:.0f}, {NOW - 30:.0f}", NOW) is None


@pytest.mark.parametrize("moment", [email.utils.formatdate(NOW - 99, usegmt=True), NOW - 1, "9999-99-99", object()])
def test_a_moment_that_has_passed_asks_for_no_delay(moment: object) -> None:
    assert seconds_until(moment, NOW) is None


def test_delays_quoted_in_a_message() -> None:
    assert quoted_seconds("Please try again in 6.5s.") == 6.5
    assert quoted_seconds("Please retry in 1m30s") == 90
    assert quoted_seconds("Please retry after 20 seconds.") == 20
    assert quoted_seconds("try again in 1 minute 5 s") == 65
    assert quoted_seconds("try again in a while") is None
    assert judged(ClientError("Please try again in 6.5s.", status_code=429)) == ("overloaded", 6.5)


def test_the_clock_of_the_provider_beats_that_of_this_machine() -> None:
    headers = {
        "Date": email.utils.formatdate(NOW - 3_600, usegmt=True),
        "Retry-After": email.utils.formatdate(NOW - 3_580, usegmt=True),
    }
    assert judged(ClientError(response=response(429, headers))) == ("overloaded", 20)


def test_the_limit_that_is_used_up_says_when_it_is_reset() -> None:
    headers = {
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "400s",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "20s",
    }
    assert judged(ClientError(status_code=429, headers=headers)) == ("overloaded", 20)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-ms-retry-after-ms": "2500", "retry-after": "3"}, 2.5),
        ({"x-rate-limit-remaining": "0", "x-rate-limit-reset": str(NOW + 40)}, 40),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str((NOW + 40) * 1_000)}, 40),
        ({"ratelimit": "limit=100, remaining=0, reset=50"}, 50),
        ({"ratelimit": "limit=100, remaining=1, reset=50"}, None),
        ({"ratelimit": '"burst";r=0;t=50, "day";r=9;t=900'}, 50),
        ({"ratelimit": ";;=,=0;r=0"}, None),
    ],
)
def test_further_headers_that_say_when(headers: dict[str, str], seconds: float | None) -> None:
    assert judged(ClientError(response=response(429, headers))) == ("overloaded", seconds)


def message(value: str) -> email.message.Message:
    headers = email.message.Message()
    headers["Retry-After"] = value
    return headers


@pytest.mark.parametrize(
    "error",
    [
        ClientError(response=response(429, message("20"))),
        ClientError(response=response(429, message(email.utils.formatdate(NOW + 20, usegmt=True)))),
        ClientError(status=429, headers=message("20")),
        urllib.error.HTTPError("http://localhost", 429, "slow down", message("20"), io.BytesIO()),
        ClientError(response=response(429, {"Retry-After": "20"})),
        ClientError(response=response(429, [(b"Retry-After", b"20")])),
        ClientError(response=response(429, {"retry-after-ms": "20000"})),
        ClientError(status_code=429, retry_after=timedelta(seconds=20)),
        ClientError(status_code=429, body={"error": {"details": [{"retryDelay": "20s"}]}}),
    ],
    ids=[
        "a message",
        "a date",
        "aiohttp",
        "urllib",
        "a dictionary",
        "pairs of bytes",
        "milliseconds",
        "an attribute",
        "in the body",
    ],
)
def test_forms_of_retry_after(error: Exception) -> None:
    assert judged(error) == ("overloaded", 20)


# ---- kinds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (Overloaded(5 * SECOND), Verdict(kind="overloaded", retry_after=5 * SECOND)),
        (RetryLater(5 * SECOND), Verdict(kind="retry", retry_after=5 * SECOND)),
        (QuotaExhausted(), Verdict(kind="quota")),
        (QuotaExhausted(retry_after=5 * SECOND), Verdict(kind="quota", retry_after=5 * SECOND)),
        (NonRetryableError(), Verdict(kind="never")),
        (PayloadError("result", "$", "NaN"), Verdict(kind="never")),
        (ConfigurationError("no"), Verdict(kind="never")),
        (MachineError("no"), Verdict(kind="never")),
        (CheckpointMismatchError("activity", "batch", "document"), Verdict(kind="never")),
        (FactRejectedError("too big"), Verdict(kind="never")),
        (ValueError("x"), Verdict(kind="retry")),
        (TimeoutError(), Verdict(kind="retry")),
        (SystemExit(1), Verdict(kind="retry")),
        (KeyboardInterrupt(), Verdict(kind="never")),
        (BaseExceptionGroup("g", [asyncio.CancelledError()]), Verdict(kind="never")),
    ],
    ids=lambda item: type(item).__name__ if isinstance(item, BaseException) else str(item.retry_after),
)
def test_errors_of_the_library_and_plain_ones(error: BaseException, verdict: Verdict) -> None:
    assert default_classifier(error) == verdict


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ClientError(code=400), "retry"),
        (ClientError(code=503), "retry"),
        (ClientError(status=503), "retry"),
        (ClientError(code=400, headers={"a": "b"}), "never"),
        (ClientError(code=HTTPStatus.TOO_MANY_REQUESTS), "overloaded"),
        (ClientError(code=HTTPStatus.NOT_FOUND), "never"),
    ],
    ids=["code", "another code", "status", "code of an answer", "status of http", "another status of http"],
)
def test_a_bare_code_is_no_status_of_an_answer(error: Exception, kind: str) -> None:
    assert judged(error)[0] == kind


def test_credentials_have_a_note_of_their_own() -> None:
    spent = default_classifier(ClientError(status_code=402))
    refused = default_classifier(ClientError(status_code=401))
    assert (spent.kind, spent.note) == ("quota", "quota spent")
    assert (refused.kind, refused.note) == ("quota", "credentials refused")


@pytest.mark.parametrize(
    ("name", "attributes", "kind"),
    [
        ("NoCredentialsError", {}, "quota"),
        ("UnauthorizedSSOTokenError", {}, "quota"),
        ("RefreshError", {"retryable": False}, "quota"),
        ("RefreshError", {"retryable": True}, "retry"),
        ("ClientError", {"response": {"Error": {"Code": "ExpiredTokenException"}}}, "quota"),
        (
            "ClientError",
            {"status_code": 400, "details": {"error": {"details": [{"reason": "API_KEY_INVALID"}]}}},
            "quota",
        ),
    ],
)
def test_credentials_that_no_answer_refused(name: str, attributes: dict[str, Any], kind: str) -> None:
    error = type(name, (ClientError,), {})(**attributes)
    assert judged(error)[0] == kind


def test_a_request_above_the_limit_is_never_served() -> None:
    text = "Request too large for gpt-5 on tokens per min (TPM): Limit 30000, Requested 40000."
    assert judged(ClientError(text, status_code=429)) == ("never", None)
    assert judged(ClientError("Limit: 30000, Used: 0, Requested: 40000", status_code=429)) == ("never", None)
    assert judged(ClientError("Limit 30000, Used 29000, Requested 4000", status_code=429)) == ("overloaded", None)


def test_words_of_an_error_that_is_no_refusal_say_nothing() -> None:
    assert judged(ValueError("the letter says: insufficient funds"))[0] == "retry"
    assert judged(ClientError("insufficient funds", status_code=500))[0] == "retry"
    assert judged(ClientError("insufficient funds", status_code=400))[0] == "quota"


class RpcError(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._name = name

    def code(self) -> Any:
        return SimpleNamespace(name=self._name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("RESOURCE_EXHAUSTED", "overloaded"), ("UNAUTHENTICATED", "quota"), ("UNAVAILABLE", "retry")],
)
def test_errors_of_grpc_say_their_code_by_a_method(name: str, kind: str) -> None:
    assert judged(RpcError(name))[0] == kind


# ---- chains and groups ---------------------------------------------------------------------------------------------


def test_what_wraps_an_error_takes_the_delay_from_it() -> None:
    outer = ClientError("limit", status_code=429, body={"code": "rate_limit_exceeded"})
    outer.__cause__ = ClientError(response=response(429, {"retry-after": "8"}))
    assert judged(outer) == ("overloaded", 8)
    plain = ValueError("no answer")
    plain.__cause__ = outer
    assert judged(plain) == ("overloaded", 8)


def test_what_was_cancelled_on_the_way_to_an_error_does_not_interrupt() -> None:
    """A timeout is raised from what it has cancelled."""
    late = TimeoutError("no answer")
    late.__cause__ = asyncio.CancelledError()
    assert judged(late) == ("retry", None)
    late.__cause__ = BaseExceptionGroup("g", [asyncio.CancelledError()])
    assert judged(late) == ("retry", None)
    late.__cause__ = BaseExceptionGroup("g", [asyncio.CancelledError(), ClientError(status_code=429)])
    assert judged(late) == ("overloaded", None)


def test_a_group_that_is_a_cause_is_judged_as_a_group() -> None:
    busy, refused = ClientError(response=response(429, {"retry-after": "7"})), ClientError(response=response(400))
    wrapped = RuntimeError("extraction failed")
    wrapped.__cause__ = ExceptionGroup("g", [ValueError("x"), ExceptionGroup("h", [busy])])
    assert judged(wrapped) == ("overloaded", 7)
    assert judged(ExceptionGroup("outer", [ValueError("y"), wrapped])) == ("overloaded", 7)
    # A group that says nothing itself.
    caused = ExceptionGroup("g", [ValueError("x")])
    caused.__cause__ = busy
    assert judged(caused) == ("overloaded", 7)
    wrapped.__cause__ = ExceptionGroup("g", [busy, refused])
    assert judged(wrapped) == ("never", 7)


def test_groups_are_judged_once_also_in_circles() -> None:
    judgements: list[int] = []

    class Counts(Exception):
        @property
        def status_code(self) -> int:
            judgements.append(1)
            return 429

    shared = ExceptionGroup("shared", [Counts() for _ in range(50)])
    parts = [ValueError(number) for number in range(50)]
    for part in parts:
        part.__cause__ = shared
    shared.exceptions[0].__cause__ = ExceptionGroup("around", [ExceptionGroup("inner", parts), KeyError()])
    assert judged(ExceptionGroup("g", parts))[0] == "overloaded"
    assert len(judgements) <= 100


def test_what_was_being_handled_says_nothing() -> None:
    mistake = KeyError("a mistake in a handler")
    mistake.__context__ = ClientError(status_code=429)
    assert judged(mistake) == ("retry", None)


def test_own_words_beat_the_cause() -> None:
    for own, kind in (
        (RetryLater(SECOND), "retry"),
        (NonRetryableError(), "never"),
        (Overloaded(SECOND), "overloaded"),
    ):
        own.__cause__ = ClientError(status_code=402)
        assert judged(own)[0] == kind


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ([ClientError(status_code=429, retry_after=5), ClientError(status_code=500)], ("overloaded", 5)),
        ([ClientError(status_code=429, retry_after=5), QuotaExhausted()], ("quota", 5)),
        ([QuotaExhausted(), NonRetryableError()], ("never", None)),
        ([ClientError(status_code=429), ExceptionGroup("h", [ClientError(status_code=404)])], ("never", None)),
        ([RetryLater(SECOND), RetryLater(3 * SECOND)], ("retry", 3)),
    ],
    ids=str,
)
def test_of_a_group_the_gravest_decides(parts: list[Exception], verdict: tuple[str, float | None]) -> None:
    assert judged(ExceptionGroup("g", parts)) == verdict
    assert judged(ExceptionGroup("g", list(reversed(parts)))) == verdict


# ---- objects that misbehave ----------------------------------------------------------------------------------------


class Falsy(SimpleNamespace):
    def __bool__(self) -> bool:
        return False


def test_a_response_may_be_false() -> None:
    assert judged(ClientError(response=Falsy(status_code=429, headers={"Retry-After": "3"}))) == ("overloaded", 3)


class Hostile(Exception):
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __str__(self) -> str:
        raise RuntimeError("str")


class Endless(Exception):
    def __getattr__(self, name: str) -> Any:
        return getattr(self, name + "x")


class HostileMapping(dict[str, Any]):
    def get(self, *arguments: Any) -> Any:
        raise RuntimeError

    def items(self) -> Any:
        raise RuntimeError

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError


class Divided(Exception):
    status_code = property(lambda self: 1 / 0)
    response = property(lambda self: response(429, HostileMapping()))


def test_nothing_that_an_attribute_raises_gets_out() -> None:
    assert judged(Hostile()) == ("retry", None)
    assert judged(Endless()) == ("retry", None)
    assert judged(Divided())[0] == "overloaded"
    assert judged(ClientError(response=HostileMapping(), status_code=500)) == ("retry", None)


class Forgetful(Overloaded):
    def __init__(self) -> None:
        pass


class Spent(QuotaExhausted):
    def __init__(self) -> None:
        self.retry_after = "soon"  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]


def test_what_a_class_of_one_s_own_leaves_out_is_no_delay() -> None:
    assert judged(Forgetful()) == ("overloaded", None)
    assert judged(Spent()) == ("quota", None)


def test_circles_end() -> None:
    error = ClientError(status_code=500)
    error.__cause__ = error
    assert judged(error)[0] == "retry"
    body: dict[str, Any] = {}
    body["error"] = body
    assert judged(ClientError(status_code=500, body=body))[0] == "retry"
    group: ExceptionGroup[Exception] = ExceptionGroup("g", [ValueError()])
    for _ in range(100):
        group = ExceptionGroup("g", [group])
    assert judged(group)[0] == "retry"


def test_long_texts_are_cut() -> None:
    assert (
        judged(ClientError("try again in " + "9" * 100_000, status_code=429, body='{"a":' * 20_000))[0] == "overloaded"
    )
    assert judged(ClientError("retry in " + "1s " * 50_000, status_code=429)) == ("overloaded", 4)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from("error code type status details retryDelay message Error Code quotaId x".split()),
            children,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from("status_code status code body details headers response retry_after type message".split()),
        JUNK,
        max_size=6,
    )
)
@modest(200)
def test_every_error_has_a_verdict(attributes: dict[str, Any]) -> None:
    kind, seconds = judged(ClientError("x", **attributes))
    assert kind in ("retry", "overloaded", "quota", "never")
    assert seconds is None or 0 <= seconds <= 86_400


# ---- a classifier of one's own -------------------------------------------------------------------------------------


def test_a_classifier_that_fails_never_hides_the_error(caplog: pytest.LogCaptureFixture) -> None:
    def fails(error: BaseException) -> Verdict:
        raise LookupError("no such code")

    def forgets(error: BaseException) -> Verdict:
        return None  # type: ignore[return-value]  # pyright: ignore[reportReturnType]

    with caplog.at_level(logging.WARNING, "durable_batches"):
        for classifier in (fails, forgets):
            assert classify_by(classifier, NonRetryableError(), NOW).kind == "never"
    assert [record.getMessage() for record in caplog.records] == [
        "the classifier of an activity could not judge a NonRetryableError, which is handled as if there were none: "
        "LookupError: no such code",
        "the classifier of an activity could not judge a NonRetryableError, which is handled as if there were none: "
        "it returned 'NoneType', not a Verdict",
    ]
