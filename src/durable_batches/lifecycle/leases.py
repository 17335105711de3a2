"""Leases: for how long after a renewal a worker relies on its own, and for how long it spares those of others."""

from __future__ import annotations

from typing import Final

__all__ = ["own_seconds", "spared_seconds"]

_OWN_SHARE: Final = 0.75
"""Of a lease: a renewal that is under way when this much has passed has an answer before the rest has."""

_HICCUP_SECONDS: Final = 1.5
"""A failure of the store that is over so soon has kept nobody from renewing: that is tried several times a lease."""

_MOMENT_SECONDS: Final = 3.0
"""Longer than others need to notice that the store is back."""


def own_seconds(lease_seconds: float) -> float:
    """Return for how long after a renewal was asked for a worker begins work."""
    return lease_seconds * _OWN_SHARE


def spared_seconds(lease_seconds: float, unanswered_seconds: float, *, failed: bool) -> float:
    """Return for how long a worker expires no other one, from the moment on at which it reaches the store.

    Leases do not run while the store is away: workers that were cut off as well get a whole lease to renew their own.
    So do all workers where this one itself stood still for as long as it relies on its lease, be it that the process
    was stopped or that the machine was suspended: others may have been, too.

    Args:
        lease_seconds: Of a lease.
        unanswered_seconds: The time since the store last answered this worker, beyond the pause between two questions.
        failed: Whether a call came to no answer meanwhile.
    """
    if unanswered_seconds >= own_seconds(lease_seconds) or (failed and unanswered_seconds >= _HICCUP_SECONDS):
        return lease_seconds
    return _MOMENT_SECONDS if failed else 0.0
