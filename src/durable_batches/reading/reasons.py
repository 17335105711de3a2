"""Why a batch is where it is: each reason as data, and as a sentence (`str`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Generic, Literal, TypeAlias

from typing_extensions import TypeVar

from durable_batches.lifecycle.events import PauseReason
from durable_batches.lifecycle.progress import LongCalls
from durable_batches.lifecycle.states import BatchId, BatchState, Counts, Stage
from durable_batches.markup import block, table
from durable_batches.reading.notes import TakesFrom

__all__ = [
    "BatchEnded",
    "BlockedLoop",
    "DamagedBatch",
    "DeadWorker",
    "Explanation",
    "IsolatedDocument",
    "LongCalls",
    "NoWorker",
    "PausedBatch",
    "QueuedDocuments",
    "Reason",
    "ResolverStatus",
    "RunningDocuments",
    "SuspendedDocuments",
    "ThrottledLimiter",
    "UnselectedBatch",
]

S_co = TypeVar("S_co", bound=Stage, default=Stage, covariant=True)

_SHOWN: Final = 5
"""Activities, or workers, that a sentence names."""


@dataclass(frozen=True, kw_only=True)
class RunningDocuments:
    """Documents run."""

    documents: int
    oldest_document_id: str
    """The document that has made no progress for the longest time: entered no stage, and not started."""
    oldest_since: datetime
    """When it last did."""
    workers: Mapping[str, int]
    """The workers that run them, with their number on each."""
    waiting: int = 0
    """Documents that wait for one of these to end, because the batch runs no more at once (its `concurrency`)."""
    oldest_activity: str | None = None
    """The activity that the oldest document runs, as its worker last said; None: it runs none, or that is not known."""
    oldest_activity_since: datetime | None = None
    """When the activity's present attempt began, by the worker's clock."""
    activities: Mapping[str, int] = field(default_factory=dict[str, int])
    """The activities that the documents run, as their workers last said, with the number of documents of each."""
    tag: Literal["running"] = "running"

    def __str__(self) -> str:
        workers = ", ".join(f"{worker!r} ({number})" for worker, number in sorted(self.workers.items()))
        on = f" on {_number(len(self.workers), 'worker')}: {workers}" if self.workers else ""
        waiting = (
            f". The batch runs no more at once, and {_number(self.waiting, 'document')} "
            f"{_verb(self.waiting, 'waits', 'wait')} for that"
            if self.waiting
            else ""
        )
        running = sorted(self.activities.items(), key=lambda each: (-each[1], each[0]))
        activities = _named(f"{activity!r} ({number})" for activity, number in running)
        in_activities = f", in {activities}" if activities else ""
        return (
            f"{_number(self.documents, 'document')} {_verb(self.documents, 'runs', 'run')}{on}{in_activities}. Without "
            f"progress for the longest time, since {_at(self.oldest_since)}, is {self.oldest_document_id!r}"
            f"{_in_activity(self.oldest_activity, self.oldest_activity_since)}{waiting}."
        )


@dataclass(frozen=True, kw_only=True)
class SuspendedDocuments:
    """Documents wait without holding a slot, grouped by what they wait for."""

    what: Literal["signal", "timer", "retry", "rate-limit", "provider-batch"]
    name: str
    """Of the signal, say; empty for what has none."""
    documents: int
    next_due: datetime | None
    """When the first of them goes on by itself; None: none does."""
    tag: Literal["suspended"] = "suspended"

    def __str__(self) -> str:
        until = "" if self.next_due is None else f", the first until {_at(self.next_due)}"
        of = f" {self.name!r}" if self.name else ""
        return (
            f"{_number(self.documents, 'document')} {_verb(self.documents, 'waits', 'wait')} for a {self.what}{of}"
            f"{until}."
        )


@dataclass(frozen=True, kw_only=True)
class NoWorker:
    """No worker that is alive was started with this workflow in this version, or has a document of the batch."""

    workflow: str
    version: str
    known: Sequence[tuple[str, str]]
    """The workflows and versions with which workers were started that are alive."""
    too_old: Sequence[str] = ()
    """Workers that were started with this workflow in this version, but whose library is older than the batch needs."""
    tag: Literal["no-worker"] = "no-worker"

    def __str__(self) -> str:
        if self.too_old:
            workers = _named(map(repr, self.too_old))
            return (
                f"The batch needs a newer version of the library than that of the {_plural(self.too_old, 'worker')} "
                f"with the workflow {self.workflow!r} in version {self.version!r}: {workers}."
            )
        known = ", ".join(f"{name!r} in version {version!r}" for name, version in self.known)
        others = f"there are workers for {known}" if known else "there is no worker that runs anything"
        return f"No worker was started with the workflow {self.workflow!r} in version {self.version!r}: {others}."


@dataclass(frozen=True, kw_only=True)
class UnselectedBatch:
    """The workers that were started with this workflow in this version take from other batches only.

    Which they take from is what `Worker(batches=)` says.
    """

    workflow: str
    version: str
    workers: Mapping[str, Literal["mine", "filter"]]
    """Those workers, each with what it takes from: "mine", what its process has submitted or attached to since it was
    started; or "filter", the batches of its `BatchFilter`."""
    tag: Literal["unselected"] = "unselected"

    def __str__(self) -> str:
        workers = _named(f"{worker!r} ({_TAKES_FROM[kind]})" for worker, kind in sorted(self.workers.items()))
        return (
            f"No worker takes from this batch: those with the workflow {self.workflow!r} in version {self.version!r} "
            f"take from other batches only: {workers}."
        )


_TAKES_FROM: Final[Mapping[TakesFrom, str]] = {
    "mine": "those that its process has submitted",
    "filter": "those of its filter",
}


@dataclass(frozen=True, kw_only=True)
class DeadWorker:
    """A worker that owns documents of the batch does not renew its lease: it is dead, frozen or cut off."""

    worker: str
    documents: int
    lease_until: datetime
    """When the lease expires or has expired. From then on, any other worker releases its documents."""
    tag: Literal["dead-worker"] = "dead-worker"

    def __str__(self) -> str:
        return (
            f"The worker {self.worker!r} has {_number(self.documents, 'document')} and does not renew its lease. "
            f"Other workers take over what it has when the lease has expired: {_at(self.lease_until)}."
        )


@dataclass(frozen=True, kw_only=True)
class BlockedLoop:
    """A worker's event loop does not turn, or did not a moment ago: code that it runs blocks it.

    Until it returns, nothing else moves in that process: no other document, no timeout, no claim.
    """

    worker: str
    since: datetime
    """When the loop turned last, by the worker's clock."""
    where: str
    """File, line and function: the innermost frame of code that is neither an installed package's nor Python's own. The
    worker's log has the stack."""
    documents: int
    """Documents of the batch that the worker has."""
    until: datetime | None = None
    """When it turned again, less than a minute ago; None: it does not, as far as the worker has said."""
    tag: Literal["blocked-loop"] = "blocked-loop"

    def __str__(self) -> str:
        has = f" It has {_number(self.documents, 'document')} of the batch." if self.documents else ""
        if self.until is None:
            turns = f"does not turn since {_at(self.since)}"
        else:
            seconds = (self.until - self.since).total_seconds()
            turns = f"did not turn for {seconds:.1f} s until {_at(self.until)}"
        return f"The event loop of the worker {self.worker!r} {turns}: it is blocked at {self.where}.{has}"


