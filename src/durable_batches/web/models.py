"""The bodies of answers, as types: the published schemas are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import Discriminator, JsonValue, TypeAdapter

from durable_batches.lifecycle.config import BatchConfig
from durable_batches.lifecycle.progress import BatchSnapshot, Pause
from durable_batches.lifecycle.records import ExecutionStatus
from durable_batches.lifecycle.spending import Spending
from durable_batches.lifecycle.states import Stage
from durable_batches.lifecycle.timeline import Timeline
from durable_batches.reading.documents import RawDocument
from durable_batches.reading.failures import ErrorDigest
from durable_batches.reading.reasons import Explanation, Reason
from durable_batches.runtime.results import DocumentFailure
from durable_batches.web.urls import segment_of

__all__ = [
    "BATCH",
    "BATCHES",
    "CANCELLATION",
    "CONFIG",
    "DOCUMENTS",
    "ERRORS",
    "EXPLANATION",
    "PROBLEM",
    "SPENDING",
    "TIMELINE",
    "Batch",
    "BatchPage",
    "Cancellation",
    "Document",
    "DocumentPage",
    "ExplanationView",
    "Problem",
    "batch_of",
    "document_of",
    "explanation_of",
]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Batch(BatchSnapshot[Stage]):
    """A batch at one moment, and where it is found."""

    url: str
    """Relative to the address of the application, without a slash before it."""


@dataclass(frozen=True, kw_only=True)
class BatchPage:
    """Batches, newest first."""

    batches: Sequence[Batch]
    next: str | None
    """The `after` of the next page; None: this is the last one."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A document as it is stored."""

    document_id: str
    position: int
    status: ExecutionStatus
    stage: str | None
    attempts: int
    updated_at: datetime
    worker: str | None
    activity: str | None
    activity_since: datetime | None
    due: datetime | None
    failure: DocumentFailure | None
    document: JsonValue = None
    """Where it was asked for, and may be seen."""
    result: JsonValue = None
    """Where it was asked for, may be seen, and the document has succeeded."""


@dataclass(frozen=True, kw_only=True)
class DocumentPage:
    """Documents in submission order."""

    documents: Sequence[Document]
    next: int | None
    """The `after` of the next page; None: this is the last one."""


@dataclass(frozen=True, kw_only=True)
class ExplanationView:
    """Why a batch is where it is."""

    batch_id: str
    state: str
    headline: str
    reasons: Sequence[Annotated[Reason, Discriminator("tag")]]
    """The most decisive first."""
    sentences: Sequence[str]
    """Of each reason."""


@dataclass(frozen=True, kw_only=True)
class Cancellation:
    """What came of a cancellation."""

    cancelled: bool
    """Whether this one cancelled the batch; False: it had ended before."""


@dataclass(frozen=True, kw_only=True)
class Pausing:
    """What came of a pause."""

    paused: bool
    """Whether this one paused the batch; False: an operator's pause was in force."""


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """What came of a resumption."""

    pauses: Sequence[Pause]
    """Those that stay in force."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a request was refused (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    """The stable code of an error of the library; may be empty."""


BATCH: Final[TypeAdapter[Batch]] = TypeAdapter(Batch)
BATCHES: Final[TypeAdapter[BatchPage]] = TypeAdapter(BatchPage)
DOCUMENTS: Final[TypeAdapter[DocumentPage]] = TypeAdapter(DocumentPage)
ERRORS: Final[TypeAdapter[ErrorDigest]] = TypeAdapter(ErrorDigest)
EXPLANATION: Final[TypeAdapter[ExplanationView]] = TypeAdapter(ExplanationView)
TIMELINE: Final[TypeAdapter[Timeline]] = TypeAdapter(Timeline)
CONFIG: Final[TypeAdapter[BatchConfig]] = TypeAdapter(BatchConfig)
SPENDING: Final[TypeAdapter[Spending]] = TypeAdapter(Spending)
CANCELLATION: Final[TypeAdapter[Cancellation]] = TypeAdapter(Cancellation)
PAUSING: Final[TypeAdapter[Pausing]] = TypeAdapter(Pausing)
RESUMPTION: Final[TypeAdapter[Resumption]] = TypeAdapter(Resumption)
PROBLEM: Final[TypeAdapter[Problem]] = TypeAdapter(Problem)

_JSON: Final[TypeAdapter[JsonValue]] = TypeAdapter(JsonValue)


def batch_of(snapshot: BatchSnapshot[Stage]) -> Batch:
    """Return a snapshot with the address of its batch."""
    return Batch(**vars(snapshot), url=f"batches/{segment_of(snapshot.batch_id)}")


def document_of(document: RawDocument) -> Document:
    """Return a document with its payloads as values; None where they were not read."""
    values: dict[str, Any] = vars(document) | {
        name: None if text is None else _JSON.validate_json(text)
        for name, text in (("document", document.document), ("result", document.result))
    }
    return Document(**values)


def explanation_of(explanation: Explanation[Stage]) -> ExplanationView:
    """Return an explanation with the sentences of its reasons."""
    return ExplanationView(
        batch_id=explanation.batch_id,
        state=explanation.state.tag,
        headline=explanation.headline,
        reasons=explanation.reasons,
        sentences=[str(reason) for reason in explanation.reasons],
    )
