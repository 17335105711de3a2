"""What a worker's calls wait for and run on, at one moment: limiters and executors. On any thread."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from durable_batches.lifecycle.notes import CIRCUITS, Circuit
from durable_batches.runtime.call import RunningCall
from durable_batches.runtime.limits import Limiter
from durable_batches.telemetry.hooks import ExecutorGauges, LimiterGauges

__all__ = ["CircuitNow", "circuits_of", "executors_of", "limiters_of"]


def limiters_of(limiters: Iterable[Limiter]) -> Sequence[LimiterGauges]:
    """Return what limiters say of themselves; one of the user's own, which may say nothing, is left out."""
    return [gauges for limiter in limiters if (gauges := _of(limiter)) is not None]


def _of(limiter: Limiter) -> LimiterGauges | None:
    try:
        metrics = _metrics_of(limiter)
        return LimiterGauges(
            limiter=str(metrics.name),
            identity=id(limiter),
            in_flight=int(metrics.in_flight),
            waiting=int(metrics.waiting),
            rate=float(metrics.rate),
            circuit=metrics.breaker,
            refused=int(metrics.refused),
        )
    except Exception:  # noqa: BLE001  (of a limiter of the user's own: whatever it says, others are measured)
        return None


def _metrics_of(limiter: Limiter) -> Any:
    # Not its class: limiters are made of these by wrapping, too, and are above this in the layers.
    return getattr(limiter, "metrics")()  # noqa: B009  (it is no part of the protocol)


class CircuitNow(NamedTuple):
    """The circuit breaker of a limiter at one moment."""

    state: Circuit
    seconds: float | None
    """In how many the next call may begin; None: when another has ended, or that is not known."""


def circuits_of(limiters: Iterable[Limiter]) -> Mapping[str, CircuitNow]:
    """Return the circuit breakers of limiters by their names: of several with one name, the one that lets less pass."""
    found: dict[str, CircuitNow] = {}
    for limiter in limiters:
        try:
            metrics = _metrics_of(limiter)
            name, state, wait = str(metrics.name), cast("Circuit", metrics.breaker), metrics.next_permit_in
            circuit = CircuitNow(state, None if wait is None else float(wait.total_seconds()))
            if name not in found or CIRCUITS.index(state) > CIRCUITS.index(found[name].state):
                found[name] = circuit
        except Exception:  # noqa: BLE001  (of a limiter of the user's own: whatever it says)
            continue
    return found


def executors_of(names: Collection[str], calls: Iterable[RunningCall]) -> Sequence[ExecutorGauges]:
    """Count the calls of activities with `run_on=`, by the names of the executors."""
    running, waiting = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for call in calls:
        counts = waiting if call.waits else running
        if call.executor in counts:
            counts[call.executor] += 1
    return [ExecutorGauges(executor=name, running=running[name], waiting=waiting[name]) for name in names]
