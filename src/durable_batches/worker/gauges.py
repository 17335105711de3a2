"""What a worker's calls wait for and run on, for telemetry: limiters and executors at one moment. On any thread."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from durable_batches.runtime.call import RunningCall
from durable_batches.runtime.limits import Limiter
from durable_batches.telemetry.hooks import ExecutorGauges, LimiterGauges

__all__ = ["executors_of", "limiters_of"]


def limiters_of(limiters: Iterable[Limiter]) -> Sequence[LimiterGauges]:
    """Return what limiters say of themselves; one of the user's own, which may say nothing, is left out."""
    return [gauges for limiter in limiters if (gauges := _of(limiter)) is not None]


def _of(limiter: Limiter) -> LimiterGauges | None:
    try:
        # Not its class: limiters are made of these by wrapping, too, and are above this in the layers.
        metrics: Any = getattr(limiter, "metrics")()  # noqa: B009  (it is no part of the protocol)
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


def executors_of(names: Collection[str], calls: Iterable[RunningCall]) -> Sequence[ExecutorGauges]:
    """Count the calls of activities with `run_on=`, by the names of the executors."""
    running, waiting = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for call in calls:
        counts = waiting if call.waits else running
        if call.executor in counts:
            counts[call.executor] += 1
    return [ExecutorGauges(executor=name, running=running[name], waiting=waiting[name]) for name in names]
