"""What a worker may begin of a budget that a fleet shares, and when it asks for more. Pure.

Moments are seconds of the worker's clock. A slice that was asked for at one moment, and came at a later one, begins as
late and ends as early as both allow: on the store's clock, it was granted somewhere between.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice
from typing import Final

from durable_batches.flow.budget import SLICE_SECONDS, Ask, Grant, Limits

__all__ = ["Credit", "Slice"]

_MOST_CALLS: Final = 1_000
"""Of which the store is told at once."""
_AGAIN_SECONDS: Final = 0.5
"""After which a worker asks again that has none of the calls at once, or whose calls do not wait."""
_MOST_UNUSED: Final = 100
"""Slices; what was not used of earlier ones is not given back."""
_TINY: Final = 1e-6


class Slice:
    """Part of the budget that is this worker's for a time.

    Attributes:
        requests: What is left of it.
        tokens: What is left of it.
        at: When it begins, on the clock of the budget.
        begins: When it begins.
        ends: When it ends.
    """

    __slots__ = ("at", "begins", "ends", "requests", "tokens")

    def __init__(self, requests: float, tokens: float, at: float, begins: float, ends: float) -> None:
        self.at: Final = at
        self.requests: float = requests
        self.tokens: float = tokens
        self.begins: Final = begins
        self.ends: Final = ends


class Credit:
    """What was granted to one worker and is not used yet, and what the next take has to say.

    Args:
        limits: Those that the worker was given.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits: Final = limits
        self.grant: Grant | None = None
        """The last one; None: there was none yet."""
        self._slices: list[Slice] = []
        self._asked_at = -math.inf
        self._answered_at = -math.inf
        """When the last take that was answered was asked for."""
        self._unused: dict[float, list[float]] = {}
        self._has_begun = False
        self._debt = 0.0
        self._cool_until = -math.inf
        self._tells_cool_down = False
        self._peak = 0
        self._demand = _Demand()
        self._begun = _Demand()
        self._was_short = False

    @property
    def at_once(self) -> float:
        """Calls at once; infinity: any number."""
        if self.limits.max_concurrent is None and (self.grant is None or self.grant.at_once is None):
            return math.inf
        return 0 if self.grant is None or self.grant.at_once is None else self.grant.at_once

    @property
    def _has_requests(self) -> bool:
        """Whether requests are limited, by another worker's limits also."""
        return self.limits.requests is not None or (self.grant is not None and self.grant.limits.requests is not None)

    @property
    def _has_tokens(self) -> bool:
        """Whether tokens are limited, by another worker's limits also."""
        return self.limits.tokens is not None or (self.grant is not None and self.grant.limits.tokens is not None)

    # ---- calls ---------------------------------------------------------------------------------------------------

    def asked(self, moment: float, tokens: float) -> None:
        """Take note of a call that wants to begin."""
        self._demand.add(moment, tokens)

    def ready_at(self, moment: float, tokens: float) -> float:
        """Return when a call may begin; infinity: more has to be asked for."""
        self._drop_past(moment)
        has_requests, has_tokens = self._has_requests, self._has_tokens
        if not has_requests and (not has_tokens or tokens <= 0):
            return moment
        requests, amount = 0.0, 0.0
        for part in self._slices:
            requests += part.requests
            amount += part.tokens
            if (not has_requests or requests >= 1 - _TINY) and (not has_tokens or amount >= tokens - _TINY):
                return max(moment, part.begins)
        return math.inf

    def take(self, moment: float, tokens: float, in_flight: int) -> list[tuple[Slice, float, float]]:
        """Take for a call that begins; return what of each slice."""
        self._peak = max(self._peak, in_flight)
        self._has_begun = True
        self._begun.add(moment, tokens)
        taken: list[tuple[Slice, float, float]] = []
        request = 1.0
        for part in self._slices:
            if request <= 0 and tokens <= 0:
                break
            if part.begins > moment + _TINY:
                continue
            requests, amount = min(request, part.requests), min(tokens, part.tokens)
            part.requests -= requests
            part.tokens -= amount
            request -= requests
            tokens -= amount
            taken.append((part, requests, amount))
        return taken

    def give_back(self, moment: float, taken: Iterable[tuple[Slice, float, float]]) -> None:
        """Take back what a call has taken that did not begin."""
        for part, requests, amount in taken:
            if part.ends <= moment:
                self._note_unused(part, requests, amount)
            else:
                part.requests += requests
                part.tokens += amount

    def settled(self, taken: list[tuple[Slice, float, float]], more: float) -> None:
        """Take note that a call has taken more tokens than it said, or less (negative).

        Args:
            taken: What it has taken of each slice; what comes back is taken off.
            more: By how much.
        """
        if not self._has_tokens:
            return
        if more > 0:
            self._debt += more
            return
        for index in reversed(range(len(taken))):
            part, requests, amount = taken[index]
            back = min(amount, -more)
            more += back
            taken[index] = part, requests, amount - back
            self._note_unused(part, 0.0, back)
        # The rest was a debt.
        self._debt = max(self._debt + more, 0.0)

    def was_short(self) -> None:
        """Take note that a call was refused since nothing was left: it may ask again."""
        self._was_short = True

    # ---- takes ---------------------------------------------------------------------------------------------------

    def asks_at(self, moment: float, waiting: float | None, in_flight: int, ready: float) -> float:
        """Return when to ask for more, or to tell something; infinity: not before something happens.

        Args:
            moment: The time.
            waiting: The tokens of the first call that waits; None: none does.
            in_flight: The calls that run.
            ready: When calls may begin at all, but for what is asked for.
        """
        self._drop_past(moment)
        if self._tells_cool_down:
            return moment
        later = math.inf
        is_idle_slot = self.grant is not None and self.grant.held > in_flight
        uses_slots = self._has_begun and self.at_once < math.inf
        if is_idle_slot or uses_slots or self._debt > 0 or self._unused:
            later = self._asked_at + SLICE_SECONDS
        if waiting is None and any(part.begins > moment + SLICE_SECONDS for part in self._slices):
            # The call that it was for waits no more.
            later = min(later, self._asked_at + SLICE_SECONDS)
        # What is not used is told when it cannot be used any more.
        ends = next((part.ends for part in self._slices if self._has_left(part)), math.inf)
        later = min(later, max(ends, self._asked_at + SLICE_SECONDS))
        if waiting is None:
            return max(moment, min(later, self._asked_at + _AGAIN_SECONDS)) if self._was_short else max(moment, later)
        if in_flight >= self.at_once:
            # Its turn comes, or those of others end; and once in a while others learn that some wait here.
            return max(moment, self._asked_at + (SLICE_SECONDS if in_flight else _AGAIN_SECONDS), ready)
        if self.ready_at(moment, waiting) == math.inf:
            return max(moment, ready)
        if self.at_once < math.inf:
            later = min(later, self._asked_at + SLICE_SECONDS)
        return max(moment, later)

    def ask(
        self,
        moment: float,
        waiting: Iterable[float],
        in_flight: int,
        count: int,
        *,
        requests: float | None,
        tokens: float | None,
    ) -> Ask:
        """Say what the next take asks for and tells; what comes back is told once, whatever becomes of the take.

        Args:
            moment: The time.
            waiting: The tokens of the calls that wait, in their order.
            in_flight: The calls that run.
            count: How many wait.
            requests: The limit that holds here.
            tokens: The limit that holds here.
        """
        self._drop_past(moment)
        if not count:
            for part in [part for part in self._slices if part.begins > moment + SLICE_SECONDS]:
                self._slices.remove(part)
                self._note_unused(part, part.requests, part.tokens)
        # No more than a slice may hold.
        most = _MOST_CALLS if requests is None else min(math.ceil(requests / 60 * SLICE_SECONDS), _MOST_CALLS)
        calls = list(islice(waiting, most))
        if calls and self.ready_at(moment, calls[0]) < math.inf:
            # They have theirs; it is about calls at once.
            calls = []
        expected, amount = self._demand.of_slice(moment)
        is_short = bool(calls) or self._was_short
        ask = Ask(
            self.limits,
            requests,
            tokens,
            calls,
            max(expected - len(calls), 0.0) if is_short else 0.0,
            max(amount - sum(calls), 0.0) if is_short else 0.0,
            in_flight,
            max(in_flight + count, self._peak),
            [(at, unused[0], unused[1]) for at, unused in self._unused.items()],
            self._debt,
            max(self._cool_until - moment, 0.0) if self._tells_cool_down else 0.0,
            None if self._answered_at == -math.inf else moment - self._answered_at,
            self._begun.of_slice(moment)[0],
            max((part.at for part in self._slices if part.begins > moment), default=0.0),
        )
        self._unused, self._debt = {}, 0.0
        self._asked_at = moment
        self._tells_cool_down = self._was_short = self._has_begun = False
        self._peak = in_flight
        return ask

    def granted(self, grant: Grant, asked: float, answered: float) -> None:
        """Take what was granted.

        Args:
            grant: What was.
            asked: When it was asked for.
            answered: When the answer came.
        """
        self.grant = grant
        self._answered_at = asked
        if grant.requests or grant.tokens:
            begins, ends = answered + grant.begins_in, asked + grant.begins_in + SLICE_SECONDS
            if ends > begins:
                self._slices.append(Slice(grant.requests, grant.tokens, grant.at, begins, ends))
            else:
                late = Slice(0.0, 0.0, grant.at, begins, ends)
                self._note_unused(late, grant.requests, grant.tokens)

    def failed(self, ask: Ask) -> None:
        """Take note that a take was not answered: it may have been made. Debts and cool-downs are told again."""
        self._debt += ask.debt
        self._tells_cool_down |= ask.cool_down > 0
        self._was_short |= not ask.calls and ask.more_requests > 0

    def cool_down(self, until: float) -> None:
        """Take note until when the provider wants no calls: others are told at once."""
        if until > self._cool_until + _TINY:
            self._cool_until = until
            self._tells_cool_down = True

    def reset(self, moment: float) -> None:
        """Drop what was granted: the worker that it was granted to is gone. The next one says what was not used.

        Slices that have not begun are others' with the worker's row.
        """
        for part in self._slices:
            if part.begins <= moment:
                self._note_unused(part, part.requests, part.tokens)
        self._slices.clear()
        self.grant = None
        self._asked_at = self._answered_at = -math.inf
        # Calls that run have to be counted as another worker's.
        self._has_begun = True

    # ---- inside --------------------------------------------------------------------------------------------------

    def _drop_past(self, moment: float) -> None:
        while self._slices and self._slices[0].ends <= moment:
            part = self._slices.pop(0)
            self._note_unused(part, part.requests, part.tokens)

    def _has_left(self, part: Slice) -> bool:
        return (self._has_requests and part.requests > _TINY) or (self._has_tokens and part.tokens > _TINY)

    def _note_unused(self, part: Slice, requests: float, tokens: float) -> None:
        requests = requests if self._has_requests else 0.0
        tokens = tokens if self._has_tokens else 0.0
        if requests > 0 or tokens > 0:
            unused = self._unused.setdefault(part.at, [0.0, 0.0])
            unused[0] += requests
            unused[1] += tokens
        while len(self._unused) > _MOST_UNUSED:
            del self._unused[next(iter(self._unused))]


class _Demand:
    """How many calls want to begin within a slice, and what they take: as in the last one."""

    __slots__ = ("_before", "_began", "_now")

    def __init__(self) -> None:
        self._began = -math.inf
        self._now = self._before = (0.0, 0.0)

    def add(self, moment: float, tokens: float) -> None:
        self._turn(moment)
        self._now = (self._now[0] + 1, self._now[1] + tokens)

    def of_slice(self, moment: float) -> tuple[float, float]:
        self._turn(moment)
        return max(self._now[0], self._before[0]), max(self._now[1], self._before[1])

    def _turn(self, moment: float) -> None:
        if moment >= self._began + SLICE_SECONDS:
            self._before = self._now if moment < self._began + 2 * SLICE_SECONDS else (0.0, 0.0)
            self._began, self._now = moment, (0.0, 0.0)
