"""The signals that a worker's loops fire, for tests; see `durable_batches.signals`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from durable_batches.lifecycle.records import ExecutionKey, WorkerId
from durable_batches.reading.signals import NewsSignals
from durable_batches.signals import Signal

__all__ = [
    "JournalSignals",
    "LeaseSignals",
    "MembershipSignals",
    "SchedulerSignals",
    "StoreWatchSignals",
    "WorkerSignals",
]


class JournalSignals:
    """Of the journal; each value is the number of the last commit that is through, or of the one that is meant."""

    __slots__ = ("beginning", "committed", "pausing", "waiting")

    def __init__(self) -> None:
        self.waiting: Final = Signal[int]()
        """There is nothing to commit, and nothing to claim."""
        self.beginning: Final = Signal[int]()
        """A commit is handed to the store; once, also where it is repeated."""
        self.committed: Final = Signal[int]()
        """The store has answered a commit, and its claims and events are handed on."""
        self.pausing: Final = Signal[int]()
        """The store is away: the commit waits until it is repeated."""


class SchedulerSignals:
    """Of the scheduler and its documents; the value is the document's key."""

    __slots__ = ("claimed", "finished", "idle", "started")

    def __init__(self) -> None:
        self.claimed: Final = Signal[int]()
        """A claim was answered: the number of executions that came with it."""
        self.started: Final = Signal[ExecutionKey]()
        """An execution was claimed, and its attempt begins."""
        self.finished: Final = Signal[ExecutionKey]()
        """The attempt is over; how it ended is reported next."""
        self.idle: Final = Signal[None]()
        """A claim was answered with less than was asked for: nothing else is due now."""


class MembershipSignals:
    """Of the worker's sessions; the value is the worker's id in the store, or those of other workers."""

    __slots__ = ("deregistered", "expired", "lease_lost", "registered", "restarted")

    def __init__(self) -> None:
        self.registered: Final = Signal[WorkerId]()
        """The store knows the worker under this id."""
        self.restarted: Final = Signal[WorkerId]()
        """The session under this id has begun to work: the first one, or a successor of one that lost its lease."""
        self.lease_lost: Final = Signal[WorkerId]()
        """The session's lease is lost: it fences itself."""
        self.expired: Final = Signal[Sequence[WorkerId]]()
        """The worker looked for dead ones, and expired these; often none."""
        self.deregistered: Final = Signal[WorkerId]()
        """The store has released everything that the session held."""


class LeaseSignals:
    """Of the lease renewer, fired on its thread."""

    __slots__ = ("blocked", "failed", "looked", "renewed")

    def __init__(self) -> None:
        self.blocked: Final = Signal[object]()
        """The event loop does not turn: the `Block`. The session's row says so with the next renewal, made at once."""
        self.looked: Final = Signal[WorkerId]()
        """It has looked whether the event loop turns."""
        self.renewed: Final = Signal[WorkerId]()
        self.failed: Final = Signal[WorkerId]()
        """A renewal came to no answer; it is repeated soon."""


class StoreWatchSignals:
    """Of the store watch, which reads gauges for telemetry."""

    __slots__ = ("read",)

    def __init__(self) -> None:
        self.read: Final = Signal[bool]()
        """The gauges of the store were read: whether that has succeeded."""


class WorkerSignals:
    """All signals of one worker, the same through all of its sessions."""

    __slots__ = ("journal", "lease", "membership", "news", "scheduler", "watch")

    def __init__(self) -> None:
        self.journal: Final = JournalSignals()
        self.scheduler: Final = SchedulerSignals()
        self.membership: Final = MembershipSignals()
        self.lease: Final = LeaseSignals()
        self.news: Final = NewsSignals()
        self.watch: Final = StoreWatchSignals()
