"""What all attempts of a worker share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final, Protocol

from durable_batches.clock import Clock
from durable_batches.lifecycle.facts import Fact
from durable_batches.lifecycle.records import Refusal
from durable_batches.lifecycle.states import BatchId
from durable_batches.runtime.dependencies import Dependencies
from durable_batches.runtime.middleware import Middleware

__all__ = ["GRACE_SECONDS", "ActivityReport", "Recorder", "Resources", "RunStats"]

GRACE_SECONDS: Final = 30.0
"""How long calls that a workflow left running may take to finish: they are paid for."""


class Recorder(Protocol):
    """Where an attempt's facts go: the journal."""

    def post(self, fact: Fact) -> None:
        """Hand a fact in; it rides on the next commit."""
        ...

    def record(self, fact: Fact) -> Awaitable[Refusal | None]:
        """Hand a fact in; awaits to its verdict once the store has committed it."""
        ...

    def before_commit(self, callback: Callable[[], None]) -> None:
        """Call back just before the next commit is put together."""
        ...


@dataclass
class RunStats:
    """What this process has done, in numbers."""

    activities_run: int = 0
    """Activity calls that were run and recorded."""
    activities_replayed: int = 0
    """Activity calls that were answered from their checkpoints."""
    checkpoints_unused: int = 0
    """Recorded activities that a successful attempt did not ask for."""
    documents_run: int = 0
    """Attempts of documents."""


@dataclass(frozen=True, kw_only=True)
class ActivityReport:
    """How far a long activity says it is (`current_activity().report`), in this process."""

    document_id: str
    activity: str
    current: int
    total: int


@dataclass
class Resources:
    """What all attempts of a worker share."""

    recorder: Recorder
    clock: Clock
    threads: Executor
    stats: RunStats
    dependencies: Dependencies = field(default_factory=Dependencies)
    reports: dict[tuple[BatchId, str, str], ActivityReport] = field(
        default_factory=dict[tuple[BatchId, str, str], ActivityReport]
    )
    grace: float = GRACE_SECONDS
    middleware: Sequence[Middleware] = ()
    """Round each attempt of each activity call, the first of them outermost."""
