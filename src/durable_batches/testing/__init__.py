"""What tests need: a clock moved by hand, results for a resolver, and the conformance suite for authors of stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_batches.testing.clock import ManualClock
from durable_batches.testing.results import results_of

if TYPE_CHECKING:
    from durable_batches.testing.conformance import StoreConformance

__all__ = ["ManualClock", "StoreConformance", "results_of"]


if not TYPE_CHECKING:  # to checkers, it would make every name one of the module's

    def __getattr__(name: str) -> object:
        # pytest is no dependency of the library; it is imported only where the suite is used.
        if name == "StoreConformance":
            from durable_batches.testing.conformance import StoreConformance

            return StoreConformance
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
