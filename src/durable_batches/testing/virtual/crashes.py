"""`survives_crashes(workflow, documents)`: the crash matrix, in one line of a user's test."""

from __future__ import annotations

import asyncio
import logging
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from itertools import count, islice
from typing import Any, Final, Generic, Literal, NamedTuple

from typing_extensions import TypeVar

from durable_batches.errors import ConfigurationError, StoreUnavailableError
from durable_batches.lifecycle.batch_core import definition_of
from durable_batches.lifecycle.config import BatchConfig
from durable_batches.lifecycle.events import DocumentCompleted, decode_event
from durable_batches.lifecycle.facts import ActivityCompleted, Fact
from durable_batches.lifecycle.failures import DocumentFailureRecord
from durable_batches.lifecycle.progress import state_of
from durable_batches.lifecycle.records import Committed, WorkerId
from durable_batches.lifecycle.states import BatchId, Completed, Stage
from durable_batches.options import check_callable, check_duration, check_integer, check_iterable
from durable_batches.orchestrator.orchestrator import BatchOrchestrator
from durable_batches.runtime.dependencies import Provider
from durable_batches.runtime.workflow import Workflow
from durable_batches.stores.memory import MemoryStore
from durable_batches.stores.protocol import Store
from durable_batches.testing.history.checker import HistoryChecker
from durable_batches.testing.history.store_snapshot import StoreSnapshot, effective_status, take_snapshot
from durable_batches.testing.virtual.clock import ManualClock
from durable_batches.testing.virtual.crashable_store import CrashableStore
from durable_batches.testing.virtual.driver import PATIENCE, Driver, Stuck, virtual_worker
from durable_batches.testing.virtual.environment import StoreMaker
from durable_batches.testing.virtual.inside import kill
from durable_batches.worker.worker import Worker

__all__ = ["CrashReport", "survives_crashes"]

D = TypeVar("D")
R = TypeVar("R")
S = TypeVar("S", bound=Stage, default=Stage)
V = TypeVar("V", default=None)

_BATCH: Final = BatchId("crashes")
_SHOWN: Final = 10
"""Maximum number of differences in a message."""
_MISSES: Final = 4
"""The number of runs in a row that finished before they reached their point, after which there are no more points. One
is not enough: threads end at any time, so some runs take fewer writes than others, and no last point may be missed."""


@dataclass(frozen=True, kw_only=True)
class CrashReport:
    """The result of `survives_crashes`."""

    points: int
    """The number of crashes, each at another point."""
    writes: int
    """The number of writes to the store without a crash; each has a point before it and one after it."""


