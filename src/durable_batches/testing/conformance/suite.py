"""The conformance suite for stores: one set of tests that every store passes, the library's own and yours.

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

Each test's docstring is the rule of the protocol that it tests; what a failing one says is what to mend.
"""

from __future__ import annotations

from durable_batches.testing.conformance.claims import ClaimsConformance
from durable_batches.testing.conformance.facts import FactsConformance
from durable_batches.testing.conformance.loading import LoadingConformance
from durable_batches.testing.conformance.reading import ReadingConformance, WaitingConformance
from durable_batches.testing.conformance.workers import OpeningConformance, WorkersConformance

__all__ = ["StoreConformance"]


class StoreConformance(
    OpeningConformance,
    LoadingConformance,
    WorkersConformance,
    ClaimsConformance,
    FactsConformance,
    ReadingConformance,
    WaitingConformance,
):
    """Subclass it in a test module, with a name that pytest collects, and override `make_store`.

    A store whose `capabilities` declare `durable` or `several_processes` overrides `reopen_store`, too; one that
    goes by a clock of its own overrides `pass_time`. What is not declared is skipped.
    """
