"""The circuit breaker as a function of time."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest

from durable_batches import ConfigurationError
from durable_batches.flow.breaker import Breaker, CircuitBreaker

OPTIONS = CircuitBreaker(failure_threshold=2, recovery_timeout=timedelta(seconds=10))


def tripped() -> Breaker:
    """A breaker that two failures have opened at 0."""
    breaker = Breaker(OPTIONS)
    for _ in range(2):
        breaker.end(0.0, breaker.begin(0.0), healthy=False)
    assert breaker.state(0.0) == "open"
    return breaker


def test_failures_in_a_row_open_it_and_successes_of_probes_close_it() -> None:
    breaker = tripped()
    assert breaker.ready_at(3.0) == 10.0
    assert breaker.state(10.0) == "half-open"
    for _ in range(2):
        assert breaker.ready_at(10.0) == 10.0
        probe = breaker.begin(10.0)
        # One at once: until it has ended, or for as long as the breaker is open.
        assert breaker.ready_at(11.0) == 20.0
        breaker.end(12.0, probe, healthy=True)
    assert breaker.state(12.0) == "closed"


def test_a_success_in_between_counts_them_anew() -> None:
    breaker = Breaker(OPTIONS)
    for healthy in (False, True, False, None):
        breaker.end(0.0, breaker.begin(0.0), healthy=healthy)
    assert breaker.state(0.0) == "closed"
    assert breaker.failures == 1


def test_a_probe_that_fails_opens_it_again() -> None:
    breaker = tripped()
    breaker.end(15.0, breaker.begin(12.0), healthy=False)
    assert breaker.ready_at(15.0) == 25.0


def test_a_call_that_began_before_it_opened_says_nothing() -> None:
    breaker = Breaker(OPTIONS)
    old = [breaker.begin(0.0) for _ in range(4)]
    breaker.end(1.0, old[0], healthy=False)
    breaker.end(1.0, old[1], healthy=False)
    breaker.end(2.0, old[2], healthy=True)
    assert breaker.state(2.0) == "open"
    assert breaker.state(11.0) == "half-open"
    breaker.end(12.0, old[3], healthy=False)
    assert breaker.state(12.0) == "half-open"


def test_a_probe_that_says_nothing_or_hangs_gives_its_place_to_the_next() -> None:
    breaker = tripped()
    cancelled = breaker.begin(10.0)
    breaker.end(11.0, cancelled, healthy=None)
    assert breaker.ready_at(11.0) == 11.0
    hangs = breaker.begin(11.0)
    assert breaker.ready_at(20.0) == 21.0
    breaker.end(22.0, breaker.begin(21.0), healthy=True)
    breaker.end(23.0, hangs, healthy=True)
    assert breaker.state(23.0) == "closed"


def test_an_operator_decides() -> None:
    breaker = tripped()
    breaker.force("closed")
    for _ in range(9):
        breaker.end(1.0, breaker.begin(1.0), healthy=False)
    assert breaker.ready_at(1.0) == 1.0
    breaker.force("open")
    assert breaker.ready_at(1e9) == math.inf
    breaker.force("auto")
    assert breaker.state(1e9) == "closed"
    assert breaker.failures == 0


def test_without_options_it_opens_by_force_alone() -> None:
    breaker = Breaker()
    for _ in range(99):
        breaker.end(0.0, breaker.begin(0.0), healthy=False)
    assert breaker.state(0.0) == "closed"
    breaker.force("open")
    assert breaker.ready_at(0.0) == math.inf


@pytest.mark.parametrize("name", ["failure_threshold", "probes", "success_threshold"])
def test_less_than_one_is_refused(name: str) -> None:
    wrong: Any = {name: 0}
    with pytest.raises(ConfigurationError, match=f"{name} must be 1 or more"):
        CircuitBreaker(**wrong)
