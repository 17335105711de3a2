"""Isolation: how a document that kills its process is told from those that were running beside it.

All documents that a process was running when it ended are possible poison documents. Their first crash changes nothing:
most crashes are no document's fault. From the second one on, without anything recorded in between, a batch's possible
poison documents are isolated for a time: one worker runs them, beside few others or none, until the time is up. Then
they run like any others, so that calls which take long hold nothing up; the next crash isolates them for twice as long.
"""

from __future__ import annotations

from typing import Final, TypedDict

from durable_batches.lifecycle.records import Micros, WorkerId

__all__ = ["ISOLATED_CRASHES", "Isolation", "is_crash_loop", "isolated_concurrency", "isolation_micros"]

ISOLATED_CRASHES: Final = 2
"""The number of crashes, with nothing recorded in between, from which on an execution is isolated."""

_FIRST_MICROS: Final[Micros] = 10_000_000
_LONGEST_MICROS: Final[Micros] = 3_600_000_000


class Isolation(TypedDict):
    """The isolation of a batch's possible poison documents; part of its core, and so it has JSON's types."""

    since: Micros
    """When it began: when the latest of their crashes was noticed, by the store's clock."""
    until: Micros
    """When it is over."""
    worker: WorkerId | None
    """The one worker that runs them meanwhile; None: the first that has room for one of them."""
    window: int
    """How many executions that worker holds at most, by its latest claim of one of them."""


def isolation_micros(crashes: int) -> Micros:
    """Return how long documents that have crashed this often are isolated: 10 s, and twice as long for each more."""
    return min(_FIRST_MICROS << min(max(crashes - ISOLATED_CRASHES, 0), 32), _LONGEST_MICROS)


def isolated_concurrency(crashes: int, max_crashes: int, suspects: int) -> int:
    """Limit how many documents a worker runs at once while one of them is isolated.

    Each crash leaves a smaller group of them to search, geometrically: of 100 documents and `max_crashes` of 3, ten run
    at once after the second crash, and each of the ten that crash with that alone after the third.

    Args:
        crashes: How often it has crashed: at least `ISOLATED_CRASHES`.
        max_crashes: The batch's.
        suspects: How many documents of the batch have crashed so often.
    """
    steps = max_crashes - crashes
    if steps <= 0:
        return 1
    # What should be a whole number must not be a little less.
    return max(int(suspects ** (steps / (steps + 1)) + 1e-9), 1)


def is_crash_loop(crashes: int, max_crashes: int, *, alone: bool) -> bool:
    """Return whether an execution is given up after this many crashes.

    Args:
        crashes: Those with nothing recorded in between, the latest one included.
        max_crashes: The batch's.
        alone: Whether its worker ran nothing else at the latest one. Of the first crash nobody can know whose fault it
            was, whatever `max_crashes` says.
    """
    return alone and crashes >= max(max_crashes, ISOLATED_CRASHES)
