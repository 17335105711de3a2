"""The ledger of a hostile provider: what it was asked, what it answered, and what that costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

__all__ = ["Ledger", "LedgerEntry"]

_MINUTE = 60.0


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """A request and its answer.

    Attributes:
        at: When it arrived, in seconds of the boot clock.
        key: What it asked for; see `HostileProvider`.
        tokens: What it takes.
        status: The status of the answer; 0: there was none.
        fault: What was wrong with the answer; None: nothing. "limit": the limits of the provider refused it.
        is_paid: Whether it is paid for.
        is_whole: Whether the whole answer was sent, and makes sense.
    """

    at: float
    key: str
    tokens: int
    status: int
    fault: str | None
    is_paid: bool
    is_whole: bool


class Ledger:
    """All requests and their answers, in their order."""

    def __init__(self) -> None:
        self.entries: list[LedgerEntry] = []

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[LedgerEntry]:
        return iter(self.entries)

    @property
    def paid(self) -> Mapping[str, int]:
        """How often each key was paid for."""
        return Counter(entry.key for entry in self.entries if entry.is_paid)

    @property
    def paid_again(self) -> Mapping[str, int]:
        """How often each key was paid for after its whole answer had been sent; in a perfect world, never."""
        answered: set[str] = set()
        again: Counter[str] = Counter()
        for entry in self.entries:
            if entry.is_paid and entry.key in answered:
                again[entry.key] += 1
            if entry.is_whole:
                answered.add(entry.key)
        return again

    @property
    def faults(self) -> Mapping[str, int]:
        """How often there was each fault."""
        return Counter(entry.fault for entry in self.entries if entry.fault is not None)

    def most_requests(self, seconds: float = _MINUTE) -> int:
        """Return the most requests that were let through in any window of that many seconds."""
        return round(self._most(seconds, tokens=False))

    def most_tokens(self, seconds: float = _MINUTE) -> int:
        """Return the most tokens that were let through in any window of that many seconds."""
        return round(self._most(seconds, tokens=True))

    def tokens_between(self, first: float, last: float) -> int:
        """Return the tokens that were let through from one moment to another, in seconds of the boot clock."""
        return sum(entry.tokens for entry in self.entries if _counts(entry) and first <= entry.at < last)

    def _most(self, seconds: float, *, tokens: bool) -> float:
        most = total = first = 0
        counted = [entry for entry in self.entries if _counts(entry)]
        for entry in counted:
            total += entry.tokens if tokens else 1
            while counted[first].at <= entry.at - seconds:
                total -= counted[first].tokens if tokens else 1
                first += 1
            most = max(most, total)
        return most


def _counts(entry: LedgerEntry) -> bool:
    """Whether it counts against the limits: what they or the account refuse does not."""
    return entry.fault not in ("limit", "402")
