"""Permits: who waits for one, who holds one, and what became of the calls; on one event loop at a time."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Final

from durable_batches.clock import Clock, SystemClock, Timer
from durable_batches.errors import CircuitOpenError, ConfigurationError, RateLimitedError
from durable_batches.flow.admission import Admission, Ticket
from durable_batches.flow.breaker import BreakerState
from durable_batches.flow.budget import SLICE_SECONDS
from durable_batches.flow.feedback import Answered, Feedback, feedback_of
from durable_batches.flow.refill import Refill
from durable_batches.options import check_duration, check_integer
from durable_batches.runtime.context import current_classifier, current_clock
from durable_batches.runtime.limits import Permit
from durable_batches.tasks import NotBegun, running_loop, tell_loop

__all__ = ["PermitContext", "Permits"]

_log = logging.getLogger("durable_batches")

_SOON: Final = 1.0
"""Seconds after which to ask again where only the end of another call makes room, and nobody knows when that is."""
_WHEN_GRANTED: Final = SLICE_SECONDS / 2
"""Seconds after which to ask again where limits are shared: what is granted meanwhile may be used for a slice."""


class Permits:
    """The permits of a limiter.

    Args:
        name: The limiter's name.
        admission: Who may begin.
        counts: Says which errors are the provider's failures; None: the default.
        shared: The name of the budget that a fleet shares; None: the limits are its own.
    """

    def __init__(
        self,
        name: str,
        admission: Admission,
        counts: Callable[[BaseException], bool] | None,
        shared: str | None = None,
    ) -> None:
        self._name = name
        self._admission = admission
        self._counts = counts
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clock: Clock | None = None
        self._waiters: dict[Ticket, asyncio.Future[None]] = {}
        self._timer: Timer | None = None
        self._timer_due = math.inf
        self.lock: Final = threading.Lock()
        """Held while the admission is used, by whatever thread."""
        self.refill: Final = None if shared is None else Refill(name, shared, admission, self.lock, self.serve)
        """Where the limits are shared."""

    @property
    def clock(self) -> Clock:
        """The clock of the call that asked last."""
        return self._clock or current_clock()

    async def acquire(self, tokens: int, longest: float) -> Ticket:
        """Wait for a permit, at most `longest` seconds; see `CentralRateLimiter.permit`."""
        loop, clock = asyncio.get_running_loop(), current_clock()
        admission = self._admission
        if self.refill is not None and not self.refill.is_supplied:
            raise ConfigurationError(
                f"the limiter {self._name!r} shares its limits by a worker's store (shared={self.refill.shared!r}), "
                "and no worker that runs here has an activity that has used it: give it to one (limiter=...)"
            )
        with self.lock:
            clock = self._adopt(loop, clock)
            now = clock.boot()
            ticket = admission.ask(tokens, now)
            self._grant(now)
            if ticket.granted is not None:
                return ticket
            # To estimate takes a look at all that wait before it.
            if longest <= 0 or (longest < math.inf and admission.estimate(now, ticket) > longest):
                error = self._refusal(now, ticket, longest)
                admission.withdraw(now, ticket)
                if self.refill is not None:
                    admission.was_short()
                    self.refill.look(now)
                raise error
            waiter = self._waiters[ticket] = loop.create_future()
            self._arm(now)
        timer = None if longest == math.inf else clock.call_later(longest, partial(self._give_up, ticket, longest))
        try:
            await waiter
        except BaseException:
            # It was cancelled, or has waited for as long as it may; it may have been admitted at the same moment.
            with self.lock:
                admission.withdraw(clock.boot(), ticket)
            self.serve()
            raise
        finally:
            self._waiters.pop(ticket, None)
            if timer is not None:
                timer.cancel()
        return ticket

    def release(self, ticket: Ticket, error: BaseException | None, *, is_known: bool) -> None:
        """End a call.

        Args:
            ticket: The call's.
            error: What it raised.
            is_known: Whether its refusal was reported already.
        """
        healthy: bool | None = True
        if error is not None:
            feedback = self._feedback(error)
            healthy = feedback.healthy
            self._take(ticket, feedback, is_known=is_known)
        with self.lock:
            now = self._now()
            before = self._admission.breaker_state(now)
            self._admission.end(now, ticket, healthy=healthy)
            after = self._admission.breaker_state(now)
        self._log_breaker(before, after, error)
        self.serve()

    def withdraw(self, ticket: Ticket) -> None:
        """Drop a call that was admitted and has not begun."""
        with self.lock:
            self._admission.withdraw(self._now(), ticket)
        self.serve()

    def settle(self, ticket: Ticket, tokens: int) -> None:
        """Correct what a call takes."""
        with self.lock:
            self._admission.settle(self._now(), ticket, tokens)
        self.serve()

    def refuse(self, ticket: Ticket, seconds: float | None) -> None:
        """Have all calls wait."""
        admission, now = self._admission, self._now()
        with self.lock:
            is_lowered = admission.refuse(now, ticket, seconds)
            waits = admission.blocked_in(now)
        if is_lowered:
            _log.info(
                "limiter %r: the provider has no room now; all calls wait for %.3g s, and go on at %d %% of the rate",
                self._name,
                waits,
                round(admission.factor * 100),
                extra={"limiter": self._name, "wait_seconds": waits, "rate": admission.factor},
            )

    def observe(self, ticket: Ticket, answer: object, *, is_known: bool) -> bool:
        """Read an answer or an error; return whether it is a refusal."""
        feedback = self._feedback(answer if isinstance(answer, BaseException) else Answered(answer))
        self._take(ticket, feedback, is_known=is_known)
        self.serve()
        return feedback.refused

    def _feedback(self, error: BaseException) -> Feedback:
        now = current_clock().now() / 1_000_000
        return feedback_of(error, classifier=current_classifier(), counts=self._counts, now=now)

    def _take(self, ticket: Ticket, feedback: Feedback, *, is_known: bool) -> None:
        if feedback.refused and not is_known:
            self.refuse(ticket, feedback.retry_after)
        with self.lock:
            self._admission.told(requests=feedback.requests, tokens=feedback.tokens)
            if feedback.empty_for > 0:
                self._admission.cool_down(self._now(), feedback.empty_for)

    def _now(self) -> float:
        clock = self._clock
        assert clock is not None
        return clock.boot()

    def _adopt(self, loop: asyncio.AbstractEventLoop, clock: Clock) -> Clock:
        """Serve this event loop by this clock from here on; return the clock, which may be another of the same time."""
        if self._loop is loop and self._clock is not None:
            if self._clock is clock or (type(self._clock) is SystemClock and type(clock) is SystemClock):
                return self._clock
            if self._admission.is_busy:
                # Moments of two clocks cannot be compared: what one has waited for, the other may have passed long ago.
                raise ConfigurationError(
                    f"the limiter {self._name!r} is in use by a worker with another clock; make one for each clock"
                )
        elif self._loop is not None and self._admission.is_busy:
            if not self._loop.is_closed():
                raise ConfigurationError(
                    f"the limiter {self._name!r} is in use in another event loop; make one for each, which share the "
                    "limit between them"
                )
            # What waited there, or held a permit, was left behind when it was closed.
            self._admission.abandon()
        if self._timer is not None and self._loop is loop:
            self._timer.cancel()
        self._loop, self._clock = loop, clock
        self._waiters.clear()
        self._timer, self._timer_due = None, math.inf
        return clock

    def serve(self) -> None:
        """Let those begin that may, and look again when the next one may."""
        loop = self._loop
        if self._clock is None or loop is None:
            return
        if running_loop() is not loop:
            # It was told on another thread, or by what a closed loop has left behind.
            tell_loop(loop, self.serve)
            return
        now = self._clock.boot()
        with self.lock:
            self._grant(now)
            self._arm(now)

    def _grant(self, now: float) -> None:
        for ticket in self._admission.grant(now):
            waiter = self._waiters.get(ticket)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def _arm(self, now: float) -> None:
        if self.refill is not None:
            self.refill.look(now)
        seconds = self._admission.next_in(now)
        due = now + seconds
        if self._timer is not None and self._timer_due <= due and self._timer_due > now:
            # It looks then, and is set again.
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_due = due
        if seconds < math.inf and self._clock is not None:
            self._timer = self._clock.call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer, self._timer_due = None, math.inf
        self.serve()

    def _give_up(self, ticket: Ticket, longest: float) -> None:
        waiter = self._waiters.get(ticket)
        if waiter is not None and not waiter.done():
            with self.lock:
                error = self._refusal(self._now(), ticket, longest)
            waiter.set_exception(error)

    def _refusal(self, now: float, ticket: Ticket, longest: float) -> RateLimitedError:
        seconds = self._admission.estimate(now, ticket)
        unknown = _SOON if self.refill is None else _WHEN_GRANTED
        retry_after = timedelta(seconds=seconds if 0 < seconds < math.inf else unknown)
        longest_wait = timedelta(seconds=longest)
        is_open = self._admission.breaker_state(now) != "closed"
        kind = CircuitOpenError if is_open else RateLimitedError
        return kind(self._name, retry_after, max_wait=longest_wait)

    def _log_breaker(self, before: BreakerState, after: BreakerState, error: BaseException | None) -> None:
        if before == after:
            return
        extra = {"limiter": self._name, "breaker": after}
        if after == "open":
            _log.warning(
                "limiter %r: the circuit is open after %d failures in a row, the last of them %s; the next calls are "
                "made in %.3g s",
                self._name,
                max(self._admission.failures, 1),
                type(error).__name__,
                self._admission.blocked_in(self._now()),
                extra={**extra, "error_type": type(error).__name__},
            )
        elif after == "closed":
            _log.info("limiter %r: the circuit is closed, the provider answers again", self._name, extra=extra)


class _HeldPermit:
    """A permit that is held, or was."""

    __slots__ = ("_permits", "_ticket", "is_refused")

    def __init__(self, permits: Permits, ticket: Ticket) -> None:
        self._permits = permits
        self._ticket = ticket
        self.is_refused = False

    def settle(self, *, tokens: int) -> None:
        """See `Permit`."""
        check_integer("tokens", tokens)
        if tokens < 0:
            raise ConfigurationError("tokens must be 0 or more")
        self._permits.settle(self._ticket, tokens)

    def refused(self, retry_after: timedelta | None = None) -> None:
        """See `Permit`."""
        check_duration("retry_after", retry_after, optional=True)
        self.is_refused = True
        seconds = None if retry_after is None else max(retry_after.total_seconds(), 0.0)
        self._permits.refuse(self._ticket, seconds)

    def observe(self, answer: object) -> None:
        """See `Permit`."""
        self.is_refused |= self._permits.observe(self._ticket, answer, is_known=self.is_refused)

    def withdraw(self) -> None:
        """Give it back, as if it had never been asked for."""
        self._permits.withdraw(self._ticket)

    def end(self, error: BaseException | None) -> None:
        """Give it back."""
        self._permits.release(self._ticket, error, is_known=self.is_refused)


class PermitContext:
    """Waits for a permit, and gives it back."""

    __slots__ = ("_longest", "_permit", "_permits", "_tokens")

    def __init__(self, permits: Permits, tokens: int, longest: float) -> None:
        self._permits = permits
        self._tokens = tokens
        self._longest = longest
        self._permit: _HeldPermit | None = None

    async def __aenter__(self) -> Permit:
        if self._permit is not None:
            raise ConfigurationError("a permit is for one call: ask for another with permit()")
        permit = self._permit = _HeldPermit(self._permits, await self._permits.acquire(self._tokens, self._longest))
        return permit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        permit = self._permit
        assert permit is not None
        if isinstance(error, NotBegun):
            permit.withdraw()
        else:
            permit.end(error)
