"""Who may begin now, and when the next one may: the order of arrival, limits, breaker and feedback in one. Pure.

1. In order of arrival: a large request among small ones waits for its turn, and the small ones behind it wait with it.
2. One that gives up, or that was admitted and did not begin, leaves everything as if it had never asked.
3. A provider that refuses (429) makes all wait, once for all the calls that had begun before. By how much that lowers
   the rate, the share of refusals decides (`refusals`). The rate recovers in five minutes, the more slowly the nearer
   it is to where it was refused.
4. Time that goes back stands still instead: `now` may be read from any clock.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final

from durable_batches.flow.breaker import Breaker, BreakerState, CircuitBreaker, ForcedBreaker, Passage
from durable_batches.flow.bucket import Taken, WindowedBucket
from durable_batches.flow.budget import Ask, Grant, Limits
from durable_batches.flow.credit import Credit, Slice
from durable_batches.flow.refusals import Refusals

__all__ = ["Admission", "Ticket"]

_RECOVERY_SECONDS: Final = 300.0
"""In which the rate recovers from nothing to the whole limit."""
_NEAR: Final = 0.97
"""From this share of the rate that was refused on it recovers ten times more slowly."""
_EARLY_SECONDS: Final = 1e-6
"""By which a timer may fire early: what a moment in floating point and a clock of microseconds differ by."""
_LONGEST_COOL_DOWN: Final = 60.0
"""Seconds; where the provider does not say how long to wait."""


class Ticket:
    """A request to begin.

    Attributes:
        tokens: What it will take.
        granted: When it was admitted; None: it waits, or has given up.
    """

    __slots__ = (
        "ended",
        "generation",
        "granted",
        "is_refused",
        "parts",
        "passage",
        "request",
        "settled",
        "slices",
        "tokens",
    )

    def __init__(self, tokens: float, generation: int) -> None:
        self.tokens: Final = tokens
        self.granted: float | None = None
        self.settled: float = tokens
        self.ended: bool = False
        self.is_refused: bool = False
        self.generation: Final = generation
        self.request: Taken | None = None
        self.parts: Final[list[tuple[Taken, float]]] = []
        self.passage: Passage = Passage(-1, -1)
        self.slices: list[tuple[Slice, float, float]] = []


class Admission:
    """Admits requests, each `now` in seconds of one clock.

    Args:
        requests: Requests a minute; None: any number.
        tokens: Tokens a minute; None: any number.
        max_concurrent: Calls at once; None: any number.
        breaker: When it opens; None: only by `force`.
        returns_unused: Whether tokens that were reserved and not used may be used by others.
        shared: Whether the limits are those of a fleet: then only what was granted of them is begun, too.

    Attributes:
        credit: What was granted; None: the limits are not shared.
    """

    def __init__(
        self,
        *,
        requests: float | None = None,
        tokens: float | None = None,
        max_concurrent: int | None = None,
        breaker: CircuitBreaker | None = None,
        returns_unused: bool = True,
        shared: bool = False,
    ) -> None:
        self.credit: Final = Credit(Limits(requests, tokens, max_concurrent)) if shared else None
        self._requests = None if requests is None else WindowedBucket(requests)
        self._tokens = None if tokens is None else WindowedBucket(tokens)
        self._max_concurrent = max_concurrent
        self._breaker = Breaker(breaker)
        self._returns_unused = returns_unused
        self._waiting: OrderedDict[Ticket, None] = OrderedDict()
        self._generation = 0
        self._latest = -math.inf
        self._offset = 0.0
        self._recovered_at = -math.inf
        self._cool_until = -math.inf
        self._refusals = Refusals()
        self._lowered_at = -math.inf
        self._refused_at = -math.inf
        self._refused_at_factor = 1.0
        self._rounds = 0
        self.in_flight: int = 0
        self.refused: int = 0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def is_busy(self) -> bool:
        """Whether somebody waits or runs."""
        return bool(self._waiting) or self.in_flight > 0

    @property
    def factor(self) -> float:
        """The share of the limits that is used at present."""
        bucket = self._tokens or self._requests
        return 1.0 if bucket is None else bucket.factor

    def breaker_state(self, now: float) -> BreakerState:
        """Return the breaker's state."""
        return self._breaker.state(self._moment(now))

    @property
    def failures(self) -> int:
        """How many failures in a row the breaker has counted."""
        return self._breaker.failures

    def requests_available(self, now: float) -> float | None:
        """Return how many requests the last minute has left; None: they are not limited."""
        return self._available(now, self._requests)

    def tokens_available(self, now: float) -> float | None:
        """Return how many tokens the last minute has left; None: they are not limited."""
        return self._available(now, self._tokens)

    # ---- asking ------------------------------------------------------------------------------------------------

    def ask(self, tokens: float, now: float = 0.0) -> Ticket:
        """Wait as the last in the order; tokens must not exceed the limit. `now` counts where limits are shared."""
        if self.credit is not None:
            self.credit.asked(self._moment(now), tokens)
        ticket = Ticket(tokens, self._generation)
        self._waiting[ticket] = None
        return ticket

    def grant(self, now: float) -> list[Ticket]:
        """Admit those that may begin now, in their order."""
        begun: list[Ticket] = []
        while self._waiting and self.next_in(now) <= _EARLY_SECONDS:
            moment = self._moment(now)
            ticket, _ = self._waiting.popitem(last=False)
            ticket.granted = moment
            if self._requests is not None:
                ticket.request = self._requests.take(moment, 1.0)
            if self._tokens is not None and ticket.tokens:
                ticket.parts.append((self._tokens.take(moment, ticket.tokens), ticket.tokens))
            ticket.passage = self._breaker.begin(moment)
            self.in_flight += 1
            if self.credit is not None:
                ticket.slices = self.credit.take(moment, ticket.tokens, self.in_flight)
            begun.append(ticket)
        return begun

    def next_in(self, now: float) -> float:
        """Return in how many seconds the first that waits may begin; infinity: when a call has ended, or none waits."""
        if not self._waiting or (self._max_concurrent is not None and self.in_flight >= self._max_concurrent):
            return math.inf
        tokens, credit = next(iter(self._waiting)).tokens, self.credit
        seconds = self._ready_in(now, tokens, 0, 0.0)
        if credit is None:
            return seconds
        if self.in_flight >= credit.at_once:
            return math.inf
        moment = self._moment(now)
        return max(seconds, credit.ready_at(moment, tokens) - moment)

    def blocked_in(self, now: float) -> float:
        """Return in how many seconds the breaker and the provider allow calls at all."""
        moment = self._moment(now)
        return max(self._breaker.ready_at(moment), self._cool_until, moment) - moment

    def estimate(self, now: float, ticket: Ticket) -> float:
        """Return in how many seconds a waiting ticket may begin, if those before it do, and calls end soon enough."""
        count, ahead = 0, 0.0
        for other in self._waiting:
            if other is ticket:
                break
            count += 1
            ahead += other.tokens
        return self._ready_in(now, ticket.tokens, count, ahead)

    def withdraw(self, now: float, ticket: Ticket) -> None:
        """Give up: while it waits, or when it was admitted in the same moment and has not begun."""
        if ticket.granted is None:
            self._waiting.pop(ticket, None)
        elif not self._is_over(ticket):
            moment = self._moment(now)
            if self._requests is not None and ticket.request is not None:
                self._requests.give_back(moment, ticket.request, 1.0)
            self._give_back(moment, ticket, math.inf)
            if self.credit is not None:
                self.credit.give_back(moment, ticket.slices)
                ticket.slices = []
            self.end(now, ticket, healthy=None)

    def abandon(self) -> None:
        """Drop all that wait or run: their event loop is gone. What was taken stays taken."""
        self._generation += 1
        self._waiting.clear()
        self.in_flight = 0

    # ---- what became of it -------------------------------------------------------------------------------------

    def settle(self, now: float, ticket: Ticket, tokens: float) -> None:
        """Correct what a call takes: less comes back, more is a debt. The last word stands."""
        difference = tokens - ticket.settled
        ticket.settled = tokens
        if not difference:
            return
        moment = self._moment(now)
        if not self._returns_unused:
            # Of what was reserved nothing comes back; only what is beyond it counts.
            before, after = max(tokens - difference, ticket.tokens), max(tokens, ticket.tokens)
            difference = after - before
        if self.credit is not None:
            self.credit.settled(ticket.slices, difference)
        if self._tokens is None:
            return
        if difference > 0:
            ticket.parts.append((self._tokens.take(moment, difference), difference))
        else:
            self._give_back(moment, ticket, -difference)

    def end(self, now: float, ticket: Ticket, *, healthy: bool | None) -> None:
        """End a call.

        Args:
            now: The time.
            ticket: The call's, which was admitted.
            healthy: What it says of the provider; None: nothing.
        """
        if ticket.granted is None or self._is_over(ticket):
            return
        ticket.ended = True
        self.in_flight -= 1
        if healthy and ticket.granted > self._refused_at:
            self._rounds = 0
        if healthy is not None and not ticket.is_refused and ticket.granted > self._lowered_at:
            self._refusals.accepted()
        self._breaker.end(self._moment(now), ticket.passage, healthy=healthy)

    def refuse(self, now: float, ticket: Ticket, seconds: float | None) -> bool:
        """Have all wait, because the provider has refused a call; return whether that call is the first of a round.

        A round is of the calls that had begun before its first one was refused.

        Args:
            now: The time.
            ticket: The call's.
            seconds: How long the provider asks to wait; None: it does not say.
        """
        moment = self._moment(now)
        self.refused += 1
        self._recover(moment)
        first = ticket.granted is not None and ticket.granted > self._refused_at
        if first:
            self._rounds += 1
            self._refused_at = moment
        if ticket.granted is not None and ticket.granted > self._lowered_at and not ticket.is_refused:
            self._lower(moment, self._refusals.refused(self.factor))
        ticket.is_refused = True
        if seconds is None:
            seconds = min(2.0 ** (min(self._rounds, 10) - 1), _LONGEST_COOL_DOWN) if first else 0.0
        self.cool_down(now, seconds)
        return first

    def cool_down(self, now: float, seconds: float) -> None:
        """Have all wait, because the provider says that nothing is left for so long."""
        self._cool_until = max(self._cool_until, self._moment(now) + seconds)
        if self.credit is not None and seconds > 0:
            self.credit.cool_down(self._cool_until)

    def told(self, *, requests: float | None = None, tokens: float | None = None) -> None:
        """Take the provider's word for its limits: never more than was configured."""
        for bucket, limit in ((self._requests, requests), (self._tokens, tokens)):
            if bucket is not None and limit is not None and limit > 0:
                bucket.set_limit(limit)

    def force(self, state: ForcedBreaker) -> None:
        """Keep the breaker open or closed, or let it judge by itself again."""
        self._breaker.force(state)

    # ---- a budget that a fleet shares ----------------------------------------------------------------------------

    def was_short(self) -> None:
        """Take note that a call was refused, and may ask again: nothing was granted for it."""
        assert self.credit is not None
        self.credit.was_short()

    def lost_supply(self) -> None:
        """Drop what was granted: the worker that it was granted to is gone."""
        assert self.credit is not None
        self.credit.reset(self._latest)

    def asks_in(self, now: float) -> float:
        """Return in how many seconds to ask for more of the budget; infinity: not before something happens."""
        assert self.credit is not None
        moment = self._moment(now)
        first = next(iter(self._waiting)).tokens if self._waiting else None
        ready = math.inf if first is None else moment + self._ready_in(now, first, 0, 0.0)
        return self.credit.asks_at(moment, first, self.in_flight, ready) - moment

    def asks_for(self, now: float) -> Ask:
        """Return what to ask for."""
        assert self.credit is not None
        moment = self._moment(now)
        self._recover(moment)
        return self.credit.ask(
            moment,
            (ticket.tokens for ticket in self._waiting),
            self.in_flight,
            len(self._waiting),
            requests=None if self._requests is None else self._requests.limit * self._requests.factor,
            tokens=None if self._tokens is None else self._tokens.limit * self._tokens.factor,
        )

    def granted(self, grant: Grant, asked: float, answered: float) -> None:
        """Take what was granted; both moments are of the clock that `now` is read from."""
        assert self.credit is not None
        latest = self._moment(answered)
        self.credit.granted(grant, latest - max(answered - asked, 0.0), latest)
        self._cool_until = max(self._cool_until, latest + grant.cool_down)

    # ---- inside ------------------------------------------------------------------------------------------------

    def _available(self, now: float, bucket: WindowedBucket | None) -> float | None:
        moment = self._moment(now)
        self._recover(moment)
        return None if bucket is None else bucket.available(moment)

    def _give_back(self, moment: float, ticket: Ticket, amount: float) -> None:
        """Release the latest of what a ticket took."""
        while ticket.parts and amount > 0:
            taken, own = ticket.parts.pop()
            back = min(own, amount)
            amount -= back
            assert self._tokens is not None
            self._tokens.give_back(moment, taken, back)
            if own > back:
                ticket.parts.append((taken, own - back))

    def _is_over(self, ticket: Ticket) -> bool:
        return ticket.ended or ticket.generation != self._generation

    def _moment(self, now: float) -> float:
        moment = now + self._offset
        if moment < self._latest:
            self._offset += self._latest - moment
            return self._latest
        self._latest = moment
        return moment

    def _ready_in(self, now: float, tokens: float, count: int, ahead: float) -> float:
        moment = self._moment(now)
        self._recover(moment)
        ready = max(moment, self._cool_until, self._breaker.ready_at(moment))
        if self._requests is not None:
            ready = max(ready, self._requests.ready_at(moment, 1.0, float(count)))
        if self._tokens is not None:
            ready = max(ready, self._tokens.ready_at(moment, tokens, ahead))
        return ready - moment

    def _recover(self, moment: float) -> None:
        since = max(self._recovered_at, self._cool_until)
        self._recovered_at = moment
        factor = self.factor
        if factor >= 1.0 or moment <= since:
            return
        # At once from where it was to where it is now, however often somebody looks.
        passed = moment - since
        near = self._refused_at_factor * _NEAR
        if factor < near:
            quick = min(passed, (near - factor) * _RECOVERY_SECONDS)
            factor += quick / _RECOVERY_SECONDS
            passed -= quick
        factor = min(1.0, factor + passed / _RECOVERY_SECONDS / 10)
        if factor >= 1.0:
            self._refusals.recovered()
        self._set_factor(factor)

    def _lower(self, moment: float, factor: float | None) -> None:
        """Change the rate for what begins from now on; None: it stays."""
        if factor is not None:
            self._lowered_at = moment
            before = self.factor
            # It recovers quickly up to half way. Where it is raised, refusals do not depend on it: to the whole limit.
            self._refused_at_factor = (factor + before) / 2 if factor < before else math.inf
            self._set_factor(factor)

    def _set_factor(self, factor: float) -> None:
        for bucket in (self._tokens, self._requests):
            if bucket is not None:
                bucket.factor = factor
