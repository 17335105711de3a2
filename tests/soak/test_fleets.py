"""Three processes share a limit through the store for minutes, as fast as they may; one is killed in between."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from tests.flow.fleet import most_in_a_window
from tests.processes.children import CLOCK, Child, children, until
from tests.processes.databases import Database, PostgresDatabase, SQLiteDatabase
from tests.processes.workload import Job

REQUESTS_A_SECOND = 20
SECONDS = 150


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_a_loaded_fleet_uses_nearly_all_of_its_limit(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    database: Database = SQLiteDatabase(tmp_path / "batches.db")
    if kind == "postgres":
        database = PostgresDatabase(request.getfixturevalue("postgres_dsn"), request.getfixturevalue("postgres_schema"))
    limits = json.dumps({"requests_per_minute": 60 * REQUESTS_A_SECOND})
    with children() as start:

        def process(name: str) -> Child:
            return start(
                Job(
                    process=name,
                    folder=str(tmp_path),
                    store=database.place,
                    scenario="fleet",
                    documents=SECONDS * REQUESTS_A_SECOND,
                    concurrency=100,
                    pace=0.0,
                    limits=limits,
                )
            )

        processes = [process(name) for name in ("one", "two", "three")]
        await until(lambda: all(child.marks("called") for child in processes), "all processes to call")
        began = CLOCK.boot()
        await asyncio.sleep(SECONDS / 2)
        assert processes[0].kill()
        processes.append(process("four"))
        await asyncio.sleep(SECONDS / 2)
        for child in processes[1:]:
            assert child.kill()
        calls = [(note["at"], 1.0) for child in processes for note in child.marks("called")]
    limit = 60 * REQUESTS_A_SECOND
    most = most_in_a_window(calls)
    loaded = [at for at, _ in calls if began + 10 <= at <= began + SECONDS]
    share = len(loaded) / (SECONDS - 10) / REQUESTS_A_SECOND
    print(f"{kind}: {len(calls)} calls; at most {most:g} of {limit} in a minute; {share:.1%} of the limit")
    assert most <= limit
    assert share >= 0.9
