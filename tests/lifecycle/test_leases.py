"""For how long a worker relies on its own lease, and for how long it spares those of others."""

from __future__ import annotations

import pytest

from durable_batches.lifecycle.leases import own_seconds, spared_seconds

LEASE = 30.0


def test_a_worker_relies_on_less_than_its_lease() -> None:
    """A renewal that is on its way when it stops has the rest of the lease for its answer."""
    assert own_seconds(LEASE) == 22.5


@pytest.mark.parametrize(
    ("unanswered", "failed", "spared"),
    [
        (0.0, False, 0.0),
        # One look failed, and the next one did not.
        (0.5, True, 3.0),
        (1.4, True, 3.0),
        (1.5, True, LEASE),
        (100.0, True, LEASE),
        # A busy event loop is no outage; a process that stood still for as long as its lease is like one.
        (22.4, False, 0.0),
        (22.5, False, LEASE),
        (10_000.0, False, LEASE),
    ],
)
def test_others_are_spared_after_an_outage(unanswered: float, failed: bool, spared: float) -> None:
    assert spared_seconds(LEASE, unanswered, failed=failed) == spared
