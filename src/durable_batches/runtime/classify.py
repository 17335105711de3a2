"""What an activity's error means: decided once, for retries, waits and pauses, by the error's attributes.

How an error is judged
----------------------

1. Errors of this library say themselves what they mean.
2. Codes come before statuses, and both before texts: OpenAI's empty account and Google's limit of a minute have the
   same text, AWS throttles with status 400, and Anthropic's overload within a stream has status 200.
3. The outermost error of a chain that says something decides; a delay that it leaves out comes from its causes. Causes
   are what it was raised `from`. What was being handled meanwhile says nothing: a mistake in a handler of a rate limit
   is a mistake.
4. Of a group the gravest decides: *never*, then *quota*, *overloaded*, *retry*; with the longest of their delays. So it
   does where the group is a cause.
5. An error that says nothing is retried.

No client is imported, and no attribute of an error can raise out of here.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Literal, Protocol, TypeAlias, cast, get_args

from durable_batches.clock import SystemClock
from durable_batches.errors import (
    CheckpointMismatchError,
    ConfigurationError,
    FactRejectedError,
    NonRetryableError,
    Overloaded,
    PayloadError,
    QuotaExhausted,
    RateLimitedError,
    RetryLater,
)
from durable_batches.lifecycle.failures import ActivityFailure, leaves, line_of
from durable_batches.options import check_choice, check_duration, check_text
from durable_batches.runtime.error_facts import ErrorFacts, peek
from durable_batches.runtime.error_signs import causes_of

__all__ = [
    "ErrorClassifier",
    "ErrorKind",
    "RemoteError",
    "Verdict",
    "classify_by",
    "default_classifier",
    "is_retryable",
]

_log = logging.getLogger("durable_batches")

ErrorKind: TypeAlias = Literal["retry", "overloaded", "quota", "never"]
"""What an error means: "retry" uses an attempt; "overloaded" waits, and uses none; "quota" concerns the account and not
the call; "never" fails every time."""

_KINDS: Final[tuple[ErrorKind, ...]] = get_args(ErrorKind)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a classifier says of an error.

    Attributes:
        kind: What it means.
        retry_after: The delay that it asks for; None: it asks for none.
        note: A few words for people; not compared.

    Raises:
        ConfigurationError: An attribute is of a wrong type, or `kind` none of these.
    """

    kind: ErrorKind
    retry_after: timedelta | None = None
    note: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, _KINDS)
        check_duration("retry_after", self.retry_after, optional=True)
        check_text("note", self.note)


class RemoteError(Exception):
    """What is left of an error of an activity that ran in another process; the object itself stays there.

    A class of the user's may not survive the way, and what it means can only be told where it is.

    Args:
        failure: The names of its classes, and its message.
        verdict: What the activity's policy and classifier have said of it, there.
        traceback: Where it was raised, as text.
        status_code: The HTTP status of the provider's answer, if any; read like a client's.
        headers: The answer's headers.
        is_failure: Whether it is the provider's failure, as was judged there; None: nobody wants to know.
    """

    def __init__(
        self,
        failure: ActivityFailure,
        verdict: Verdict,
        traceback: str = "",
        *,
        status_code: int | None = None,
        headers: Mapping[str, str] | None = None,
        is_failure: bool | None = None,
    ) -> None:
        self.failure = failure
        self.verdict = verdict
        self.status_code = status_code
        self.headers: Mapping[str, str] = headers or {}
        self.is_failure = is_failure
        super().__init__(failure.message)
        if traceback:
            self.add_note(traceback)

    def __str__(self) -> str:
        return f"{self.failure.error_type}: {self.failure.message}"


class ErrorClassifier(Protocol):
    """Says what an activity's error means; an argument of `durable_activity` and of `Worker`."""

    def __call__(self, error: BaseException, /) -> Verdict:
        """Judge an error, which may be a group of errors."""
        ...


def default_classifier(error: BaseException, /) -> Verdict:
    """Judge an error by its status, its codes and its `Retry-After`, as the well-known clients give them.

    It knows httpx, requests, aiohttp, urllib, and the clients of OpenAI, Anthropic, Google, AWS, Mistral and Cohere, by
    their attributes. A classifier of your own can ask it for whatever it does not judge itself.
    """
    return _classified(error, SystemClock().now() / 1_000_000)


def classify_by(classifier: ErrorClassifier, error: BaseException, now: float) -> Verdict:
    """Judge an error; by the default where the classifier raises, so that it never hides the error.

    Args:
        classifier: Decides.
        error: The error.
        now: The time, in seconds since the epoch.
    """
    if isinstance(error, RemoteError):
        # It was judged where the object is.
        return error.verdict
    if classifier is not default_classifier:
        try:
            verdict = cast("object", classifier(error))
        except KeyboardInterrupt:
            raise
        except BaseException as mistake:  # noqa: BLE001  (user code that judges an error must not take its place)
            _log_mistake("classifier", error, line_of(mistake))
        else:
            if isinstance(verdict, Verdict):
                return verdict
            _log_mistake("classifier", error, f"it returned {type(verdict).__name__!r}, not a Verdict")
    return _classified(error, now)


