"""What one exception of a client says about itself: read from its attributes, whatever the client is.

Nothing is imported, called or decoded that could do I/O, and nothing that an attribute raises gets out: the objects
are foreign, and reading one is no reason to lose the error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, cast

from pydantic_core import from_json

from durable_batches.runtime.delays import http_date, quoted_seconds, seconds_of, seconds_until

__all__ = ["ErrorFacts", "peek", "quiet"]

_LONGEST_BODY: Final = 65_536
_LONGEST_TEXT: Final = 4_000
_LONGEST_MESSAGE: Final = 2_000
_LONGEST_WORD: Final = 80
_DEEPEST: Final = 6
_WIDEST: Final = 20

_OLD_POLICY: Final = re.compile(r"\bremaining\s*=")


def quiet(read: Callable[[], Any]) -> Any:
    """Return what this reads; None where it raises: properties of foreign objects raise what they like."""
    try:
        return read()
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001
        return None


def peek(thing: object, name: str) -> Any:
    """Return an attribute; None where there is none, or where reading it raises."""
    return quiet(lambda: getattr(thing, name, None))


class ErrorFacts:
    """What one exception carries.

    Args:
        error: The exception.
        now: The time, in seconds since the epoch; for dates of answers that do not give their own.

    Attributes:
        status: The status of the HTTP answer; None: there was none.
        headers: The answer's, by their names in lower case.
        words: The codes that its attributes, body and headers give, in lower case.
        text: Its message, and those in the body.
        of_a_day: Whether it names a quota of a day.
        has_body: Whether the answer's body is there, decoded.
    """

    __slots__ = ("_delays", "_error", "_now", "has_body", "headers", "of_a_day", "status", "text", "words")

    def __init__(self, error: BaseException, now: float) -> None:
        self._error = error
        # Compared with None, because the truth of a `requests.Response` is False for each 4xx and 5xx.
        response = _first(peek(error, name) for name in ("response", "raw_response", "http_response"))
        metadata = _metadata(response)
        self.status: int | None = _status(error, response, metadata)
        self.headers: dict[str, str] = _headers(
            metadata.get("HTTPHeaders"), peek(response, "headers"), peek(error, "headers")
        )
        # The answer's own date: the clock of this machine may differ from the provider's.
        date = http_date(self.headers["date"]) if "date" in self.headers else None
        self._now = now if date is None else date
        self.words: set[str] = set()
        self.text: str = (quiet(lambda: str(error)) or "")[:_LONGEST_TEXT]
        self.of_a_day: bool = False
        self._delays: list[float] = []
        body = _body(error, response)
        self.has_body: bool = body is not None
        kind = self.headers.get("x-amzn-errortype", "").partition(":")[0]
        for word in (peek(error, "code"), peek(error, "type"), peek(error, "status"), _grpc_code(error), kind):
            self._add_word(word)
        self._read(body, 0)

    @property
    def kinds(self) -> set[str]:
        """The names of its class and of its bases."""
        return {kind.__name__ for kind in type(self._error).__mro__}

    @property
    def asks_for(self) -> float | None:
        """The delay that its attribute `retry_after`, or the header of that name, asks for, in seconds."""
        for name in ("retry-after-ms", "x-ms-retry-after-ms"):
            milliseconds = seconds_of(self.headers.get(name))
            if milliseconds is not None:
                return milliseconds / 1_000
        own = peek(self._error, "retry_after")
        for value in (None if callable(own) else own, self.headers.get("retry-after")):
            seconds = seconds_until(value, self._now)
            if seconds is not None:
                return seconds
        return None

    @property
    def retry_after(self) -> float | None:
        """The delay that it asks for in any form, in seconds; None: in none."""
        seconds = self.asks_for
        if seconds is not None:
            return seconds
        if self._delays:
            return max(self._delays)
        resets = list(self._resets())
        return max(resets) if resets else quoted_seconds(self.text)

    def _resets(self) -> Iterator[float]:
        """List when the limits are reset that are used up; one of which something is left has refused nothing."""
        for name, value in self.headers.items():
            if "ratelimit" not in name.replace("rate-limit", "ratelimit"):
                continue
            if name == "ratelimit":
                yield from _resets_of_policies(value)
            if "reset" not in name:
                continue
            left = self.headers.get(name.replace("reset", "remaining"))
            if left is None or seconds_of(left) == 0:
                seconds = seconds_until(value, self._now)
                if seconds is not None:
                    yield seconds

    def _add_word(self, value: object) -> None:
        if isinstance(value, str) and 0 < len(value) < _LONGEST_WORD:
            self.words.add(value.rpartition("#")[2].lower())

    def _read(self, body: object, depth: int) -> None:
        if depth > _DEEPEST:
            return
        if isinstance(body, list | tuple):
            for each in cast("Sequence[object]", body)[:_WIDEST]:
                self._read(each, depth + 1)
        elif isinstance(body, Mapping):
            fields = cast("Mapping[object, object]", body)
            for name in ("code", "Code", "type", "__type", "status", "reason"):
                self._add_word(_field(fields, name))
            for name in ("message", "Message"):
                message = _field(fields, name)
                if isinstance(message, str):
                    self.text += " " + message[:_LONGEST_MESSAGE]
            delay = seconds_of(_field(fields, "retryDelay"))
            if delay is not None:
                self._delays.append(delay)
            quota = _field(fields, "quotaId")
            self.of_a_day |= isinstance(quota, str) and "perday" in quota.lower()
            for name in ("error", "Error", "details", "violations"):
                self._read(_field(fields, name), depth + 1)


def _resets_of_policies(text: str) -> Iterator[float]:
    """List when limits are reset that are used up, as the header `RateLimit` of the IETF's drafts gives them."""
    if _OLD_POLICY.search(text[:_LONGEST_TEXT]):
        # "limit=100, remaining=0, reset=50", of one limit; later drafts: '"burst";r=0;t=50, "day";r=9;t=900'.
        text = text.replace(",", ";")
    for policy in text[:_LONGEST_TEXT].split(","):
        fields = {name.strip(): value for name, _, value in (part.partition("=") for part in policy.split(";"))}
        if seconds_of(fields.get("remaining", fields.get("r"))) == 0:
            seconds = seconds_of(fields.get("reset", fields.get("t")))
            if seconds is not None:
                yield seconds