async def survives_crashes(
    workflow: Workflow[D, R, S, V],
    documents: Iterable[D],
    *,
    store: StoreMaker | None = None,
    config: BatchConfig | None = None,
    document_id: Callable[[D], str] | None = None,
    max_in_flight: int = 100,
    dependencies: Mapping[Provider, object] | None = None,
    prepare: Callable[[], object] | None = None,
    comparing: Callable[[R], object] | None = None,
    comparing_resolution: Callable[[V], object] | None = None,
    limit: int = 200,
    patience: timedelta = PATIENCE,
) -> CrashReport:
    """Crash the process at every write of a batch, and verify that the result is the same each time. For tests.

    First the batch runs without a crash. Then it runs once for every point, each time on a new store: the process is
    killed just before a write to the store is applied, or just after it and before the reply. It is restarted, and
    submits the batch again under its id. State, counts, each document's outcome and the resolution must be the same as
    without the crash; no recorded activity may run again; and the history in the store must keep the library's
    guarantees (`HistoryChecker`). Time is virtual, so retries, timeouts and sleeps take no time.

    The workflow's result must depend only on the documents. If fakes of activities count their calls, reset them with
    `prepare`; exclude random parts of a result with `comparing`. Under a policy that cancels documents (`AbortAll`),
    the outcome depends on timing and cannot be tested this way.

    Args:
        workflow: The workflow to run.
        documents: The documents to submit; a few that take different paths through the workflow are enough.
        store: Creates a new, empty store each time, on the given clock. By default a store in memory.
        config: The configuration of the batch.
        document_id: See `BatchOrchestrator.submit`.
        max_in_flight: Documents in flight.
        dependencies: Replacements by provider; see `Worker`.
        prepare: Called before each run of the batch, but not at the restart after a crash.
        comparing: Returns the part of a result that must be the same; by default all of it.
        comparing_resolution: Returns the part of the resolution that must be the same; by default all of it.
        limit: The maximum number of points; if there are more, this many are spread evenly over them.
        patience: The real time without any event after which an activity is considered hanging.

    Raises:
        AssertionError: The result differs; the message names the point and the difference.
        ConfigurationError: `store` makes a store that is not empty, or another option cannot work.

    Example::

        async def test_a_crash_changes_nothing() -> None:
            with summarise.override(fake):
                await survives_crashes(headline, ["rain", "sun"])
    """
    check_iterable("documents", documents)
    for name, function in (
        ("store", store),
        ("document_id", document_id),
        ("prepare", prepare),
        ("comparing", comparing),
        ("comparing_resolution", comparing_resolution),
    ):
        check_callable(name, function, optional=True)
    check_integer("limit", limit)
    check_duration("patience", patience)
    if limit < 1 or patience <= timedelta(0):
        raise ConfigurationError("limit must be 1 or more, and patience positive")
    trial = _Trial(
        workflow=workflow,
        documents=list(documents),
        store=store or _in_memory,
        config=config,
        document_id=document_id,
        max_in_flight=max_in_flight,
        dependencies=dependencies,
        prepare=prepare,
        comparing=comparing,
        comparing_resolution=comparing_resolution,
        patience=patience,
    )
    logger = logging.getLogger("durable_batches")
    logger.addFilter(_said_once)
    try:
        return await trial.run(limit)
    finally:
        logger.removeFilter(_said_once)


class _Point(NamedTuple):
    """When the process is killed."""

    number: int
    """Of the write, from 1."""
    moment: Literal["before", "after"]


class _Life(CrashableStore):
    """A store as a process sees it that is killed at a point."""

    def __init__(self, store: Store, point: _Point | None, *, first: bool) -> None:
        super().__init__(store)
        self._point = point
        self.first: Final = first
        self.killed: str | None = None
        """At which method."""
        self.acknowledged = False
        """Whether it heard that its batch is submitted."""
        self.recorded: set[tuple[int, str]] = set()
        """The activity results that it had committed, by position and key."""
        self.at_death: Callable[[], object] = lambda: None

    def check(self, by: WorkerId | None) -> None:
        if self.killed is not None:
            raise StoreUnavailableError("this process was killed by the crash test")

    def before_write(self, number: int, method: str) -> None:
        if self._point == (number, "before"):
            self._die(method)

    def after_write(self, number: int, method: str) -> None:
        if self._point == (number, "after"):
            self._die(method)

    def committed(self, facts: Sequence[Fact], committed: Committed) -> None:
        self.recorded.update(
            (fact.position, fact.key)
            for index, fact in enumerate(facts)
            if isinstance(fact, ActivityCompleted) and index not in committed.refused
        )

    def _die(self, method: str) -> None:
        if self.killed is None:
            self.killed = method
            self.at_death()
        self.check(None)


_life: Final[ContextVar[_Life | None]] = ContextVar("durable_batches_life", default=None)


def _said_once(_: logging.LogRecord) -> bool:
    """Filter log records: only the run without a crash logs; the others would repeat it."""
    life = _life.get()
    return life is None or life.first


