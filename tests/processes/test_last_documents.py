"""The last two documents of a batch end in two processes at once: its resolver runs once, in one of them."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.processes import pairs
from tests.processes.children import children
from tests.processes.databases import Database
from tests.processes.forks import PATIENCE
from tests.processes.workload import Job
from tests.support import within

from durable_batches import BatchOrchestrator
from durable_batches.testing.history.checker import HistoryChecker
from durable_batches.testing.virtual.effects import EffectsLog

STOPS = {
    "before": ["store.commit: called"],
    "within": ["commit: INSERT outcome"],
    "about-to-commit": ["commit: INSERT outcome", "commit: COMMIT"],
    "committed": ["commit: INSERT outcome", "commit: COMMIT applied"],
}
"""Where one of them stands when the other one's document ends; `within` its transaction, the other has to wait."""


OUTSIDE = ("store.commit: called", "commit: COMMIT applied")


@pytest.mark.parametrize("stops", STOPS.values(), ids=STOPS)
async def test_the_resolver_runs_once(tmp_path: Path, database: Database, stops: Sequence[str]) -> None:
    effects = EffectsLog(tmp_path / "effects.log")
    waits = ["commit: INSERT outcome", "commit: COMMIT applied"] if stops[-1] in OUTSIDE else []
    checker = HistoryChecker(effects=effects)
    with children() as start:
        async with BatchOrchestrator(pairs.pair, store=database.store(), max_in_flight=0) as batches:
            batch_id = await batches.submit([2, 1], batch_id="batch")
            checker.acknowledged(batch_id, ["0", "1"])
            one, other = (
                start(
                    Job(
                        scenario="pair",
                        process=process,
                        folder=str(tmp_path),
                        store=database.place,
                        stops=["meet: returned", *(stops if process == "one" else waits)],
                    )
                )
                for process in ("one", "other")
            )
            for child in (one, other):
                await child.stopped("meet: returned")
            one.go_on()
            for mark in stops:
                await one.stopped(mark)
                if mark != stops[-1]:
                    one.go_on()
            other.go_on()
            if stops[-1] in OUTSIDE:
                await other.stopped("commit: INSERT outcome")
                other.go_on()
                await other.stopped("commit: COMMIT applied")
                other.go_on()
            one.go_on()
            result = await within(batches.result(batch_id), seconds=PATIENCE)
            assert result.resolution == 3
        for child in (one, other):
            child.send(signal.SIGTERM)
            await child.result()
    assert Counter(effect.activity for effect in effects.read()) == {"meet": 4, "add_up": 2}, "a start and an end each"
    async with database.open() as store:
        await checker.verify(store, finished=True, everyone_left=True)
