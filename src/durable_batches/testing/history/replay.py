"""Replay a batch's events by rules of its own, independent of the core's.

It is written from the rules and shares nothing with the core: it keeps every document, and complains. The history
checker and the conformance suite hold a batch's log and its rows against it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from pydantic import JsonValue

from durable_batches.lifecycle.batch_core import Definition
from durable_batches.lifecycle.events import (
    BatchCancelled,
    BatchCompleted,
    BatchCreated,
    BatchEvent,
    BatchFailed,
    BatchPaused,
    BatchResumed,
    BatchUpdated,
    DocumentCompleted,
    DocumentFailed,
    DocumentReleased,
    DocumentRetrying,
    DocumentStarted,
    PauseReason,
    ResolutionCompleted,
    ResolutionFailed,
    ResolutionReleased,
    ResolutionStarted,
    StageProgress,
    StateChanged,
    UnknownEvent,
)
from durable_batches.lifecycle.records import RESOLVER_DOCUMENT_ID
from durable_batches.lifecycle.states import ENDED_TAGS, Counts
from durable_batches.lifecycle.transitions import transitions

__all__ = ["Replay", "ReplayedDocument"]


@dataclass(slots=True)
class ReplayedDocument:
    """A document's state, by the events."""

    status: str = "pending"
    mark: int = -1
    attempt: int = 0
    failures: int = 0
    """Those after which it was tried again; the one that ended it has no number in its event."""
    crashes: int = 0
    """As of its last release: recorded activities clear them since, and those of a process that is seen again are taken
    back."""

    @property
    def unfinished(self) -> bool:
        """Whether it has not ended."""
        return self.status in ("pending", "running", "waiting")


