"""Processes that share the limits of their limiters through the store, and one of them is killed."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import pytest
from tests.flow.fleet import most_in_a_window
from tests.processes.children import Child, children, until
from tests.processes.databases import Database
from tests.processes.workload import Job

from durable_batches.flow.budget import SLICE_SECONDS

REQUESTS_A_SECOND: Final = 30
TOGETHER: Final = 3


class Fleet:
    """Three processes."""

    def __init__(self, folder: Path, database: Database, start: Any) -> None:
        self._folder = folder
        self._database = database
        self._start = start

    def start(self, process: str, **job: Any) -> Child:
        """Start one."""
        child: Child = self._start(
            Job(process=process, folder=str(self._folder), store=self._database.place, scenario="fleet", **job)
        )
        return child


@pytest.fixture
def fleet(tmp_path: Path, database: Database) -> Generator[Fleet]:
    with children() as start:
        yield Fleet(tmp_path, database, start)


def calls(*processes: Child) -> list[tuple[float, float]]:
    """When their calls began, each as one."""
    return [(note["at"], 1.0) for child in processes for note in child.marks("called")]


async def test_calls_at_once_of_a_process_that_is_killed_come_back(fleet: Fleet) -> None:
    limits = json.dumps({"max_concurrent": TOGETHER})
    # It has all of them, and never ends a call.
    holder = fleet.start("holder", documents=TOGETHER, pace=1.0, limits=limits)
    await until(lambda: len(calls(holder)) == TOGETHER, "the first process to have all calls at once")
    others = [fleet.start(name, documents=6, pace=0.0, limits=limits) for name in ("one", "two")]
    await until(lambda: all(child.marks("waits") for child in others), "the others to wait")
    assert not calls(*others)
    assert holder.kill()
    for child in others:
        assert (await child.result())["counts"]["succeeded"] == 6
    assert len(calls(*others)) == 12


async def test_processes_together_stay_within_a_limit_also_when_one_is_killed(fleet: Fleet) -> None:
    limits = json.dumps({"requests_per_minute": 60 * REQUESTS_A_SECOND})
    sizes = {"killed": 1_000, "one": 40, "two": 40}
    processes = [
        fleet.start(name, documents=size, concurrency=40, pace=0.0, limits=limits) for name, size in sizes.items()
    ]
    killed, *others = processes
    await until(lambda: all(calls(child) for child in processes), "all processes to call")
    assert killed.kill()
    for child in others:
        assert (await child.result())["counts"]["succeeded"] == 40
    # The budget is spread over the minute: a fiftieth of it at once, and what comes in during a slice. Calls begin
    # within their slices, and so no second sees more, however slow the machine is.
    depth = 60 * REQUESTS_A_SECOND / 50
    assert most_in_a_window(calls(*processes), 1.0) <= depth + REQUESTS_A_SECOND * (1 + SLICE_SECONDS)
