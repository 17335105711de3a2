"""The pause of a batch whose provider's account or quota is spent: how long it lasts, and when the provider is asked.

The first refusal pauses the batch. After `until`, one execution is claimed, which is the *look*: it makes one call at a
time. If the activity that was refused succeeds in it, or the whole document does, the pause is over. If it is refused
again, the pause is set anew, twice as far, at most ten minutes. Refusals of executions that ran when the batch was
paused change nothing. So an account that is empty costs one refused call a look.

A document that begins a pause again and again, while the calls of others succeed in between, is refused for itself: a
page that wants a login, and not an account that is empty. It fails. Once all documents that are left have begun such a
pause, no other one can tell whether the account is empty, and there is evidence against each of them: after an hour, in
which somebody may fill an account that is empty after all, a look in vain counts as one more pause that its document
began. So the last documents of a batch, each of them refused for itself, do not hold it up until the patience is over.

A document that was never refused before, and is the last one, is looked for until the patience is over: nothing tells
its own credentials from an account that became empty with it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final, NamedTuple, NotRequired, TypedDict

from durable_batches.lifecycle.records import Micros

__all__ = [
    "FIRST_PAUSE",
    "JUDGES_AFTER",
    "LONGEST_PAUSE",
    "MOST_BEGINNINGS",
    "QUOTA_GENERATION",
    "QuotaPause",
    "Refusal",
    "first_pause",
    "has_run_out",
    "next_pause",
]

QUOTA_GENERATION: Final = 1
"""The generation of the library that knows these pauses; an older one would go on asking."""

FIRST_PAUSE: Final[Micros] = 30_000_000
LONGEST_PAUSE: Final[Micros] = 600_000_000

JUDGES_AFTER: Final[Micros] = 3_600_000_000
"""How long a pause lasts before looks in vain count against the documents that look."""

MOST_BEGINNINGS: Final = 3
"""Pauses that one document may begin, and looks in vain that count as such; with the next one it fails."""


class Refusal(NamedTuple):
    """What a provider said when it refused a call for its account."""

    activity: str
    """The name of the activity."""
    note: str
    """The provider's message, in one line."""
    retry_after: Micros | None = None
    """The delay that it asks for."""


class QuotaPause(TypedDict):
    """The pause, as it is stored in the core of the batch."""

    since: Micros
    """When it began: since then no call has succeeded."""
    until: Micros
    """When the provider is asked again."""
    looks: int
    """How often it was asked in vain."""
    activity: str
    note: str
    needs: int
    """The generation that the batch needs without the pause."""
    judges: NotRequired[bool]
    """There if looks in vain count against the documents that look: all that were left had begun a pause before."""
    look: NotRequired[tuple[int, int]]
    """Position and attempt of the execution that looks."""


def first_pause(refusal: Refusal, now: Micros, needs: int, patience: timedelta | None) -> QuotaPause:
    """Begin a pause; `needs` is the generation that the batch needs by now, `patience` as the configuration has it."""
    return QuotaPause(
        since=now,
        until=_until(refusal, now, now, 0, patience),
        looks=0,
        activity=refusal.activity,
        note=refusal.note,
        needs=needs,
    )


def next_pause(pause: QuotaPause, refusal: Refusal, now: Micros, patience: timedelta | None) -> QuotaPause:
    """Set a pause anew, after a look in vain."""
    looks = pause["looks"] + 1
    following = QuotaPause(
        since=pause["since"],
        until=_until(refusal, pause["since"], now, looks, patience),
        looks=looks,
        activity=refusal.activity,
        note=refusal.note,
        needs=pause["needs"],
    )
    if "judges" in pause:
        following["judges"] = pause["judges"]
    return following


def has_run_out(pause: QuotaPause, now: Micros, patience: timedelta | None) -> bool:
    """Whether it has lasted as long as the configuration allows."""
    return patience is not None and now >= pause["since"] + _micros(patience)


def _until(refusal: Refusal, since: Micros, now: Micros, looks: int, patience: timedelta | None) -> Micros:
    doubled = min(FIRST_PAUSE << min(looks, 10), LONGEST_PAUSE)
    until = now + min(max(doubled, refusal.retry_after or 0), LONGEST_PAUSE)
    return until if patience is None else max(min(until, since + _micros(patience)), now)


def _micros(duration: timedelta) -> Micros:
    return duration // timedelta(microseconds=1)
