"""Documents that kill their process: found out by what they have in common with each crash, and given up alone.

And those that were only there: they run again at once, all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.processes.books import LINES
from tests.processes.children import Child, checker_of, children
from tests.processes.clocks import SharedClock
from tests.processes.databases import Database
from tests.processes.workload import RESOLVER, Job, document_ids, tally_of

from durable_batches import (
    BatchId,
    DocumentCompleted,
    DocumentFailed,
    DocumentReleased,
    DocumentRetrying,
    DocumentStarted,
)
from durable_batches.lifecycle.events import decode_event
from durable_batches.lifecycle.failures import DocumentFailureRecord
from durable_batches.lifecycle.records import RESOLVER_POSITION
from durable_batches.stores import Store
from durable_batches.testing.history.checker import HistoryChecker
from durable_batches.testing.virtual.effects import EffectsLog
from durable_batches.worker.process_identity import is_dead

DOCUMENTS = 16
A_MINUTE, AN_HOUR = 60.0, 3_600.0
"""In seconds."""
MOST_STARTS = 40


async def _unnoticed(_: Child) -> None:
    """Nothing happens when it has died."""


async def _restart_until_ended(
    folder: Path,
    database: Database,
    poison: tuple[int, ...],
    max_crashes: int,
    *,
    before: Sequence[str] = (),
    died: Callable[[Child], Awaitable[None]] = _unnoticed,
    **job: Any,
) -> tuple[int, dict[str, object]]:
    """As a supervisor does: start it again whenever it dies. Returns how often it died, and the result."""
    checker = checker_of(EffectsLog(folder / "effects.log"))
    with children() as start:
        for number in range(MOST_STARTS):
            if "namespace" in job:
                job["namespace"] = f"pid:[{number}]"
            child = start(
                Job(
                    process=f"process-{number}",
                    folder=str(folder),
                    store=database.place,
                    documents=DOCUMENTS,
                    max_crashes=max_crashes,
                    poison=poison,
                    pace=0.003,
                    **job,
                ),
                before,
            )
            if await child.ended() == 0:
                result = await child.result()
                async with database.open() as store:
                    await checker.verify(store, finished=True, everyone_left=True)
                return number, result
            if child.marks("submitted"):
                checker.acknowledged("batch", document_ids(DOCUMENTS))
            async with database.at_rest() as store:
                await checker.verify(store, interrupted=[child.job.process])
            await died(child)
    raise AssertionError(f"still crashing after {MOST_STARTS} starts")


@pytest.mark.parametrize(
    ("poison", "max_crashes"),
    [((5,), 3), ((0, 7), 3), ((3, 4, 11), 2), ((5,), 1)],
    ids=["one-poisoned", "two-poisoned", "three-poisoned", "no-patience"],
)
async def test_poisoned_documents_fail_and_the_others_complete(
    tmp_path: Path, database: Database, poison: tuple[int, ...], max_crashes: int
) -> None:
    deaths, result = await _restart_until_ended(tmp_path, database, poison, max_crashes)
    innocent = [number for number in range(DOCUMENTS) if number not in poison]
    assert result["state"] == "completed"
    assert result["resolution"] == vars(tally_of(innocent))
    # Each of them dies alone in the end; before that they share some of their crashes.
    assert max(max_crashes, len(poison)) <= deaths <= len(poison) * (max_crashes + 2)
    async with database.open() as store:
        await _check_failures(store, {f"page-{number}" for number in poison}, max_crashes)
        await _check_last_crashes(store)


@pytest.mark.parametrize("real", [False, True], ids=["pretended", "real"])
async def test_a_poisoned_document_is_found_though_no_death_can_be_seen(
    tmp_path: Path, database: Database, request: pytest.FixtureRequest, real: bool
) -> None:
    """As in a pod that is killed for its memory: each start is in a process namespace of its own, and leases run out.

    Where the kernel lets no namespaces be made, the processes still say that they are in one.
    """
    clock = SharedClock(tmp_path / "clock")

    async def died(child: Child) -> None:
        async with database.at_rest() as store:
            (record,) = [each for each in await store.workers() if each.worker_id == child.worker]
            assert not is_dead(record), "it is gone, and nobody here can tell"
        clock.advance(AN_HOUR)

    deaths, result = await _restart_until_ended(
        tmp_path,
        database,
        (5,),
        3,
        before=request.getfixturevalue("namespace") if real else (),
        died=died,
        clock=str(clock.path),
        lease=A_MINUTE,
        **({} if real else {"namespace": ""}),
    )
    assert result["state"] == "completed"
    assert result["resolution"] == vars(tally_of([number for number in range(DOCUMENTS) if number != 5]))
    assert 3 <= deaths <= 5
    async with database.open() as store:
        await _check_failures(store, {"page-5"}, 3)


async def test_a_poisoned_resolver_fails_its_batch(tmp_path: Path, database: Database) -> None:
    deaths, result = await _restart_until_ended(tmp_path, database, (RESOLVER,), max_crashes=3)
    assert deaths == 3
    assert result["state"] == "failed"
    async with database.open() as store:
        (document,) = await store.documents(BatchId("batch"), after=RESOLVER_POSITION - 1, limit=1)
    assert document.execution.crashes == 3
    assert document.outcome is not None
    assert DocumentFailureRecord.decode(document.outcome).error_type == "CrashLoopError"


@pytest.mark.parametrize("documents", [100, 400, 1_000])
async def test_one_kill_slows_nothing_down(tmp_path: Path, database: Database, documents: int) -> None:
    """After a kill with this many calls in flight, all of them are in flight at once before the first one returns."""
    with children() as start:
        for number in range(2):
            child = start(
                Job(
                    process=f"process-{number}",
                    folder=str(tmp_path),
                    store=database.place,
                    documents=documents,
                    concurrency=documents,
                    max_in_flight=documents,
                    max_crashes=3,
                    pace=0.0,
                    scenario="crowd",
                    stops=["all in flight"],
                )
            )
            await child.stopped("all in flight")
            assert child.kill()
    async with database.open() as store:
        # The first crash of each; the second one is still to be noticed.
        page = await store.documents(BatchId("batch"), limit=documents, inputs=False)
        assert {(each.execution.crashes, each.execution.alone) for each in page} == {(1, False)}
        assert len(page) == documents


async def test_a_document_and_a_resolver_that_go_on_each_time_are_never_given_up(
    tmp_path: Path, database: Database
) -> None:
    """Sixty recorded steps each, and a process that is killed in every twelfth: more often than `max_crashes`."""
    steps, max_crashes = 12, 2
    effects = EffectsLog(tmp_path / "effects.log")
    checker = HistoryChecker(effects=effects, calls_at_once=1)
    victims: list[str] = []
    with children() as start:
        while True:
            child = start(
                Job(
                    process=f"process-{len(victims)}",
                    folder=str(tmp_path),
                    store=database.place,
                    max_crashes=max_crashes,
                    scenario="book",
                    stops=[f"line: begun#{steps}"],
                )
            )
            if not await child.stopped_or_ended():
                break
            assert child.kill()
            victims.append(child.job.process)
            checker.acknowledged("batch", ["book"])
        result = await child.result()
    assert (result["state"], result["resolution"]) == ("completed", sum(range(LINES)))
    async with database.open() as store:
        await checker.verify(store, interrupted=victims, finished=True, everyone_left=True)
    # Each of them lost the call that it was killed in, and nothing else was paid twice.
    begun = Counter((effect.document_id, effect.key) for effect in effects.read() if effect.phase == "start")
    assert Counter(document_id for document_id, _ in begun) == {"book": LINES, "": LINES}
    assert begun.total() == 2 * LINES + len(victims)
    assert len(victims) == 2 * LINES // (steps - 1)


async def _check_failures(store: Store, poisoned: set[str], max_crashes: int) -> None:
    documents = await store.documents(BatchId("batch"), statuses=["failed"], limit=DOCUMENTS)
    assert {document.execution.document_id for document in documents} == poisoned
    for document in documents:
        assert document.outcome is not None
        assert DocumentFailureRecord.decode(document.outcome).error_type == "CrashLoopError"
        assert document.execution.crashes >= max(max_crashes, 2)


async def _check_last_crashes(store: Store) -> None:
    """Whoever was given up had nothing beside it when it took its process along for the last time."""
    running: set[str] = set()
    failures = 0
    for record in await store.events(BatchId("batch"), after=0, limit=10_000):
        match decode_event(record):
            case DocumentStarted(document_id=document_id):
                running.add(document_id)
            case DocumentFailed(document_id=document_id):
                assert running == {document_id}
                running.remove(document_id)
                failures += 1
            case (
                DocumentCompleted(document_id=document_id)
                | DocumentReleased(document_id=document_id)
                | DocumentRetrying(document_id=document_id)
            ):
                running.remove(document_id)
            case _:
                pass
    assert failures > 0