class Replay:
    """The first run of a batch, event by event; `problems` says what was wrong, with the promise's number."""

    def __init__(self, definition: Definition) -> None:
        self.problems: Final[list[str]] = []
        self.state: str = "pending"
        self.total: int = 0
        self.percentage: float = 0.0
        self.documents: Final[dict[str, ReplayedDocument]] = {}
        """Those that were started."""
        self.resolver_attempts: int = 0
        self.resolver: Literal["idle", "running", "failed", "succeeded"] = "idle"
        self.closed: bool = False
        """Whether the run's last event was there."""
        self._definition = definition
        self._table = transitions(definition.stages)
        self._seq = 0
        self._at: datetime | None = None
        self._created = False
        self._paused: dict[PauseReason, datetime | None] = {}
        """The pauses in force, and until when they last."""
        self._updated: bool = False
        """Whether its concurrency was changed by now."""
        self._too_many: list[str] = []
        """Problems of the starts before, which the concurrency of that time may have allowed."""
        self._limit: int = definition.config.concurrency
        self._looking: str | None = None
        """The document that was started although the batch is paused; the empty string: the resolver."""

    # ---- reading -------------------------------------------------------------------------------------------

    @property
    def counts(self) -> Counts:
        """The counts of documents by status; unfinished ones of an ended run are cancelled."""
        found = Counter(document.status for document in self.documents.values())
        found["pending"] += self.total - len(self.documents)
        if self.state in ENDED_TAGS:
            found["cancelled"] += found.pop("pending") + found.pop("running", 0) + found.pop("waiting", 0)
        return Counts(
            total=self.total,
            pending=found["pending"],
            running=found["running"],
            waiting=found["waiting"],
            succeeded=found["succeeded"],
            failed=found["failed"],
            cancelled=found["cancelled"],
        )

    def document(self, document_id: str) -> ReplayedDocument:
        """Return a document's state; that of a new one if there is no event about it."""
        return self.documents.get(document_id) or ReplayedDocument()

    def _unfinished(self) -> int:
        return self.total - sum(not document.unfinished for document in self.documents.values())

    def _marked(self, stage: int) -> int:
        """Documents that have entered this stage; those that have ended have been through all."""
        return sum(document.mark >= stage or not document.unfinished for document in self.documents.values())

    def _percentage_now(self) -> float:
        stages = len(self._definition.stages)
        if not self.total:
            return 100.0
        passed = sum(max(document.mark, 0) if document.unfinished else stages for document in self.documents.values())
        return round(100 * passed / (self.total * stages), 4)

    # ---- taking --------------------------------------------------------------------------------------------

    def take(self, event: BatchEvent) -> None:
        """Take the next event."""
        self._seq = event.seq
        self._expect(self._at is None or event.at >= self._at, 9, f"{event.tag} is dated before the event before it")
        self._at = event.at
        self._expect(not self.closed, 5, f"{event.tag} after the run's last event")
        self._expect(self._created or isinstance(event, BatchCreated), 9, f"{event.tag} before batch_created")
        match event:
            case BatchCreated(total=total):
                self._expect(not self._created, 9, "a second batch_created")
                self._created = True
                self.total = total
                self.percentage = self._percentage_now()
            case StateChanged(previous=previous, state=state):
                self._move(previous, state)
            case DocumentStarted(document_id=document_id, attempt=attempt):
                self._start(document_id, attempt)
            case StageProgress():
                self._progress(event)
            case DocumentCompleted(document_id=document_id, percentage=percentage):
                self._leave(document_id, "succeeded", event.tag)
                self._take_percentage(percentage, event.tag)
            case DocumentFailed(document_id=document_id, percentage=percentage):
                self._leave(document_id, "failed", event.tag)
                self._take_percentage(percentage, event.tag)
            case DocumentRetrying(document_id=document_id, failures=failures):
                document = self._leave(document_id, "waiting", event.tag)
                document.failures += 1
                document.crashes = 0
                self._expect(failures == document.failures, 11, f"{document_id!r} has failed {failures} times")
            case DocumentReleased(document_id=document_id, reason=reason, crashes=crashes):
                document = self._leave(document_id, "pending", event.tag)
                most = document.crashes + (reason == "crash")
                fits = 0 <= crashes <= most
                self._expect(fits, 11, f"{document_id!r} has crashed {crashes} times, and at most {most}")
                document.crashes = crashes
            case ResolutionStarted(attempt=attempt):
                self._resolve(attempt)
            case ResolutionFailed(due=due):
                self._expect(self.resolver == "running", 8, "resolution_failed, and no resolver was running")
                self._end_look(RESOLVER_DOCUMENT_ID)
                self.resolver = "failed" if due is None else "idle"
            case ResolutionReleased():
                self._expect(self.resolver == "running", 8, "resolution_released, and no resolver was running")
                self._end_look(RESOLVER_DOCUMENT_ID)
                self.resolver = "idle"
            case ResolutionCompleted():
                self._expect(self.resolver == "running", 8, "resolution_completed, and no resolver was running")
                self.resolver = "succeeded"
            case BatchPaused(reason=reason, until=until):
                self._paused[reason] = until
            case BatchResumed(reason=reason):
                self._expect(reason in self._paused, 16, "batch_resumed, and it was not paused")
                self._paused.pop(reason, None)
                if reason == "quota":
                    self._looking = None
            case BatchUpdated(changes=changes):
                self._update(changes)
            case BatchCompleted(counts=counts):
                self._close("completed", counts)
            case BatchFailed(counts=counts):
                self._close("failed", counts)
            case BatchCancelled(counts=counts):
                self._close("cancelled", counts)
            case UnknownEvent(name=name):
                self._expect(False, 9, f"{name!r} is no event of this library")
            case _:
                pass  # nothing writes them yet

    def end_of_log(self) -> None:
        """Check the state after the last event, which a commit left."""
        ended = self.state in ENDED_TAGS
        self._expect(self.closed == ended, 9, f"the log ends in state {self.state!r}, without the event of it")
        if ended:
            self._check_end()
        elif self.state == "resolving":
            self._expect(self._definition.resolver, 5, "resolving without a resolver")
            self._expect(self._unfinished() == 0, 8, "resolving while documents are unfinished")
        else:
            self._expect(self._unfinished() > 0, 5, f"in state {self.state!r} with nothing left to do")
            if self.state != "pending":
                expected = self._definition.stages[self._earliest()]
                self._expect(self.state == expected, 5, f"in state {self.state!r}; its documents say {expected!r}")

    def _earliest(self) -> int:
        if len(self.documents) < self.total:
            return 0
        marks = [max(document.mark, 0) for document in self.documents.values() if document.unfinished]
        return min(marks, default=len(self._definition.stages) - 1)

    def _update(self, changes: Mapping[str, JsonValue]) -> None:
        """Take a change of the configuration; the definition has the latest one, which does not bind earlier starts."""
        limit = changes.get("concurrency")
        if isinstance(limit, int):
            self.problems[:] = [problem for problem in self.problems if problem not in self._too_many]
            self._updated, self._limit = True, limit
            self._too_many.clear()

    # ---- what an event does --------------------------------------------------------------------------------

    def _move(self, previous: str, state: str) -> None:
        self._expect(previous == self.state, 5, f"left {previous!r} while in {self.state!r}")
        allowed = self._table.get(self.state, frozenset())
        self._expect(state in allowed, 5, f"went from {self.state!r} to {state!r}, which the table does not have")
        if state == "resolving":
            self._expect(self._unfinished() == 0, 8, "went to resolving while documents were unfinished")
        self.state = state

    def _start(self, document_id: str, attempt: int) -> None:
        document = self.documents.setdefault(document_id, ReplayedDocument())
        fits = document.status in ("pending", "waiting") and self.state not in ("resolving", *ENDED_TAGS)
        self._expect(fits, 5, f"{document_id!r} was started while {document.status} in state {self.state!r}")
        self._expect(attempt == document.attempt + 1, 4, f"{document_id!r}: attempt {attempt} after {document.attempt}")
        self._expect(len(self.documents) <= self.total, 1, f"{document_id!r} is one document too many")
        self._begin_look(document_id)
        document.status = "running"
        document.attempt = attempt
        running = sum(other.status == "running" for other in self.documents.values())
        limit = self._limit
        before = len(self.problems)
        self._expect(running <= limit, 5, f"{running} documents ran at once, more than concurrency={limit}")
        if not self._updated:
            self._too_many += self.problems[before:]

    def _progress(self, event: StageProgress) -> None:
        document = self.document(event.document_id)
        stages = self._definition.stages
        if event.stage not in stages:
            self._expect(False, 5, f"{event.document_id!r} entered {event.stage!r}, which is no stage")
            return
        mark = stages.index(event.stage)
        fits = document.status == "running" and mark > document.mark
        self._expect(fits, 5, f"{event.document_id!r} entered {event.stage!r} while {document.status}")
        document.mark = mark
        entered = self._marked(mark)
        self._expect(
            (event.current, event.total) == (entered, self.total),
            11,
            f"{event.stage!r}: {event.current} of {event.total} documents; counted {entered} of {self.total}",
        )
        self._take_percentage(event.percentage, event.tag)

    def _leave(self, document_id: str, status: str, tag: str) -> ReplayedDocument:
        document = self.documents.setdefault(document_id, ReplayedDocument())
        self._expect(document.status == "running", 4, f"{tag} of {document_id!r}, which was {document.status}")
        document.status = status
        self._end_look(document_id)
        return document

    def _begin_look(self, document_id: str) -> None:
        """Take the start of a document, or of the resolver, in a batch that may be paused."""
        if not self._paused:
            return
        for reason, until in self._paused.items():
            over = until is not None and self._at is not None and self._at >= until
            self._expect(over, 16, f"{document_id!r} was started while the batch was paused until {until} ({reason})")
        self._expect(self._looking is None, 16, f"{document_id!r} was started while {self._looking!r} looked")
        self._looking = document_id

    def _end_look(self, document_id: str) -> None:
        if self._looking == document_id:
            self._looking = None

    def _take_percentage(self, percentage: float, tag: str) -> None:
        expected = self._percentage_now()
        self._expect(abs(percentage - expected) < 0.001, 11, f"{tag} says {percentage} %; counted {expected} %")
        self._expect(percentage >= self.percentage, 11, f"{tag}: {percentage} % after {self.percentage} %")
        self.percentage = percentage

    def _resolve(self, attempt: int) -> None:
        self._expect(self.state == "resolving", 8, f"the resolver was started in state {self.state!r}")
        self._expect(self.resolver == "idle", 8, f"the resolver was started when it was {self.resolver}")
        self._expect(
            attempt == self.resolver_attempts + 1,
            4,
            f"resolver: attempt {attempt} after {self.resolver_attempts}",
        )
        self._begin_look(RESOLVER_DOCUMENT_ID)
        self.resolver_attempts = attempt
        self.resolver = "running"

    def _close(self, state: str, counts: Counts) -> None:
        self._expect(self.state == state, 5, f"its last event is of {state!r}, in state {self.state!r}")
        self._expect(counts == self.counts, 11, f"its last event says {counts}; counted {self.counts}")
        # What had not finished has ended with the run, and stays where it was.
        self.percentage = self._percentage_now()
        self.closed = True

    def _check_end(self) -> None:
        if self.state != "completed":
            return
        self._expect(self._unfinished() == 0, 1, "COMPLETED while documents are unfinished")
        if self._definition.resolver:
            self._expect(self.resolver == "succeeded", 8, "COMPLETED without the resolver's result")
        failed = self.counts.failed
        self._expect(not self.total or failed < self.total, 5, "COMPLETED although all documents failed")

    def _expect(self, condition: bool, promise: int, problem: str) -> None:
        if not condition:
            self.problems.append(f"{promise}: event {self._seq}: {problem}")