def _field(fields: Mapping[object, object], name: str) -> object:
    return quiet(lambda: fields.get(name))


def _items(source: object) -> object:
    return quiet(lambda: list(cast("Mapping[Any, Any]", source).items()))


def _first(values: Iterator[Any]) -> Any:
    return next((value for value in values if value is not None), None)


def _metadata(response: object) -> Mapping[str, Any]:
    """Return what botocore says of an answer, which it hands on as a dictionary."""
    if not isinstance(response, Mapping):
        return {}
    found = quiet(lambda: cast("Mapping[str, Any]", response).get("ResponseMetadata"))
    return cast("Mapping[str, Any]", found) if isinstance(found, dict) else {}


def _status(error: BaseException, response: object, metadata: Mapping[str, Any]) -> int | None:
    code, own = peek(error, "code"), peek(error, "status")
    if response is None and peek(error, "headers") is None:
        # Any application's errors have a `code` or a `status`, and aiohttp's parser gives an answer that was cut a
        # `code` of 400: they are those of HTTP only beside an answer.
        own, code = None, code if isinstance(code, HTTPStatus) else None
    values = (
        peek(error, "status_code"),
        own,
        peek(error, "http_status"),
        code,
        peek(response, "status_code"),
        peek(response, "status"),
        metadata.get("HTTPStatusCode"),
    )
    status: int | None = _first(_http_status(value) for value in values)
    return status


def _http_status(value: object) -> int | None:
    if isinstance(value, str) and len(value) == 3 and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 100 <= value <= 599:
        return int(value)
    return None


def _headers(*sources: object) -> dict[str, str]:
    headers: dict[str, str] = {}
    for source in sources:
        items: object = _items(source)
        if items is None:
            items = source
        if not isinstance(items, list | tuple):
            continue
        for item in cast("Sequence[object]", items):
            if isinstance(item, tuple) and len(cast("tuple[object, ...]", item)) == 2:
                name, value = map(_text, cast("tuple[object, object]", item))
                if isinstance(name, str) and isinstance(value, str | int | float):
                    headers[name.lower()] = str(value)
    return headers


def _text(value: object) -> object:
    return value.decode("latin1") if isinstance(value, bytes) else value


def _body(error: BaseException, response: object) -> object:
    """Return the decoded body of the answer, as far as the client has read it; None: there is none."""
    found = _first(_decoded(peek(error, name)) for name in ("body", "details"))
    if found is None and isinstance(response, Mapping):
        return cast("Mapping[str, Any]", response)
    # Where httpx and requests keep what they have read; `json()` might read on, or raise.
    return found if found is not None else _decoded(peek(response, "_content"))


def _decoded(value: object) -> object:
    if isinstance(value, bytes):
        value = value[:_LONGEST_BODY].decode("utf-8", "replace")
    if isinstance(value, str):
        text = value
        if text[:1] in ("{", "[") and len(text) <= _LONGEST_BODY:
            return quiet(lambda: from_json(text))
        return None
    return cast("object", value) if isinstance(value, Mapping | list) else None


def _grpc_code(error: BaseException) -> object:
    """Return the name of a gRPC call's status, which its error gives by a method."""
    if "RpcError" not in {kind.__name__ for kind in type(error).__mro__}:
        return None
    return quiet(lambda: cast("Any", error).code().name)