@dataclass(frozen=True, kw_only=True)
class ThrottledLimiter:
    """Calls of the batch wait for permits of a limiter."""

    limiter: str
    waiting: int
    """Calls of the batch, as the workers last said."""
    since: datetime
    """Since when the first of them waits, by its worker's clock."""
    workers: Mapping[str, int]
    """The workers on which they wait, with their number on each."""
    breaker: Literal["closed", "open", "half-open"] = "closed"
    """The state of its circuit breaker: calls pass, none does, or a few do, to see if its provider has recovered. Of
    those of several workers, the one that lets the least pass."""
    until: datetime | None = None
    """When the next call may begin there; None: when another has ended, at once, or that is not known."""
    tag: Literal["throttled"] = "throttled"

    def __str__(self) -> str:
        workers = ", ".join(f"{worker!r} ({number})" for worker, number in sorted(self.workers.items()))
        until = "" if self.until is None else _at(self.until)
        if self.breaker == "open":
            why = "Its circuit is open, since its provider fails: no call is made"
            why += f" until {until}" if until else " now"
        elif self.breaker == "half-open":
            why = "Its circuit is half-open: a few calls are made, to see if its provider has recovered"
        else:
            why = "Its limits are reached, or its provider fails or has asked to wait"
            why += f"; the next call may begin at {until}" if until else ""
        return (
            f"{_number(self.waiting, 'call')} {_verb(self.waiting, 'waits', 'wait')} for permits of the limiter "
            f"{self.limiter!r}, the first since {_at(self.since)}, on {_number(len(self.workers), 'worker')}: "
            f"{workers}. {why}."
        )


@dataclass(frozen=True, kw_only=True)
class IsolatedDocument:
    """A document that was running at several crashes runs beside few others, or none, for some time."""

    document_id: str
    """Empty: it is the resolver."""
    crashes: int
    """With nothing recorded in between."""
    worker: str | None
    """The worker that runs it; None: it waits for one that runs few others."""
    since: datetime
    waiting: int
    """Other documents that wait to run like that."""
    tag: Literal["isolated"] = "isolated"

    def __str__(self) -> str:
        runs = (
            "it waits for a worker that runs few others"
            if self.worker is None
            else f"it runs on the worker {self.worker!r} beside few others, or none,"
        )
        others = f"; {self.waiting} more wait to run like that" if self.waiting else ""
        what = f"document {self.document_id!r}" if self.document_id else "resolver"
        return (
            f"The {what} was running when its worker crashed, {self.crashes} times: {runs} "
            f"since {_at(self.since)}{others}."
        )


