"""The conformance suite: one set of tests for all stores, those of the library and yours.

Needs pytest and pytest-asyncio. In a test module of the adapter::

    from durable_batches.testing import StoreConformance


    class TestMyStore(StoreConformance):
        @pytest.fixture(autouse=True)
        def _folder(self, tmp_path: Path) -> None:
            self.path = tmp_path / "batches"

        async def make_store(self, clock: Clock) -> Store:
            return MyStore(self.path, clock=clock)

        async def reopen_store(self, clock: Clock) -> Store:
            return MyStore(self.path, clock=clock)

The docstring of a test is the rule of the protocol that it tests; its failure message says what is expected.
"""

from __future__ import annotations

from durable_batches.testing.conformance.attaching import AttachingConformance
from durable_batches.testing.conformance.claims import ClaimsConformance
from durable_batches.testing.conformance.facts import FactsConformance
from durable_batches.testing.conformance.failures import FailuresConformance
from durable_batches.testing.conformance.inspecting import InspectingConformance
from durable_batches.testing.conformance.levels import LevelsConformance
from durable_batches.testing.conformance.limits import LimitsConformance
from durable_batches.testing.conformance.loading import LoadingConformance
from durable_batches.testing.conformance.pauses import PausesConformance
from durable_batches.testing.conformance.reading import ReadingConformance, WaitingConformance
from durable_batches.testing.conformance.sleeping import SleepingConformance
from durable_batches.testing.conformance.workers import OpeningConformance, WorkersConformance

__all__ = ["StoreConformance"]


class StoreConformance(
    OpeningConformance,
    LoadingConformance,
    WorkersConformance,
    ClaimsConformance,
    SleepingConformance,
    PausesConformance,
    FactsConformance,
    ReadingConformance,
    WaitingConformance,
    LevelsConformance,
    AttachingConformance,
    InspectingConformance,
    FailuresConformance,
    LimitsConformance,
):
    """Test a store: subclass this in a test module, under a name that pytest collects, and override `make_store`.

    A store whose `capabilities` declare `durable` or `several_processes` also overrides `reopen_store`; one with its
    own clock overrides `pass_time`. Tests of undeclared capabilities are skipped.
    """
