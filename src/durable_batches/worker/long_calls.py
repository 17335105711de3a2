"""Calls of activities without a timeout that run for so long that they may never end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final, NamedTuple, TypeAlias

from durable_batches.clock import Clock
from durable_batches.errors import place_of
from durable_batches.lifecycle.records import ExecutionRecord
from durable_batches.lifecycle.states import BatchId
from durable_batches.runtime.call import RunningCall
from durable_batches.worker.runner import HeldExecution

__all__ = ["LongCall", "LongCalls"]

_log = logging.getLogger("durable_batches")

_LOOKS: Final = 60
"""In the time after which there is a warning."""

_Key: TypeAlias = tuple[BatchId, int, int, str]
"""A call: batch, position and attempt of the execution, and the checkpoint key."""


class LongCall(NamedTuple):
    """A call that has run for too long."""

    execution: ExecutionRecord
    call: RunningCall


class LongCalls:
    """Warns of the calls without a timeout that run for longer than a certain time, of each once.

    Args:
        clock: The worker's.
        after: The time of one attempt; None: there is no warning.
        running: Returns the executions whose calls these are.
    """

    def __init__(
        self, clock: Clock, *, after: timedelta | None, running: Callable[[], Sequence[HeldExecution]]
    ) -> None:
        self._clock = clock
        self._after = None if after is None else after.total_seconds()
        self._running = running
        self._next = clock.boot()
        self._warned: frozenset[_Key] = frozenset()
        self.found: Sequence[LongCall] = ()
        """Those of the last look that run for too long."""

    def look(self) -> None:
        """Look for such calls, unless the last look was a moment ago."""
        now = self._clock.boot()
        if self._after is None or now < self._next:
            return
        self._next = now + self._after / _LOOKS
        calls: dict[_Key, LongCall] = {}
        for held in self._running():
            execution = held.attempt.execution
            for call in held.attempt.calls:
                key = (execution.batch_id, execution.position, execution.attempt, call.key)
                calls[key] = LongCall(execution, call)
        long = {key: each for key, each in calls.items() if self._is_long(each.call, now)}
        for key in long.keys() - self._warned:
            _warn(long[key], now - long[key].call.started)
        # One whose next attempt has begun was warned of all the same.
        self._warned = frozenset(calls.keys() & (self._warned | long.keys()))
        self.found = list(long.values())

    def _is_long(self, call: RunningCall, now: float) -> bool:
        return self._after is not None and not call.is_bounded and now - call.started >= self._after


def _warn(long: LongCall, seconds: float) -> None:
    execution, call = long
    _log.warning(
        "activity %r in %s has no timeout, and its attempt %d has been running for %.0f s: if that is too long, give "
        "it one, such as @durable_activity(timeout=timedelta(minutes=5))",
        call.activity,
        place_of(execution.batch_id, execution.document_id),
        call.attempt,
        seconds,
        extra={
            "batch_id": execution.batch_id,
            "document_id": execution.document_id,
            "activity": call.activity,
            "attempt": call.attempt,
            "running_seconds": seconds,
        },
    )
