"""Outages of the store: how calls are repeated until it answers, and what the log says about it.

Several loops of a process call the store, and all of them notice an outage. The log has one line when the first of them
gets no answer, and one when the last of them that failed is answered again; `Outages` is what they share.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Final, Self, TypeVar

from durable_batches.clock import Clock
from durable_batches.errors import CommitUnknownError, StoreUnavailableError

__all__ = ["Backoff", "Outage", "Outages", "repeat_unknown", "ride_out"]

_log = logging.getLogger("durable_batches")

_UNKNOWN_ATTEMPTS: Final = 5
"""How often a write is made whose reply was lost."""

T = TypeVar("T")


class Backoff:
    """Pauses in seconds that grow from a first to a longest one."""

    __slots__ = ("_factor", "_first", "_longest", "_next")

    def __init__(self, first: float = 0.05, longest: float = 5.0, factor: float = 2.0) -> None:
        self._first = self._next = first
        self._longest = longest
        self._factor = factor

    def pause(self) -> float:
        """Return the pause that is due; the next one is longer."""
        pause = self._next
        self._next = min(pause * self._factor, self._longest)
        return pause

    def reset(self) -> None:
        """Begin with the first pause again."""
        self._next = self._first


class Outages:
    """The outages of one store as one worker sees them, in the log.

    Args:
        clock: Measures how long they take.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._cut_off: set[Outage] = set()
        self._began = 0.0
        self._logged = ""

    @property
    def began(self) -> float | None:
        """When the outage began that is not over, by the boot clock; None: there is none."""
        with self._lock:
            return self._began if self._cut_off else None

    def of(self, operation: str) -> Outage:
        """Return what one loop, or one call, tells about its outages; the name says in the log what waits."""
        return Outage(self, operation)

    def failed(self, outage: Outage, error: StoreUnavailableError) -> None:
        """Log the begin of an outage, or that its cause is another one now. See `Outage.failed`."""
        with self._lock:
            begins = not self._cut_off
            self._cut_off.add(outage)
            if begins:
                self._began = self._clock.boot()
            changed, self._logged = begins or error.code != self._logged, error.code
        _log.log(
            logging.WARNING if changed else logging.DEBUG,
            "%s: %s; waiting: %s",
            "store unavailable" if begins else "store still unavailable",
            error,
            outage.operation,
            extra={"operation": outage.operation, "error_code": error.code},
        )

    def joined(self, outage: Outage) -> bool:
        """Return whether there is an outage, whose end this one waits for, too. See `Outage.join`."""
        with self._lock:
            if self._cut_off:
                self._cut_off.add(outage)
            return outage in self._cut_off

    def answered(self, outage: Outage, *, restored: bool) -> None:
        """Log the end of an outage. See `Outage.answered`."""
        with self._lock:
            self._cut_off.discard(outage)
            if self._cut_off:
                return
            seconds = self._clock.boot() - self._began
        _log.warning(
            "store connection restored after %.1f s"
            if restored
            else "nothing waits for the store any more after %.1f s",
            seconds,
            extra={"operation": outage.operation, "outage_seconds": seconds},
        )


class Outage:
    """What one loop of a worker, or one call, knows about the store's outages; ends with its `with` block.

    It may belong to a thread of its own.
    """

    __slots__ = ("_outages", "away", "operation")

    def __init__(self, outages: Outages, operation: str) -> None:
        self._outages = outages
        self.operation: Final = operation
        self.away: bool = False
        """Whether its last call got no answer."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_up()

    def give_up(self) -> None:
        """Take note that the store is not waited for any more, whether or not it is back."""
        if self.away:
            self.away = False
            self._outages.answered(self, restored=False)

    def join(self) -> None:
        """Take part in the outage that others have noticed, if there is one: it does not end when they give up."""
        self.away = self._outages.joined(self)

    def failed(self, error: StoreUnavailableError) -> None:
        """Take note of a call that got no answer; it will be repeated."""
        self.away = True
        self._outages.failed(self, error)

    def answered(self) -> None:
        """Take note of a call that got an answer."""
        if self.away:
            self.away = False
            self._outages.answered(self, restored=True)


def is_transient(error: StoreUnavailableError) -> bool:
    """Return whether what is wrong with the store usually passes without anybody's help."""
    return error.transient


async def ride_out(
    call: Callable[[], Awaitable[T]],
    outages: Outages,
    operation: str,
    sleep: Callable[[float], Awaitable[object]],
    *,
    backoff: Callable[[], Backoff] = Backoff,
    passes: Callable[[StoreUnavailableError], bool] = is_transient,
) -> T:
    """Call the store until it answers, with pauses that grow.

    Args:
        call: The call to repeat.
        outages: Logs failures, and the answer after them.
        operation: The name of the call in the log.
        sleep: Waits for a number of seconds.
        backoff: Creates the pauses, when the first call has failed.
        passes: Returns whether a failure is ridden out; others are raised. By default transient failures are.
    """
    try:
        return await call()
    except StoreUnavailableError as error:
        if not passes(error):
            raise
        outage = outages.of(operation)
        outage.failed(error)
    pauses = backoff()
    with outage:
        while True:
            await sleep(pauses.pause())
            try:
                answer = await call()
            except StoreUnavailableError as error:
                if not passes(error):
                    raise
                outage.failed(error)
            else:
                outage.answered()
                return answer


async def repeat_unknown(write: Callable[[], Awaitable[T]], outages: Outages, operation: str, clock: Clock) -> T:
    """Write; again, a few times, where the reply was lost. The store answers then as it did the first time.

    Raises:
        CommitUnknownError: The reply was lost each time.
    """
    left = _UNKNOWN_ATTEMPTS

    def passes(error: StoreUnavailableError) -> bool:
        nonlocal left
        left -= 1
        return isinstance(error, CommitUnknownError) and left > 0

    backoff = partial(Backoff, longest=3.2, factor=4)
    return await ride_out(write, outages, operation, clock.sleep, backoff=backoff, passes=passes)
