"""How much of something may be taken now, and when: a log of the last minute, behind a bucket that smooths. Pure.

A bucket alone gives one of two things. If its depth and what flows in during a minute stay below the limit together,
no window of a minute sees more than the limit, but a request larger than the depth never passes. If it is as deep as
the limit, every request passes, and a window may see twice the limit. Here the log alone keeps the limit, whatever the
sizes, and the bucket only spreads requests over the minute, so that it may be shallow.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["WINDOW_SECONDS", "Taken", "WindowedBucket"]

WINDOW_SECONDS: Final = 60.5
"""Of the log. Providers count a minute when requests arrive, and requests travel for different times: with exactly 60
seconds, a provider that counts exactly refused some."""

_DEPTH: Final = 0.02
"""Of the bucket, as a share of the limit."""

_MERGED_SECONDS: Final = WINDOW_SECONDS / 600
"""What is taken within this time shares an entry of the log, which so has at most 600 or so."""

_TINY: Final = 1e-9


class Taken:
    """An entry of the log.

    Attributes:
        amount: What was taken.
        at: When the latest part of it was taken: all of it counts as if it were that late.
    """

    __slots__ = ("amount", "at", "first")

    def __init__(self, at: float, amount: float) -> None:
        self.at: float = at
        self.amount: float = amount
        self.first: Final = at


class WindowedBucket:
    """At most `limit` within any window of a minute, and spread over it.

    Every `now` is in seconds, and not less than the one before. What is settled upwards afterwards is the exception: it
    was used, whether or not there was room, and is a debt that is waited for.

    Args:
        limit: Requests or tokens a minute.
        window: Seconds of the log.
        merged: Seconds within which what is taken shares an entry of the log.
        state: What `dump` returned; None: nothing was taken yet.
        kept_since: From when on entries are kept for `rewind`, also when the log has gone on.

    Attributes:
        factor: The share of the limit that is used at present, in (0, 1].
    """

    __slots__ = (
        "_at",
        "_kept_since",
        "_level",
        "_log",
        "_merged",
        "_past",
        "_total",
        "_window",
        "configured",
        "factor",
        "limit",
    )

    def __init__(
        self,
        limit: float,
        *,
        window: float = WINDOW_SECONDS,
        merged: float = _MERGED_SECONDS,
        state: Mapping[str, Any] | None = None,
        kept_since: float = math.inf,
    ) -> None:
        assert 0 < limit < math.inf
        self._window = window
        self._merged = merged
        self.configured: Final = limit
        self.limit: float = limit
        self.factor: float = 1.0
        self._level = self.depth
        self._at = -math.inf
        self._total = 0.0
        self._log: deque[Taken] = deque()
        self._kept_since = kept_since
        self._past: deque[Taken] = deque()
        if state is not None:
            self._level = min(self.depth, state["level"])
            self._at = state["at"]
            for log, entries in ((self._past, state.get("past", ())), (self._log, state["log"])):
                for first, at, amount in entries:
                    taken = Taken(first, amount)
                    taken.at = at
                    log.append(taken)
            self._total = sum(taken.amount for taken in self._log)
            while self._past and self._past[0].at <= kept_since:
                self._past.popleft()

    def dump(self) -> Mapping[str, Any]:
        """Return the state in terms of JSON; the limit is no part of it."""
        return {
            "level": self._level,
            "at": max(self._at, 0.0),
            "log": [(taken.first, taken.at, taken.amount) for taken in self._log],
            "past": [(taken.first, taken.at, taken.amount) for taken in self._past],
        }

    @property
    def at(self) -> float:
        """When it was last used: nothing can be taken for an earlier moment."""
        return self._at

    @property
    def depth(self) -> float:
        """How much may be taken at once without a wait."""
        return self.limit * _DEPTH

    @property
    def rate(self) -> float:
        """What flows in, a second."""
        return self.limit * self.factor / self._window

    def set_limit(self, limit: float) -> None:
        """Take a provider's word for the limit, but never more than was configured."""
        self.limit = min(self.configured, limit)
        self._level = min(self._level, self.depth)

    def available(self, now: float) -> float:
        """Return how much of the limit the last minute has left."""
        self._advance(now)
        return max(self.limit * self.factor - self._total, 0.0)

    def spare(self, now: float) -> float:
        """Return how much may be taken at once, without a wait."""
        self._advance(now)
        return max(min(self._level, self.limit * self.factor - self._total), 0.0)

    def ready_at(self, now: float, amount: float, ahead: float = 0.0) -> float:
        """Return when `amount` may be taken if nothing else is, but for what is `ahead` of it."""
        self._advance(now)
        if amount <= 0:
            return now
        # What is larger than the bucket begins with a full one, and leaves a debt.
        short = ahead + min(amount, self.depth) - self._level
        ready = now if short <= _TINY else now + short / self.rate
        # Under a lowered limit, a larger request has a minute to itself, and does not wait for ever.
        over = self._total + ahead + amount - max(self.limit * self.factor, amount)
        for taken in self._log:
            if over <= 1e-6:
                break
            over -= taken.amount
            ready = max(ready, taken.at + self._window)
        return ready

    def take(self, now: float, amount: float) -> Taken:
        """Take it, whether or not it is there; `ready_at` says if it is."""
        self._advance(now)
        self._level -= amount
        self._total += amount
        last = self._log[-1] if self._log else None
        if last is None or now - last.first >= self._merged:
            last = Taken(now, amount)
            self._log.append(last)
        else:
            last.at = now
            last.amount += amount
        return last

    def give_back(self, now: float, taken: Taken, amount: float) -> None:
        """Release part of what was taken, where it was taken: a minute later, that changes nothing."""
        self._advance(now)
        if taken.at > now - self._window:
            amount = min(amount, taken.amount)
            taken.amount -= amount
            self._total -= amount
        self._level = min(self.depth, self._level + amount)

    def release(self, now: float, at: float, amount: float) -> None:
        """Release part of what was taken at a moment, if that is in the log yet."""
        self._advance(now)
        for taken in self._log:
            if taken.first <= at <= taken.at:
                self.give_back(now, taken, amount)
                break

    def rewind(self, to: float) -> None:
        """Go back to a moment, as if nothing had been taken for later ones; not further than `kept_since` allows.

        An entry of the log that began by then stays whole, and so the bucket may stay at a later moment.
        """
        entries = [*self._past, *self._log]
        dropped = 0.0
        while entries and entries[-1].first > to:
            dropped += entries.pop().amount
        if entries:
            to = max(to, entries[-1].at)
        if to >= self._at:
            return
        # What had flowed in was no more than this.
        self._level = min(self.depth, self._level + dropped - (self._at - to) * self.rate)
        self._at = to
        self._past = deque(taken for taken in entries if taken.at <= to - self._window)
        self._log = deque(taken for taken in entries if taken.at > to - self._window)
        self._total = sum(taken.amount for taken in self._log)

    def _advance(self, now: float) -> None:
        if now > self._at:
            if self._at > -math.inf:
                self._level = min(self.depth, self._level + (now - self._at) * self.rate)
            self._at = now
        while self._log and self._log[0].at <= now - self._window:
            taken = self._log.popleft()
            self._total -= taken.amount
            if taken.at > self._kept_since:
                self._past.append(taken)
        if not self._log:
            # Nothing is left of rounding errors.
            self._total = 0.0
