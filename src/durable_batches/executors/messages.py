"""The bytes that cross between a worker and the process that runs one of its calls.

Nothing else crosses, and so nothing has to be pickled: no class of the user's, whose errors may not survive that.
A message is the length of its header, the header as JSON, and payloads as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Final, NamedTuple, cast

from durable_batches.executors.names import PolicyReference
from durable_batches.lifecycle.failures import ActivityFailure
from durable_batches.lifecycle.states import BatchId
from durable_batches.runtime.classify import ErrorKind, Verdict
from durable_batches.runtime.context import ExecutionContext

__all__ = [
    "Answered",
    "Failed",
    "ReportAddress",
    "Request",
    "Succeeded",
    "Used",
    "decode_answer",
    "encode_failed",
    "encode_succeeded",
]

_LENGTH_BYTES: Final = 4

ReportAddress = tuple[str, int, str]
"""Where progress is reported: the host and the port of the worker's socket, and the token of the call."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One attempt of a call."""

    function: str
    """The activity, by module and qualified name."""
    arguments: Mapping[str, bytes]
    context: ExecutionContext
    attempt: int
    idempotency_key: str
    classifier: str | None
    """The worker's classifier, by module and qualified name; None: the default one."""
    reports: ReportAddress | None
    retry: PolicyReference | None = None
    """What of the call's retry policy judges errors; None: the policy of the activity as it is found by its name."""
    limited: bool = False
    """Whether the call has a limiter."""
    timed: bool = False
    """Whether the call has a timeout, so that the worker wants to know when it begins."""
    own_limiter: bool = False
    """Whether that is the one of the activity as it is found by its name, which can judge errors there."""

    def encode(self) -> bytes:
        """Encode as a message."""
        context = self.context
        header = {
            "function": self.function,
            "arguments": list(self.arguments),
            "batch_id": context.batch_id,
            "document_id": context.document_id,
            "ordinal": context.ordinal,
            "document_attempt": context.attempt,
            "run": context.run,
            "metadata": dict(context.metadata),
            "attempt": self.attempt,
            "idempotency_key": self.idempotency_key,
            "classifier": self.classifier,
            "reports": self.reports,
            "retry": self.retry,
            "limited": self.limited,
            "timed": self.timed,
            "own_limiter": self.own_limiter,
        }
        return _packed(header, list(self.arguments.values()))

    @classmethod
    def decode(cls, message: bytes) -> Request:
        """Decode a message."""
        header, parts = _unpacked(message)
        # A cluster may run another version of this library: what it does not say is as by default.
        reports, retry = header["reports"], header.get("retry")
        return cls(
            function=header["function"],
            arguments=dict(zip(header["arguments"], parts, strict=True)),
            context=ExecutionContext(
                batch_id=BatchId(header["batch_id"]),
                document_id=header["document_id"],
                ordinal=header["ordinal"],
                attempt=header["document_attempt"],
                run=header["run"],
                metadata=header["metadata"],
            ),
            attempt=header["attempt"],
            idempotency_key=header["idempotency_key"],
            classifier=header["classifier"],
            reports=None if reports is None else (reports[0], reports[1], reports[2]),
            retry=None if retry is None else (retry[0], retry[1]),
            limited=header["limited"],
            timed=header["timed"],
            own_limiter=header["own_limiter"],
        )


class Answered(NamedTuple):
    """What is left of a provider's answer."""

    status: int | None
    """The HTTP status; None: there was none, or the function gave headers alone."""
    headers: Mapping[str, str]
    """The headers, as `headers.bounded` keeps them."""


_NOTHING: Final = Answered(None, {})


@dataclass(frozen=True, kw_only=True)
class Used:
    """What a function has said of its limiter, and has spent, also where it raised."""

    tokens: int | None = None
    """The tokens that it has settled; None: it has not."""
    answers: Sequence[Answered] = ()
    """The answers that it has had observed."""
    spent: str | None = None
    """What it has spent (`spending.encode_spends`), by a stage that the worker knows; None: nothing."""


@dataclass(frozen=True, kw_only=True)
class Succeeded:
    """The answer of a function that returned."""

    payload: bytes
    used: Used = Used()


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The answer of a function that raised."""

    failure: ActivityFailure
    verdict: Verdict
    traceback: str
    used: Used = Used()
    answered: Answered = _NOTHING
    """What the provider had answered, where the activity has a limiter."""
    is_failure: bool | None = None
    """Whether it is the provider's failure, where the activity has a limiter: as that one says, or by default."""


def encode_succeeded(payload: bytes, used: Used = Used()) -> bytes:
    """Encode the answer of a function that returned."""
    return _packed({"outcome": "succeeded", "used": asdict(used)}, [payload])


def encode_failed(failed: Failed) -> bytes:
    """Encode the answer of a function that raised."""
    verdict = failed.verdict
    delay = verdict.retry_after
    header = {
        "outcome": "failed",
        "kind": verdict.kind,
        "retry_after": None if delay is None else delay.total_seconds(),
        "note": verdict.note,
        "traceback": failed.traceback,
        "used": asdict(failed.used),
        "answered": failed.answered,
        "is_failure": failed.is_failure,
    }
    return _packed(header, [failed.failure.encode()])


def decode_answer(message: bytes) -> Succeeded | Failed:
    """Decode an answer.

    Raises:
        Exception: It is none: cut, of another version of this library, or of something else.
    """
    header, (payload,) = _unpacked(message)
    used = header["used"]
    answers = [Answered(*answer) for answer in used["answers"]]
    used = Used(tokens=used["tokens"], answers=answers, spent=used["spent"])
    if header["outcome"] == "succeeded":
        return Succeeded(payload=payload, used=used)
    delay = header["retry_after"]
    verdict = Verdict(
        kind=cast(ErrorKind, header["kind"]),
        retry_after=None if delay is None else timedelta(seconds=delay),
        note=header["note"],
    )
    return Failed(
        failure=ActivityFailure.decode(payload),
        verdict=verdict,
        traceback=header["traceback"],
        used=used,
        answered=Answered(*header["answered"]),
        is_failure=header["is_failure"],
    )


def _packed(header: Mapping[str, Any], parts: Sequence[bytes]) -> bytes:
    head = json.dumps({**header, "lengths": [len(part) for part in parts]}, separators=(",", ":")).encode()
    return b"".join([len(head).to_bytes(_LENGTH_BYTES, "big"), head, *parts])


def _unpacked(message: bytes) -> tuple[dict[str, Any], list[bytes]]:
    start = _LENGTH_BYTES + int.from_bytes(message[:_LENGTH_BYTES], "big")
    header: dict[str, Any] = json.loads(message[_LENGTH_BYTES:start])
    parts: list[bytes] = []
    for length in header["lengths"]:
        parts.append(message[start : start + length])
        start += length
    if start != len(message):
        raise ValueError(f"the message has {len(message)} bytes, and not {start}")
    return header, parts
