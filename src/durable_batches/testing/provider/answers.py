"""What a hostile provider answers: status, headers and body of each fault. Pure: `now` is an argument."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Final, Literal, TypeAlias, get_args

__all__ = ["FAULTS", "Answer", "Delivery", "Fault", "ProviderError", "answer_to", "fault_answer", "quota_answer"]

Fault: TypeAlias = Literal[
    "429",
    "429-seconds",
    "429-fraction",
    "429-milliseconds",
    "429-date",
    "429-reset",
    "429-reset-at",
    "429-retry-info",
    "429-text",
    "402",
    "500",
    "502",
    "503",
    "503-seconds",
    "529",
    "slow",
    "cut",
    "malformed",
    "empty",
    "hang-up",
    "reset",
]
"""What may be wrong with an answer.

429: without a delay, or with one in each form: `Retry-After` in seconds, with a fraction, as a date, in milliseconds
(`retry-after-ms`); `x-ratelimit-reset-*` as a duration, `anthropic-ratelimit-*-reset` as a moment; Google's `RetryInfo`
in the body; "try again in 1s" in the text. 402: the account is empty. "slow": the answer comes late. "cut": the
connection ends within the body. "malformed" and "empty": 200 with a body that is no JSON, or none. "hang-up" and
"reset": the connection ends without an answer. Of these, "slow", "cut", "malformed" and "empty" are paid for.
"""

FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)

Delivery: TypeAlias = Literal["whole", "slow", "cut", "hang-up", "reset"]

_TEXTS: Final[Mapping[int, tuple[str, str]]] = {
    402: ("insufficient_quota", "You exceeded your current quota, please check your plan and billing details."),
    429: ("rate_limit_exceeded", "Rate limit reached."),
    500: ("server_error", "The server had an error."),
    502: ("server_error", "Bad gateway."),
    503: ("service_unavailable", "The engine is overloaded."),
    529: ("overloaded_error", "Overloaded."),
}


class ProviderError(Exception):
    """An answer that is not 200, as clients raise it.

    Attributes:
        status_code: The status.
        headers: The headers, by their names in lower case.
        body: The decoded body.
    """

    def __init__(self, status_code: int, headers: Mapping[str, str], body: object) -> None:
        self.status_code = status_code
        self.headers = headers
        self.body = body
        super().__init__(f"the provider answered with status {status_code}")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is sent, and how."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    delivery: Delivery = "whole"


def answer_to(value: object) -> Answer:
    """Answer a request."""
    return Answer(status=200, body=json.dumps(value).encode())


def quota_answer() -> Answer:
    """Refuse because the account is empty."""
    return _refusal(402)


def fault_answer(fault: Fault, good: Answer, *, retry_after: float, now: float) -> Answer:
    """Answer with a fault.

    Args:
        fault: Which.
        good: The answer without it.
        retry_after: Seconds, for the forms that say when to try again.
        now: Seconds since the epoch.
    """
    match fault:
        case "slow" | "cut":
            return Answer(status=200, body=good.body, delivery=fault)
        case "hang-up" | "reset":
            return Answer(status=0, body=b"", delivery=fault)
        case "malformed":
            return Answer(status=200, body=good.body[: len(good.body) // 2])
        case "empty":
            return Answer(status=200, body=b"")
        case _:
            status, _, form = fault.partition("-")
            return _refusal(int(status), form, retry_after, now)


def _refusal(status: int, form: str = "", retry_after: float = 0.0, now: float = 0.0) -> Answer:
    code, text = _TEXTS[status]
    headers: dict[str, str] = {}
    details: list[object] = []
    match form:
        case "seconds":
            # Whole seconds: not earlier than asked.
            headers["retry-after"] = str(-int(-retry_after // 1))
        case "fraction":
            headers["retry-after"] = f"{retry_after:.3f}"
        case "milliseconds":
            headers["retry-after-ms"] = str(round(retry_after * 1_000))
        case "date":
            headers["date"] = formatdate(now, usegmt=True)
            headers["retry-after"] = formatdate(now + max(retry_after, 1.0), usegmt=True)
        case "reset":
            headers |= {
                "x-ratelimit-remaining-requests": "9",
                "x-ratelimit-reset-requests": "1ms",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": f"{retry_after:.3f}s",
            }
        case "reset-at":
            moment = datetime.fromtimestamp(now + retry_after, UTC)
            headers |= {
                "anthropic-ratelimit-tokens-remaining": "0",
                "anthropic-ratelimit-tokens-reset": moment.isoformat().replace("+00:00", "Z"),
            }
        case "retry-info":
            details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{retry_after:.3f}s"})
        case "text":
            text += f" Please try again in {retry_after:.3f}s."
        case _:
            pass
    body: dict[str, object] = {"error": {"code": code, "type": code, "message": text, "details": details}}
    return Answer(status=status, body=json.dumps(body).encode(), headers=headers)
