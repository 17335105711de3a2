"""Resources that all attempts of a worker share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from durable_batches.clock import Clock
from durable_batches.lifecycle.facts import Fact
from durable_batches.lifecycle.records import Refusal
from durable_batches.lifecycle.states import BatchId
from durable_batches.runtime.classify import ErrorClassifier, default_classifier
from durable_batches.runtime.dependencies import Dependencies
from durable_batches.runtime.elsewhere import Elsewhere
from durable_batches.runtime.limits import KnownLimiters, Limiter
from durable_batches.runtime.middleware import Middleware
from durable_batches.runtime.overloads import Overloads
from durable_batches.runtime.threads import Threads

__all__ = ["GRACE_SECONDS", "ActivityReport", "HeldLease", "Recorder", "Resources", "RunStats", "Slots"]

GRACE_SECONDS: Final = 30.0
"""The grace period of calls that a workflow left running, since they are paid for."""


class Recorder(Protocol):
    """The receiver of an attempt's facts: the journal."""

    def post(self, fact: Fact) -> None:
        """Add a fact to the next commit, without waiting."""
        ...

    def record(self, fact: Fact) -> Awaitable[Refusal | None]:
        """Add a fact to the next commit, and await its verdict."""
        ...

    def before_commit(self, callback: Callable[[], None]) -> None:
        """Call back just before the next commit is assembled."""
        ...


class HeldLease(Protocol):
    """The worker's lease, as its worker knows it: work begins only while it holds.

    Otherwise another worker may have taken over, and begin the same; or what it comes to could not be recorded.
    """

    @property
    def until(self) -> float:
        """The moment on the boot clock until which it cannot run out in the store; read from any thread."""
        ...

    @property
    def is_inherited(self) -> bool:
        """Whether its worker runs in the process that this one was forked from: nothing of it runs here."""
        ...

    def holds(self) -> bool:
        """Return whether that moment is yet to come."""
        ...

    async def regained(self) -> None:
        """Wait until it holds. One that is lost for good does not; its attempts are cancelled."""
        ...


class Slots(Protocol):
    """The slots of the worker, one for each execution in flight. An execution that only waits lends its own."""

    def lend(self, *, in_any_case: bool) -> bool:
        """Lend a slot, which the worker may give to another execution; return whether it is lent.

        Args:
            in_any_case: Also where many are lent already.
        """
        ...

    async def take_back(self) -> None:
        """Wait until a slot is open in place of the one that was lent, and take it."""
        ...

    def take_open(self) -> bool:
        """Take a slot back in place of the one that was lent, if one is open that none waits for; return whether."""
        ...

    def keep(self) -> None:
        """Take a slot back at once, in place of the one that was lent, whether or not one is open."""
        ...


class _NoSlots:
    """Attempts that no worker runs hold no slots."""

    def lend(self, *, in_any_case: bool) -> bool:
        return False

    async def take_back(self) -> None:
        pass

    def take_open(self) -> bool:
        return True

    def keep(self) -> None:
        pass


class _NoLease:
    """Attempts that no worker runs have no lease that could run out."""

    until = float("inf")
    is_inherited = False

    def holds(self) -> bool:
        return True

    async def regained(self) -> None:
        pass


@dataclass
class RunStats:
    """Counters of a worker in this process."""

    activities_run: int = 0
    """Activity calls that ran and were recorded."""
    activities_replayed: int = 0
    """Activity calls that returned a recorded result."""
    checkpoints_unused: int = 0
    """Recorded results that a successful attempt did not request."""
    documents_run: int = 0
    """Attempts of documents."""
    threads_left: int = 0
    """Threads of sync activities that go on now though their call has timed out or was cancelled."""


@dataclass(frozen=True, kw_only=True)
class ActivityReport:
    """The progress that a running activity has reported with `current_activity().report`."""

    document_id: str
    activity: str
    current: int
    total: int


@dataclass
class Resources:
    """Resources that all attempts of a worker share."""

    recorder: Recorder
    clock: Clock
    threads: Threads
    stats: RunStats
    dependencies: Dependencies = field(default_factory=Dependencies)
    reports: dict[tuple[BatchId, str, str], ActivityReport] = field(
        default_factory=dict[tuple[BatchId, str, str], ActivityReport]
    )
    grace: float = GRACE_SECONDS
    lease: HeldLease = field(default_factory=_NoLease)
    slots: Slots = field(default_factory=_NoSlots)
    middleware: Sequence[Middleware] = ()
    """Middleware round each attempt of each activity call, the first one outermost."""
    elsewhere: Elsewhere | None = None
    """Runs the activities that have `run_on=`; None: the worker has no executors."""
    classify: ErrorClassifier = default_classifier
    """Judges the errors of activities that have no classifier of their own."""
    overloads: Overloads = field(default_factory=Overloads)
    """Since when providers refuse everything."""
    named_limiters: Mapping[str, Limiter] = field(default_factory=dict[str, Limiter])
    """Those of activities that name theirs."""
    limiters: KnownLimiters = field(default_factory=KnownLimiters)
    """Those that calls have asked for permits."""
    adopt: Callable[[Limiter], object] | None = None
    """Called with each before the first of its permits is asked for; raises where it cannot be used."""
    moment: float = 0.0
    """By the boot clock: when a commit was last through, or the event loop last seen to turn (half a second ago at
    most). Calls begin then, so that none of them reads a clock to know when it did."""

    def uses(self, limiter: Limiter) -> None:
        """Take note of a limiter before a call asks it for a permit.

        Raises:
            ConfigurationError: It cannot be used here.
        """
        if limiter not in self.limiters:
            if self.adopt is not None:
                self.adopt(limiter)
            self.limiters.add(limiter)
