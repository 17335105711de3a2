"""The note writer: composes what a session says of itself in its worker's row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from durable_batches.clock import Clock
from durable_batches.lifecycle.notes import (
    BlockedAt,
    CircuitOf,
    LimitedCallsOf,
    LongCallsOf,
    RunningActivity,
    WorkerNote,
    encode_note,
)
from durable_batches.lifecycle.primitives import problem_with_name
from durable_batches.lifecycle.records import Micros
from durable_batches.lifecycle.states import BatchId
from durable_batches.runtime.limits import Limiter
from durable_batches.worker.gauges import circuits_of
from durable_batches.worker.long_calls import LongCalls
from durable_batches.worker.loop_watch import LoopWatch
from durable_batches.worker.runner import HeldExecution
from durable_batches.worker.selection import Selection

__all__ = ["NoteWriter", "Offer"]


class Offer(NamedTuple):
    """What the row of a session says that it would run."""

    workflows: frozenset[tuple[str, str]]
    """The (name, version) pairs."""
    batches: frozenset[BatchId] | None
    """The ids of the batches that it takes from, beside those with its labels, which do not change; None: all."""

    def says_all_of(self, other: Offer) -> bool:
        """Whether a row with this says all that one with the other says; batches that have ended do no harm."""
        if self.workflows != other.workflows:
            return False
        return self.batches is other.batches or (
            self.batches is not None and other.batches is not None and self.batches >= other.batches
        )


class NoteWriter:
    """Composes notes, on the thread of the lease renewer: also while the event loop does not turn.

    Args:
        clock: The worker's.
        running: Returns the executions that the session runs.
        watch: Of the event loop.
        long_calls: Those that have run for too long.
        workflows: The workflows that the session runs; more may be added.
        selection: The batches that it takes from.
        limiters: Returns the limiters that its calls have asked for permits.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        running: Callable[[], Sequence[HeldExecution]],
        watch: LoopWatch,
        long_calls: LongCalls,
        workflows: Collection[tuple[str, str]],
        selection: Selection,
        limiters: Callable[[], Sequence[Limiter]],
    ) -> None:
        self._clock = clock
        self._running = running
        self._watch = watch
        self._long_calls = long_calls
        self._workflows = workflows
        self._selection = selection
        self._limiters = limiters

    def offer(self) -> Offer:
        """Return what the session would run by now."""
        return Offer(frozenset(self._workflows), self._selection.batches)

    def note(self) -> str:
        """Compose the note of this moment."""
        now, boot = self._clock.now(), self._clock.boot()

        def moment(then: float) -> Micros:
            return now - round((boot - then) * 1_000_000)

        block = self._watch.block
        limited = self._limited(moment)
        return encode_note(
            WorkerNote(
                now,
                self._activities(moment),
                self._calls(moment),
                None
                if block is None
                else BlockedAt(block.place, moment(block.since), None if block.until is None else moment(block.until)),
                self._selection.taken,
                limited,
                self._circuits({each.limiter for each in limited}, now) if limited else (),
            )
        )

    def _activities(self, moment: Callable[[float], Micros]) -> Sequence[RunningActivity]:
        found: list[RunningActivity] = []
        for held in self._running():
            execution, calls = held.attempt.execution, held.attempt.calls
            if calls:
                first = min(calls, key=lambda call: call.started)
                found.append(
                    RunningActivity(
                        execution.batch_id,
                        execution.position,
                        execution.attempt,
                        first.activity,
                        moment(first.started),
                    )
                )
        return sorted(found, key=lambda each: each.since)

    def _limited(self, moment: Callable[[float], Micros]) -> Sequence[LimitedCallsOf]:
        starts: dict[tuple[BatchId, str], list[float]] = {}
        for held in self._running():
            for call in held.attempt.calls:
                if call.limiter is not None and problem_with_name(call.limiter) is None:
                    starts.setdefault((held.attempt.execution.batch_id, call.limiter), []).append(call.started)
        return [
            LimitedCallsOf(batch_id, limiter, len(started), moment(min(started)))
            for (batch_id, limiter), started in starts.items()
        ]

    def _circuits(self, names: Collection[str], now: Micros) -> Sequence[CircuitOf]:
        return [
            CircuitOf(
                name, circuit.state, None if circuit.seconds is None else now + round(circuit.seconds * 1_000_000)
            )
            for name, circuit in circuits_of(self._limiters()).items()
            if name in names
        ]

    def _calls(self, moment: Callable[[float], Micros]) -> Sequence[LongCallsOf]:
        starts: dict[tuple[BatchId, str], list[float]] = {}
        for execution, call in self._long_calls.found:
            starts.setdefault((execution.batch_id, call.activity), []).append(call.started)
        return [
            LongCallsOf(batch_id, activity, len(started), moment(min(started)))
            for (batch_id, activity), started in starts.items()
        ]