def _log_mistake(judge: str, error: BaseException, mistake: str) -> None:
    _log.warning(
        "the %s of an activity could not judge a %s, which is handled as if there were none: %s",
        judge,
        type(error).__name__,
        mistake,
        extra={"error_type": type(error).__name__},
    )


def is_retryable(error: BaseException) -> bool:
    """Decide whether an error may be retried at all: a mistake in code or data fails every time."""
    return not isinstance(error, _MISTAKES)


_MISTAKES: Final = (NonRetryableError, PayloadError, ConfigurationError, CheckpointMismatchError, FactRejectedError)

_MOST_GROUPS: Final = 20
"""Of those that belong to one error, groups within a group not counted; what further ones hold is not looked at."""


# ---- the default ---------------------------------------------------------------------------------------------------

_GRAVITY: Final[dict[ErrorKind, int]] = {"retry": 0, "overloaded": 1, "quota": 2, "never": 3}

_SPENT: Final = frozenset(
    """insufficient_quota billing_hard_limit_reached billing_not_active billing_error billing_disabled
    servicequotaexceededexception insufficient_credits payment_required""".split()
)
_CREDENTIALS: Final = frozenset(
    """invalid_api_key authentication_error unauthenticated api_key_invalid api_key_expired expiredtokenexception
    expiredtoken unrecognizedclientexception invalidclienttokenid invalidsignatureexception signaturedoesnotmatch
    incompletesignature missingauthenticationtoken missingauthenticationtokenexception""".split()
)
_CREDENTIAL_ERRORS: Final = frozenset(
    """NoCredentialsError PartialCredentialsError CredentialRetrievalError TokenRetrievalError UnauthorizedSSOTokenError
    DefaultCredentialsError RefreshError""".split()
)
"""Names of the errors of botocore and of google-auth that come before any request."""
_OVERLOADED: Final = frozenset(
    """rate_limit_exceeded rate_limit_error rate_limited overloaded_error overloaded resource_exhausted throttling
    throttlingexception throttledexception requestthrottled requestthrottledexception toomanyrequestsexception
    provisionedthroughputexceededexception requestlimitexceeded bandwidthlimitexceeded slowdown
    priorrequestnotcomplete ec2throttledexception modelnotreadyexception serviceunavailableexception serviceunavailable
    engine_overloaded""".split()
)
_RETRY: Final = frozenset(
    """api_error server_error timeout_error internalserverexception internalfailure requesttimeout
    requesttimeoutexception modelerrorexception modeltimeoutexception modelstreamerrorexception""".split()
)
_NEVER: Final = frozenset(
    """context_length_exceeded invalid_request_error permission_error not_found_error request_too_large
    validationexception accessdeniedexception model_not_found""".split()
)
_TIMEOUTS: Final = frozenset({"requesttimeout", "requesttimeoutexception"})
_RETRIED_STATUSES: Final = frozenset({408, 409, 424, 425})

_NO_CREDIT: Final = re.compile(
    r"credit balance is too low|insufficient (?:funds|credits|balance)|out of credits", re.IGNORECASE
)
_TOO_LARGE: Final = re.compile(
    r"request too large for|reduce the length of the messages|must be reduced in order to run", re.IGNORECASE
)
_ASKED: Final = re.compile(r"limit:? ?(\d{1,12})\b.{0,80}?requested:? ?(\d{1,12})\b", re.IGNORECASE)


def _classified(error: BaseException, now: float) -> Verdict:
    if any(isinstance(leaf, _INTERRUPTIONS) for leaf in leaves(error)):
        # Not among its causes: a timeout is raised from what it has cancelled.
        return Verdict(kind="never", note="interrupted")
    return _Judge(now).of_chain(error) or _NOTHING_KNOWN


_INTERRUPTIONS: Final = (KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)
_NOTHING_KNOWN: Final = Verdict(kind="retry")