@dataclass(frozen=True, kw_only=True)
class QueuedDocuments:
    """Documents are due and not claimed: the workers that could are full, or serve others first."""

    documents: int
    since: datetime
    """When the first of them fell due."""
    tag: Literal["queued"] = "queued"

    def __str__(self) -> str:
        return (
            f"{_number(self.documents, 'document')} could run and "
            f"{_verb(self.documents, 'is', 'are')} not claimed, the first since {_at(self.since)}: the workers that "
            "could are full, or serve other batches first."
        )


@dataclass(frozen=True, kw_only=True)
class PausedBatch:
    """The batch is paused: nothing of it is started."""

    reason: PauseReason
    since: datetime
    until: datetime | None
    """When it goes on by itself; of a quota: when the provider is asked again. None: not by itself."""
    note: str
    """Of an operator: the note; of a quota: what the provider said."""
    tag: Literal["paused"] = "paused"

    def __str__(self) -> str:
        if self.reason == "operator":
            note = f": {self.note}" if self.note else ""
            return (
                f"An operator has paused it at {_at(self.since)}{note}. Nothing of it is started until it is resumed."
            )
        if self.reason == "quota":
            again = "soon" if self.until is None else f"at {_at(self.until)}"
            return (
                f"It is paused since {_at(self.since)}, because a provider refuses its calls: {self.note}. One "
                f"document asks again {again}, and the batch goes on when a call succeeds."
            )
        if self.reason == "budget":
            return (
                f"It is paused since {_at(self.since)}, because its budget is spent: {self.note}. It goes on when the "
                "budget is raised: update(budget=)."
            )
        until = "" if self.until is None else f", until {_at(self.until)}"
        note = f": {self.note}" if self.note else ""
        return f"It is paused ({self.reason}) since {_at(self.since)}{until}{note}."


@dataclass(frozen=True, kw_only=True)
class ResolverStatus:
    """All documents have finished: the resolver runs, or waits."""

    attempt: int
    """The number of its attempt; 0: it has not started."""
    waits: Literal["worker", "retry", "signal", "timer"] | None
    """What it waits for; None: it runs."""
    activity: str | None = None
    """The activity that it runs, as its worker last said; None: it runs none, or that is not known."""
    activity_since: datetime | None = None
    """When the activity's present attempt began, by the worker's clock."""
    tag: Literal["resolver"] = "resolver"

    def __str__(self) -> str:
        if self.waits is None:
            activity = _in_activity(self.activity, self.activity_since)
            return f"All documents have finished, and the resolver runs (attempt {self.attempt}){activity}."
        return f"All documents have finished, and the resolver waits for a {self.waits} (attempts: {self.attempt})."


@dataclass(frozen=True, kw_only=True)
class BatchEnded:
    """The batch has ended."""

    counts: Counts
    tag: Literal["ended"] = "ended"

    def __str__(self) -> str:
        counts = self.counts
        return (
            f"It has ended: {counts.succeeded} of {_number(counts.total, 'document')} succeeded, {counts.failed} "
            f"failed, {counts.cancelled} cancelled."
        )


@dataclass(frozen=True, kw_only=True)
class DamagedBatch:
    """The counts of the batch's row contradict each other: workers pass over it, and nothing of it is claimed."""

    problem: str
    tag: Literal["damaged"] = "damaged"

    def __str__(self) -> str:
        return (
            f"Its row was changed by hand or damaged, and workers pass over it: {self.problem}. Restore it from a "
            "backup, or submit the documents again."
        )


Reason: TypeAlias = (
    DamagedBatch
    | RunningDocuments
    | SuspendedDocuments
    | NoWorker
    | UnselectedBatch
    | DeadWorker
    | BlockedLoop
    | LongCalls
    | ThrottledLimiter
    | IsolatedDocument
    | QueuedDocuments
    | PausedBatch
    | ResolverStatus
    | BatchEnded
)
"""A reason why a batch is where it is. It grows in minor versions: keep a `case _` in every `match`."""


@dataclass(frozen=True, kw_only=True)
class Explanation(Generic[S_co]):
    """Why a batch is where it is; `str` gives all of it in sentences."""

    batch_id: BatchId
    state: BatchState[S_co]
    headline: str
    """One sentence."""
    reasons: Sequence[Reason]
    """The most decisive first; never empty."""

    def __str__(self) -> str:
        return "\n".join([self.headline, *(f"- {reason}" for reason in self.reasons)])

    def _repr_html_(self) -> str:
        """Return it as notebooks show it."""
        rows = [(reason.tag.replace("-", " "), str(reason)) for reason in self.reasons]
        return block(f"{self.batch_id}: {self.headline}", table(("", "why"), rows))


def _in_activity(activity: str | None, since: datetime | None) -> str:
    if activity is None:
        return ""
    return f", in the activity {activity!r}" + ("" if since is None else f" since {_at(since)}")


def _named(names: Iterable[str]) -> str:
    """Name the first of them, and count the others."""
    all_names = list(names)
    more = len(all_names) - _SHOWN
    return ", ".join(all_names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _plural(names: Sequence[str], noun: str) -> str:
    return noun if len(names) == 1 else f"{noun}s"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _verb(count: int, one: str, many: str) -> str:
    return one if count == 1 else many


def _at(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
