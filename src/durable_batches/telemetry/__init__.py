"""Traces and metrics of a worker: `Worker(telemetry=OpenTelemetry())`, or another backend of the same hooks."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from durable_batches.tasks import NotBegun
from durable_batches.telemetry.hooks import (
    ActivityDetails,
    AttemptDetails,
    AttemptOutcome,
    BatchDetails,
    CommitDetails,
    CommitOutcome,
    ExecutorGauges,
    LimiterGauges,
    SubmissionDetails,
    Telemetry,
    WorkerGauges,
    WorkflowGauges,
)

if TYPE_CHECKING:
    from durable_batches.telemetry.opentelemetry import OpenTelemetry

__all__ = [
    "ActivityDetails",
    "AttemptDetails",
    "AttemptOutcome",
    "BatchDetails",
    "CommitDetails",
    "CommitOutcome",
    "ExecutorGauges",
    "LimiterGauges",
    "NotBegun",
    "OpenTelemetry",
    "SubmissionDetails",
    "Telemetry",
    "WorkerGauges",
    "WorkflowGauges",
]

if not TYPE_CHECKING:  # to checkers, it would make every name one of the module's
    if find_spec("opentelemetry") is None:
        # By its name it is imported all the same, and the error names the extra.
        __all__.remove("OpenTelemetry")

    def __getattr__(name: str) -> object:
        # Imported only where it is used: that takes as long as all of the library.
        if name == "OpenTelemetry":
            from durable_batches.telemetry.opentelemetry import OpenTelemetry

            return OpenTelemetry
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