@dataclass(kw_only=True)
class _Trial(Generic[D, R, S, V]):
    """One call of `survives_crashes`, with its arguments."""

    workflow: Workflow[D, R, S, V]
    documents: list[D]
    store: StoreMaker
    config: BatchConfig | None
    document_id: Callable[[D], str] | None
    max_in_flight: int
    dependencies: Mapping[Provider, object] | None
    prepare: Callable[[], object] | None
    comparing: Callable[[R], object] | None
    comparing_resolution: Callable[[V], object] | None
    patience: timedelta
    made: int = 0
    """Stores."""

    async def run(self, limit: int) -> CrashReport:
        """Run the batch without a crash, and then once for each point."""
        clock, store = await self._fresh()
        life = await self._live(store, clock, None, first=True)
        snapshot = await self._snapshot(store, HistoryChecker())
        tried = missed = 0
        for point in _points(life.writes, limit):
            if await self._survives(point, snapshot):
                tried, missed = tried + 1, 0
            elif point.number > life.writes:
                missed += 1
                if missed == _MISSES:
                    # Enough runs finished before they reached this point; no other will reach a later one.
                    break
        return CrashReport(points=tried, writes=life.writes)

    async def _survives(self, point: _Point, undisturbed: StoreSnapshot) -> bool:
        """Kill a process at this point, and start it again; False: it did not come to the point.

        Raises:
            AssertionError: Something was different.
        """
        clock, store = await self._fresh()
        before = await self._live(store, clock, point)
        if before.killed is None:
            return False
        checker = HistoryChecker()
        if before.acknowledged:
            checker.acknowledged(_BATCH, undisturbed.documents)
        try:
            await self._expire_dead(store, checker)
            after = await self._live(store, clock)
            snapshot = await self._snapshot(store, checker)
            problems = [*self._differences(snapshot, undisturbed), *_repetitions(before, after, snapshot, undisturbed)]
        except Exception as error:
            raise AssertionError(f"{_told(point, before.killed)}: {error}") from error
        if problems:
            more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            listed = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
            raise AssertionError(f"{_told(point, before.killed)}:{listed}{more}")
        return True

    # ---- one life after the other ----------------------------------------------------------------------------

    async def _fresh(self) -> tuple[ManualClock, Store]:
        if self.prepare is not None:
            self.prepare()
        clock = ManualClock()
        store = self.store(clock)
        self.made += 1
        # The first may be full of something else, and the second the first once more; then it is not looked any more.
        if self.made <= 2 and not await _is_empty(store):
            raise ConfigurationError("store= must make a new, empty store each time that it is called")
        return clock, store

    async def _live(
        self, store: Store, clock: ManualClock, point: _Point | None = None, *, first: bool = False
    ) -> _Life:
        """Run one process from its start to its end, or until it is killed."""
        life = _Life(store, point, first=first)
        worker = virtual_worker(life, clock, max_in_flight=self.max_in_flight, dependencies=self.dependencies)
        process = asyncio.create_task(self._process(worker, life))

        def die() -> None:
            kill(worker)
            process.cancel()

        life.at_death = die
        try:
            await Driver(worker, life, clock, self.patience).through(process)
        except Stuck:
            raise AssertionError("the batch does not end, however much time passes") from None
        finally:
            process.cancel()
            await asyncio.wait([process])
        error = None if process.cancelled() else process.exception()
        if error is not None and life.killed is None:
            raise error
        return life

    async def _process(self, worker: Worker, life: _Life) -> None:
        """Do what the user's program does each time that it is started."""
        _life.set(life)
        async with BatchOrchestrator(self.workflow, worker=worker, config=self.config) as batches:
            await batches.submit(self.documents, batch_id=_BATCH, document_id=self.document_id)
            life.acknowledged = life.killed is None
            await batches.result(_BATCH)

    async def _expire_dead(self, store: Store, checker: HistoryChecker) -> None:
        """Expire the killed worker, as the next process does."""
        await store.open()
        try:
            await store.expire(dead=[worker.worker_id for worker in await store.workers()])
            await checker.verify(store)
        finally:
            await store.close()

    async def _snapshot(self, store: Store, checker: HistoryChecker) -> StoreSnapshot:
        await store.open()
        try:
            await checker.verify(store, finished=True, everyone_left=True)
            snapshot = await take_snapshot(store, _BATCH)
        finally:
            await store.close()
        assert snapshot is not None
        return snapshot

    # ---- what became of it -------------------------------------------------------------------------------------

    def _differences(self, snapshot: StoreSnapshot, undisturbed: StoreSnapshot) -> Iterator[str]:
        found, expected = self._outline(snapshot), self._outline(undisturbed)
        for what in dict.fromkeys([*expected, *found]):
            if found.get(what) != expected.get(what):
                yield (
                    f"{what}: {reprlib.repr(found.get(what))}; without the crash: {reprlib.repr(expected.get(what))}"
                )

    def _outline(self, snapshot: StoreSnapshot) -> dict[str, object]:
        """Return all that must be the same, by its name."""
        state: Any = state_of(snapshot.record, self.workflow.machine)
        outline: dict[str, object] = {"the batch": state}
        for document_id, document in snapshot.documents.items():
            status = effective_status(snapshot.record, document.execution)
            detail: object = None
            if status == "succeeded":
                assert document.outcome is not None
                value = self.workflow.result_codec.decode(document.outcome)
                detail = value if self.comparing is None else self.comparing(value)
            elif status == "failed":
                assert document.outcome is not None
                # A crash is an attempt, too; everything else is as it was.
                detail = DocumentFailureRecord.decode(document.outcome)._replace(attempts=0)
            outline[f"document {document_id!r}"] = (status, detail)
        if isinstance(state, Completed) and definition_of(snapshot.record).resolver:
            assert snapshot.resolver is not None
            assert snapshot.resolver.outcome is not None
            resolution: Any = self.workflow.resolution_codec.decode(snapshot.resolver.outcome)
            compared = self.comparing_resolution
            outline["the resolution"] = resolution if compared is None else compared(resolution)
        return outline