class _Judge:
    """Judges one error, with the groups and causes that belong to it; each group once, as a cause may be one of many.

    Args:
        now: The time, in seconds since the epoch.
    """

    def __init__(self, now: float) -> None:
        self._now = now
        self._groups: dict[int, Verdict | None] = {}

    def of_chain(self, error: BaseException) -> Verdict | None:
        """Judge an error by itself and by what it was raised from; None: none of them says anything."""
        said = [verdict for part in causes_of(error) if (verdict := self._of_one(part)) is not None]
        if not said:
            return None
        first = said[0]
        if first.kind in ("overloaded", "quota") and first.retry_after is None:
            delay = next((verdict.retry_after for verdict in said if verdict.retry_after is not None), None)
            return Verdict(kind=first.kind, retry_after=delay, note=first.note)
        return first

    def _of_one(self, error: BaseException) -> Verdict | None:
        group = error  # of which type checkers know more: that they do not know the type of its errors
        return self._of_group(group) if isinstance(error, BaseExceptionGroup) else _judged(error, self._now)

    def _of_group(self, group: BaseException) -> Verdict | None:
        if id(group) not in self._groups:
            is_deep = len(self._groups) >= _MOST_GROUPS
            self._groups[id(group)] = None  # so far: one of its errors may have been raised from it
            if not is_deep:
                self._groups[id(group)] = self._gravest(leaves(group))
        return self._groups[id(group)]

    def _gravest(self, errors: Sequence[BaseException]) -> Verdict | None:
        verdicts = [verdict for error in errors if (verdict := self.of_chain(error)) is not None]
        if not verdicts:
            return None
        gravest = max(verdicts, key=lambda verdict: _GRAVITY[verdict.kind])
        delays = [verdict.retry_after for verdict in verdicts if verdict.retry_after is not None]
        return Verdict(kind=gravest.kind, retry_after=max(delays, default=None), note=gravest.note)


def _judged(error: BaseException, now: float) -> Verdict | None:
    """Judge one error alone; None: it says nothing."""
    try:
        return _own(error) or _foreign(error, now)
    except Exception:  # noqa: BLE001  (foreign objects: the second line of defence, after `peek`)
        return None


def _own(error: BaseException) -> Verdict | None:
    """Judge an error of this library."""
    match error:
        case RemoteError():
            return error.verdict
        case Overloaded():
            return Verdict(kind="overloaded", retry_after=_asked(error, "after"), note="overloaded")
        case RateLimitedError():
            return Verdict(kind="overloaded", retry_after=_asked(error, "retry_after"), note="rate limited")
        case RetryLater():
            return Verdict(kind="retry", retry_after=_asked(error, "after"))
        case QuotaExhausted():
            return Verdict(kind="quota", retry_after=_asked(error, "retry_after"), note="quota spent")
        case _ if not is_retryable(error):
            return Verdict(kind="never")
        case _:
            return None


def _asked(error: BaseException, name: str) -> timedelta | None:
    """Read a delay that a class of the user's may have left out, or made something else of."""
    asked: object = peek(error, name)
    return asked if isinstance(asked, timedelta) else None


def _foreign(error: BaseException, now: float) -> Verdict | None:
    """Judge an error that is neither the library's nor Python's: a client's."""
    facts = ErrorFacts(error, now)
    words, status = facts.words, facts.status
    seconds = facts.retry_after
    delay = None if seconds is None else timedelta(seconds=seconds)
    if words & _SPENT or status == 402 or _says_no_credit(facts) or (facts.of_a_day and status == 429):
        return Verdict(kind="quota", retry_after=delay, note="quota spent")
    if words & _CREDENTIALS or status == 401 or _lacks_credentials(error, facts):
        return Verdict(kind="quota", retry_after=delay, note="credentials refused")
    if status == 429 or (words & _OVERLOADED and (status is None or status in (200, 400) or status >= 500)):
        if _too_large(facts):
            return Verdict(kind="never", note="larger than the limit itself")
        return Verdict(kind="overloaded", retry_after=delay, note="overloaded")
    if status in (503, 529):
        return Verdict(kind="overloaded", retry_after=delay, note="overloaded")
    if status is not None and status >= 400:
        return _of_status(status, facts, delay)
    if words & _RETRY:
        return Verdict(kind="retry", retry_after=delay)
    if words & _NEVER:
        return Verdict(kind="never")
    asked = facts.asks_for
    # It says when, and not what was wrong: like `RetryLater`.
    return None if asked is None else Verdict(kind="retry", retry_after=timedelta(seconds=asked))


def _of_status(status: int, facts: ErrorFacts, delay: timedelta | None) -> Verdict:
    hint = facts.headers.get("x-should-retry", "").lower()
    if status >= 500 or status in _RETRIED_STATUSES or hint == "true" or facts.words & _TIMEOUTS:
        return Verdict(kind="never") if hint == "false" else Verdict(kind="retry", retry_after=delay)
    return Verdict(kind="never")


def _says_no_credit(facts: ErrorFacts) -> bool:
    """Whether a refusal says so in words, as Anthropic's does; an error that is no refusal may quote a document."""
    refused = facts.status in (400, 403, 429) or (facts.status in (None, 200) and facts.has_body)
    return refused and _NO_CREDIT.search(facts.text) is not None


def _lacks_credentials(error: BaseException, facts: ErrorFacts) -> bool:
    return bool(facts.kinds & _CREDENTIAL_ERRORS) and peek(error, "retryable") is not True


def _too_large(facts: ErrorFacts) -> bool:
    """Whether the one request is larger than the limit: waiting would not help."""
    if "context_length_exceeded" in facts.words or _TOO_LARGE.search(facts.text):
        return True
    asked = _ASKED.search(facts.text)
    return asked is not None and int(asked.group(2)) > int(asked.group(1))
