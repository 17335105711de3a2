"""Tools for tests: workflows in virtual time, crashes on demand, contexts for unit tests, a suite for stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_batches.testing.history.checker import HistoryChecker, HistoryStats, HistoryViolation
from durable_batches.testing.unit.contexts import RecordingActivityContext, activity_context, execution_context
from durable_batches.testing.unit.results import results_of
from durable_batches.testing.virtual.clock import ManualClock
from durable_batches.testing.virtual.crashes import CrashReport, survives_crashes
from durable_batches.testing.virtual.effects import Effect, EffectsLog
from durable_batches.testing.virtual.environment import BatchEnvironment, Environment, StoreMaker, environment

if TYPE_CHECKING:
    from durable_batches.testing.conformance.suite import StoreConformance

__all__ = [
    "BatchEnvironment",
    "CrashReport",
    "Effect",
    "EffectsLog",
    "Environment",
    "HistoryChecker",
    "HistoryStats",
    "HistoryViolation",
    "ManualClock",
    "RecordingActivityContext",
    "StoreConformance",
    "StoreMaker",
    "activity_context",
    "environment",
    "execution_context",
    "results_of",
    "survives_crashes",
]


if not TYPE_CHECKING:  # to checkers, it would make every name one of the module's

    def __getattr__(name: str) -> object:
        # pytest is no dependency of the library; it is imported only where the suite is used.
        if name == "StoreConformance":
            from durable_batches.testing.conformance.suite import StoreConformance

            return StoreConformance
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