async def _is_empty(store: Store) -> bool:
    await store.open()
    try:
        return await store.batch(_BATCH) is None and not await store.workers()
    finally:
        await store.close()


def _in_memory(clock: ManualClock) -> Store:
    return MemoryStore(clock=clock)


def _points(writes: int, limit: int) -> Iterator[_Point]:
    """Choose the points: all of them, or if those are too many, evenly over a run with this number of writes."""
    if writes * len(_MOMENTS) <= limit:
        everywhere = (_Point(number, moment) for number in count(1) for moment in _MOMENTS)
        # A run may take a few more writes than another: it ends when some were over before they were killed.
        yield from islice(everywhere, limit)
        return
    for index in range(limit):
        # Alternately before and after, since an even stride alone would come upon one of them only.
        yield _Point(int((index + 0.5) * writes / limit) + 1, _MOMENTS[index % 2])


_MOMENTS: Final[tuple[Literal["before", "after"], ...]] = ("before", "after")


def _repetitions(before: _Life, after: _Life, snapshot: StoreSnapshot, undisturbed: StoreSnapshot) -> Iterator[str]:
    """List the activities that ran twice."""
    ids = {document.execution.position: name for name, document in snapshot.documents.items()}
    for position, key in sorted(before.recorded & after.recorded):
        where = f"document {ids[position]!r}" if position in ids else "the resolver"
        yield f"activity {key.partition(':')[0]!r} of {where} was recorded before the crash, and ran again after it"
    unused, unused_before = _unused(snapshot), _unused(undisturbed)
    counted, expected = _results(snapshot), _results(undisturbed)
    for name in counted:
        if counted[name] > expected[name] and (not name or unused[name] > unused_before[name]):
            where = f"document {name!r}" if name else "the resolver"
            yield (
                f"{where} recorded {counted[name]} activities, and {expected[name]} without the crash: its workflow "
                "did not make the same calls again; is an input not the same on every attempt?"
            )


def _unused(snapshot: StoreSnapshot) -> Counter[str]:
    """Count the recorded activities that each document did not use in the end."""
    events = map(decode_event, snapshot.log)
    return Counter(
        {event.document_id: event.unused_checkpoints for event in events if isinstance(event, DocumentCompleted)}
    )


def _results(snapshot: StoreSnapshot) -> Counter[str]:
    """Count the recorded activity results of each document (empty: of the resolver)."""
    return Counter(name for (name, _), checkpoint in snapshot.checkpoints.items() if checkpoint.kind == "succeeded")


def _told(point: _Point, method: str) -> str:
    applied = "before it was applied" if point.moment == "before" else "after it was applied, before its reply"
    return f"killed at write {point.number} ({method}), {applied}, and started again, the batch came to something else"
