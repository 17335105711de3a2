"""Errors of well-known clients, rebuilt from what was recorded of them: no client has to be installed.

`client_errors.json` has the answers of a provider, by the dialect that it speaks and the situation: status, headers and
body; and for each client and situation the class of the error that it raised, its text where it tells more than the
answer, its attributes, and what it was raised from. An attribute `@body` is the decoded answer, `@error` the `error` in
it, `@text` the answer as text, `@headers` its headers, `@response` an object of a response, `@dict` botocore's
dictionary. All dates are those of an answer at `NOW`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

__all__ = ["CLIENTS", "NOW", "Situation", "situations"]

NOW: Final = 1_893_456_000.0
"""The time of all recorded answers, in seconds since the epoch."""

_RECORDED: Final[dict[str, Any]] = json.loads(Path(__file__).with_name("client_errors.json").read_text("utf-8"))

CLIENTS: Final = tuple(_RECORDED["clients"])


class Situation(NamedTuple):
    """What a client raised in a situation, and what the error means."""

    name: str
    error: BaseException
    kind: str
    retry_after: float | None


def situations(client: str) -> Iterator[Situation]:
    """Rebuild all recorded errors of a client."""
    for situation, (kind, retry_after, *_) in _RECORDED["clients"][client]["errors"].items():
        yield Situation(situation, _error(client, situation), kind, retry_after)


def _error(client: str, situation: str) -> BaseException:
    recorded = _RECORDED["clients"][client]
    _, _, kind, text, attributes, *causes = recorded["errors"][situation]
    status, headers, body = _RECORDED["answers"][recorded["dialect"]].get(situation, (None, {}, None))
    rebuilt: type[Exception] = type(kind.rpartition(".")[2], (Exception,), {})
    error = _with(rebuilt(text), {name: _attribute(value, status, headers, body) for name, value in attributes.items()})
    for cause in causes:
        error.__cause__ = _error(cause, situation) if isinstance(cause, str) else _with(Exception(), cause)
    return error


def _with(error: Exception, attributes: Mapping[str, object]) -> Exception:
    vars(error).update(attributes)
    return error


def _attribute(value: object, status: int | None, headers: Mapping[str, str], answer: Any) -> object:
    streamed = isinstance(answer, str) and "data: " in answer
    body: Any = json.loads(answer.partition("data: ")[2]) if streamed else answer
    match value:
        case "@body":
            return body
        case "@error":
            return body["error"]
        case "@text":
            return json.dumps(body)
        case "@headers":
            return headers
        case "@response":
            content = body if isinstance(body, str) else json.dumps(body)
            return SimpleNamespace(status_code=status, headers=headers, _content=content.encode())
        case "@dict":
            return {
                "Error": {"Code": headers.get("x-amzn-errortype", ""), "Message": "went wrong"},
                "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers},
            }
        case _:
            return value
