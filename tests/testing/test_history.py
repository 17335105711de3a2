"""The history checker finds what is wrong: a checker that is silent about everything proves nothing."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic_core import to_json
from tests.processes.children import checker_of, file_in, opened
from tests.processes.workload import PATIENT, Page, document_ids, extract, here
from tests.support import STAGES

from durable_batches import (
    EXTRACTION,
    BatchConfig,
    BatchEvent,
    BatchOrchestrator,
    DocumentRetrying,
    RetryFailed,
    workflow,
)
from durable_batches.clock import SystemClock
from durable_batches.lifecycle import event_data
from durable_batches.lifecycle.batch_core import Definition
from durable_batches.lifecycle.event_data import EventData
from durable_batches.lifecycle.events import decode_event
from durable_batches.lifecycle.records import EventRecord, WorkerId, WorkerRecord
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.sqlite import SQLiteStore
from durable_batches.testing.history.checker import HistoryChecker, HistoryViolation
from durable_batches.testing.history.replay import Replay
from durable_batches.testing.virtual.effects import EffectsLog

pytestmark = pytest.mark.real_time("the history that they look into is made once, by activities that sleep")

DOCUMENTS = 6


@dataclass
class History:
    """A good one, of a batch that was completed."""

    folder: Path
    events: list[BatchEvent]

    @property
    def log(self) -> Path:
        return self.folder / "effects.log"

    def checker(self) -> HistoryChecker:
        checker = checker_of(EffectsLog(self.log))
        checker.acknowledged("batch", document_ids(DOCUMENTS))
        return checker

    def change(self, *statements: str) -> None:
        """Falsify the history."""
        connection = sqlite3.connect(file_in(self.folder))
        with connection:
            for statement in statements:
                cursor = connection.execute(statement)
                assert cursor.rowcount != 0, f"nothing was changed by {statement}"
        connection.close()

    async def promises(
        self, checker: HistoryChecker, *, everyone_left: bool = True, fenced: Sequence[str] = ()
    ) -> set[int]:
        """The numbers of the promises that are found broken."""
        async with opened(file_in(self.folder)) as store:
            violations = await checker.check(store, finished=True, everyone_left=everyone_left, fenced=fenced)
        return {int(violation.partition(":")[0]) for violation in violations}

    def marks(self) -> list[list[object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line]

    def mark(self, *, like: list[object], **changes: object) -> None:
        """Add a mark to the effects log."""
        names = ("process", "batch_id", "document_id", "activity", "key", "attempt", "run", "phase", "at")
        EffectsLog(self.log).write(json.dumps(list((dict(zip(names, like, strict=True)) | changes).values())))


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> History:
    return asyncio.run(_live(tmp_path_factory.mktemp("history")))


async def _live(folder: Path) -> History:
    here.effects, here.pace, here.poison = EffectsLog(folder / "effects.log", "process-1"), 0.001, frozenset()
    events: list[BatchEvent] = []
    async with BatchOrchestrator(extract, store=SQLiteStore(file_in(folder))) as batches:
        await batches.submit(
            [Page(number) for number in range(DOCUMENTS)],
            batch_id="batch",
            document_id=lambda page: f"page-{page.number}",
            config=BatchConfig(concurrency=3, failure_policy=PATIENT),
        )
        events = [event async for event in batches.progress("batch")]
    here.effects.close()
    return History(folder, events)


@pytest.fixture
def history(lived: History, tmp_path: Path) -> History:
    """A copy, to be falsified."""
    shutil.copytree(lived.folder, tmp_path / "history")
    return History(tmp_path / "history", lived.events)


async def test_a_good_history_breaks_no_promise(history: History) -> None:
    checker = history.checker()
    checker.streamed("batch", history.events, ended=True)
    checker.streamed("batch", history.events[7:], after=7, ended=True)
    checker.streamed("batch", history.events[3:9], after=3)
    assert await history.promises(checker) == set()
    assert await history.promises(checker) == set()
    assert checker.stats.runs > 5 * DOCUMENTS
    assert checker.stats.repeated == checker.stats.in_flight == 0


ONE = "WHERE document_id = 'page-3'"


def _event(tag: str, data: str) -> str:
    return f"UPDATE event SET data = CAST({data} AS BLOB) WHERE tag = '{tag}'"


FALSIFICATIONS = [
    (1, f"DELETE FROM execution {ONE}"),
    (1, "UPDATE batch SET total = total + 1"),
    (1, f"DELETE FROM outcome WHERE key = (SELECT key FROM execution {ONE})"),
    (1, "DELETE FROM execution WHERE document_id = ''"),
    (2, "UPDATE batch SET state = 'assembling'"),
    (4, _event("document_started", "replace(data, ',1]', ',2]')")),
    (5, _event("state_changed", "replace(data, 'completed', 'chunking')")),
    (8, "UPDATE event SET tag = 'resolution_completed' WHERE tag = 'resolution_started'"),
    (8, "UPDATE execution SET status = 'failed' WHERE document_id = ''"),
    (9, "DELETE FROM event WHERE seq = 12"),
    (9, "UPDATE batch SET seq = seq + 1"),
    (9, "UPDATE event SET tag = 'document_started' WHERE tag = 'resolution_started'"),
    (9, "UPDATE event SET at = at - 1000000 WHERE seq = 5"),
    (9, "UPDATE event SET tag = 'unheard_of' WHERE tag = 'resolution_started'"),
    (9, "UPDATE event SET tag = 'state_changed', data = CAST('[\"x\", \"y\"]' AS BLOB) WHERE seq = 1"),
    (11, _event("stage_progress", "replace(data, '0.0', '1.0')")),
    (11, _event("batch_completed", "replace(data, '6', '7')")),
    (11, f"UPDATE execution SET attempt = attempt + 1 {ONE}"),
    (11, f"UPDATE execution SET mark = 2 {ONE}"),
    (11, f"UPDATE execution SET crashes = 1 {ONE}"),
    (11, "UPDATE batch SET succeeded = succeeded - 1, failed = failed + 1"),
    (11, "UPDATE batch SET free = 1"),
    (14, f"UPDATE execution SET status = 'running', owner = 'nobody' {ONE}"),
]


@pytest.mark.parametrize(("promise", "statement"), FALSIFICATIONS)
async def test_a_falsified_store_is_found_out(history: History, promise: int, statement: str) -> None:
    history.change(statement)
    assert promise in await history.promises(history.checker())


CHANGES = [
    (1, "DELETE FROM batch"),
    (3, "UPDATE activity SET payload = CAST(replace(payload, '1', '2') AS BLOB) WHERE key LIKE 'split:%'"),
    (3, "UPDATE activity SET payload = CAST(replace(payload, 'judge', 'jury') AS BLOB) WHERE failed"),
    (3, "DELETE FROM activity WHERE key LIKE 'measure:%'"),
    (3, "DELETE FROM activity WHERE failed"),
    (3, "UPDATE outcome SET payload = CAST(replace(payload, '1', '2') AS BLOB)"),
    (9, "UPDATE event SET at = at + 1 WHERE seq = 5"),
]


@pytest.mark.parametrize(("promise", "statement"), CHANGES)
async def test_what_changes_between_two_looks_is_found_out(history: History, promise: int, statement: str) -> None:
    checker = history.checker()
    assert await history.promises(checker) == set()
    history.change(statement)
    assert promise in await history.promises(checker)


class RefusedError(Exception):
    pass


@workflow(EXTRACTION)
async def refuse(page: Page) -> None:
    raise RefusedError


@pytest.fixture
async def asleep(tmp_path: Path) -> History:
    """A batch with nothing to claim for an hour: its document failed, and waits."""
    config = BatchConfig(concurrency=3, failure_policy=RetryFailed(max_attempts=2, backoff=timedelta(hours=1)))
    async with BatchOrchestrator(refuse, store=SQLiteStore(file_in(tmp_path))) as batches:
        await batches.submit([Page(0)], batch_id="batch", document_id=lambda page: f"page-{page.number}", config=config)
        async for event in batches.progress("batch"):
            if isinstance(event, DocumentRetrying):
                break
    return History(tmp_path, [])


async def promises_of(history: History) -> set[int]:
    async with opened(file_in(history.folder)) as store:
        violations = await HistoryChecker().check(store)
    return {int(violation.partition(":")[0]) for violation in violations}


async def test_claims_may_pass_a_batch_by_until_something_is_due(asleep: History) -> None:
    assert await promises_of(asleep) == set()


@pytest.mark.parametrize("wrong", ["next_due = NULL", "next_due = next_due + 1"])
async def test_a_batch_that_claims_pass_by_for_too_long_is_found_out(asleep: History, wrong: str) -> None:
    asleep.change(f"UPDATE batch SET {wrong}")
    assert await promises_of(asleep) == {2}


async def test_a_document_that_was_never_stored_is_found_out(history: History) -> None:
    checker = history.checker()
    checker.acknowledged("batch", document_ids(DOCUMENTS + 1))
    assert 1 in await history.promises(checker)


async def test_an_acknowledged_batch_that_is_not_there_is_found_out(history: History) -> None:
    checker = history.checker()
    checker.acknowledged("another", ["page-0"])
    assert await history.promises(checker) == {1}


async def test_a_recorded_activity_that_runs_again_is_found_out(history: History) -> None:
    checker = history.checker()
    await history.promises(checker)
    split = next(mark for mark in history.marks() if mark[3] == "split")
    history.mark(like=split, process="process-2", run="process-2.1", phase="start")
    # In itself (6), in a process that nothing had interrupted the first one for (7), after the end of its batch (5).
    assert {5, 6, 7} <= await history.promises(checker)


async def test_a_recorded_activity_that_runs_again_is_found_out_also_by_a_single_look(history: History) -> None:
    split = next(mark for mark in history.marks() if mark[3] == "split")
    history.mark(like=split, process="process-2", run="process-2.1", phase="start")
    checker = history.checker()
    async with opened(file_in(history.folder)) as store:
        violations = await checker.check(store, interrupted=["process-1"])
    # The interruption excuses the repetition, were it not that the first run was the recorded one.
    assert {violation.partition(":")[0] for violation in violations} == {"6", "8"}


async def test_results_that_were_not_recorded_before_the_next_call_are_found_out(history: History) -> None:
    history.change("DELETE FROM activity WHERE execution % 4294967296 = 4")
    async with opened(file_in(history.folder)) as store:
        violations = await history.checker().check(store, interrupted=["process-1"])
    assert [violation for violation in violations if "lost with 'process-1'" in violation]


async def test_what_began_after_a_copy_was_made_is_not_judged_by_it(history: History) -> None:
    """A failure may be forgotten since, and what it calls recorded is what it was copied with."""
    as_of = SystemClock().boot()
    failed = next(mark for mark in history.marks() if mark[3] == "judge" and mark[7] == "error")
    split = next(mark for mark in history.marks() if mark[3] == "split")
    for mark in (failed, split):
        again = {"process": "process-2", "run": f"process-2.{mark[3]}", "phase": "start", "attempt": 1}
        history.mark(like=mark, at=as_of + 1, **again)
    async with opened(file_in(history.folder)) as store:
        copied_before = await history.checker().check(store, as_of=as_of)
        copied_after = await history.checker().check(store, as_of=as_of + 2)
    # That nothing begins after the resolver (8) is told by the log alone.
    assert {violation[0] for violation in copied_before} == {"8"}
    assert {violation[0] for violation in copied_after} == {"6", "7", "8"}


async def test_a_fenced_process_that_begins_what_another_has_begun_is_found_out(history: History) -> None:
    split = next(mark for mark in history.marks() if mark[3] == "split")
    history.mark(like=split, process="process-2", run="process-2.1", phase="start")
    assert await history.promises(history.checker(), fenced=["process-2"]) == {19}
    # But where it was the first one whose lease had run out, the second may have taken over.
    async with opened(file_in(history.folder)) as store:
        await history.checker().verify(store, fenced=["process-1", "process-2"])


async def test_a_fenced_process_that_tries_again_what_another_has_begun_is_found_out(history: History) -> None:
    first = next(mark for mark in history.marks() if mark[3] == "judge" and mark[7] == "start" and mark[5] == 2)
    assert isinstance(first[8], float)
    lines = history.log.read_text().splitlines()
    place = next(index for index, line in enumerate(lines) if line and json.loads(line) == first)
    between = json.dumps(["process-2", *first[1:5], 1, "process-2.1", "start", first[8] - 1e-6])
    history.log.write_text("\n".join([*lines[:place], between, *lines[place:]]) + "\n")
    assert await history.promises(history.checker(), fenced=["process-1", "process-2"]) == {19}


@pytest.mark.parametrize(
    ("phases", "broken"), [(["error"], set[str]()), (["end"], set[str]()), (["end", "end"], {"6", "7"})]
)
async def test_a_result_may_come_late_when_its_call_was_begun_elsewhere(
    history: History, phases: list[str], broken: set[str]
) -> None:
    """By a process that failed in vain, or that was at it; but not by two that came to a result."""
    mine = next(mark for mark in history.marks() if mark[3] == "stumble" and mark[7] == "end")
    lines = history.log.read_text().splitlines()
    place = 1 + next(index for index, line in enumerate(lines) if line and json.loads(line) == mine)
    between = [
        json.dumps(["process-2", *mine[1:6], f"process-2.{number}", each, mine[8]])
        for number, phase in enumerate(phases)
        for each in ("start", phase)
    ]
    history.log.write_text("\n".join([*lines[:place], *between, *lines[place:]]) + "\n")
    async with opened(file_in(history.folder)) as store:
        violations = await history.checker().check(store, fenced=["process-1"])
    assert {violation[0] for violation in violations} == broken


async def test_a_result_from_nowhere_is_found_out(history: History) -> None:
    history.change("""UPDATE activity SET payload = CAST('{"run":"process-9.1"}' AS BLOB) WHERE key LIKE 'split:%'""")
    assert await history.promises(history.checker()) == {4}


async def test_too_many_tries_are_found_out(history: History) -> None:
    judge = next(mark for mark in history.marks() if mark[3] == "judge" and mark[5] == 2 and mark[7] == "error")
    history.mark(like=judge, attempt=3, run="process-1.900", phase="start")
    assert 7 in await history.promises(history.checker())


async def test_an_attempt_of_a_process_that_stood_still_is_no_run_of_its_own(history: History) -> None:
    """Another process has begun the call anew meanwhile; the next attempt still belongs to the first run."""
    first = next(mark for mark in history.marks() if mark[3] == "judge" and mark[7] == "start" and mark[5] == 2)
    lines = history.log.read_text().splitlines()
    place = next(index for index, line in enumerate(lines) if line and json.loads(line) == first)
    between = json.dumps(["process-2", *first[1:5], 1, "process-2.1", "start", first[8]])
    history.log.write_text("\n".join([*lines[:place], between, *lines[place:]]) + "\n")
    async with opened(file_in(history.folder)) as store:
        await history.checker().verify(store, fenced=["process-1", "process-2"])


async def test_a_document_after_the_resolver_is_found_out(history: History) -> None:
    marks = history.marks()
    history.mark(like=marks[0], key="another", run="process-1.901", phase="start")
    assert 8 in await history.promises(history.checker())


async def test_streams_are_held_against_the_log(history: History) -> None:
    for events, after, ended in (
        (history.events[1:], 0, True),
        (history.events[:5] + history.events[6:], 0, True),
        (history.events[:5] + history.events[4:], 0, True),
        (history.events[:-1], 0, True),
    ):
        checker = history.checker()
        checker.streamed("batch", events, after=after, ended=ended)
        assert await history.promises(checker) == {10}


async def test_cancels_are_held_against_the_end(history: History) -> None:
    checker = history.checker()
    checker.cancel_answered("batch", False)
    assert await history.promises(checker) == set()
    checker.cancel_answered("batch", True, process="process-9", at=1e12)
    assert await history.promises(checker) == {13}


async def test_work_after_an_acknowledged_cancel_is_found_out(history: History) -> None:
    checker = history.checker()
    checker.cancel_answered("batch", True, process="process-1", at=0.0)
    assert await history.promises(checker) == {12, 13}


async def test_a_worker_that_stays_behind_is_found_out(history: History) -> None:
    async with opened(file_in(history.folder)) as store:
        await store.register(WorkerRecord(WorkerId("ghost"), "", "", 1, "", frozenset()), 1_000_000)
        checker = history.checker()
        await checker.verify(store)
        with pytest.raises(HistoryViolation, match="ghost") as caught:
            await checker.verify(store, everyone_left=True)
    assert len(caught.value.violations) == 1


async def test_the_log_of_another_history_is_noticed(history: History) -> None:
    marks = history.marks()
    history.log.unlink()
    for number, mark in enumerate(marks):
        history.mark(like=mark, key=f"{number}")
    async with opened(file_in(history.folder)) as store:
        violations = await history.checker().check(store)
    assert any("another history's" in violation for violation in violations)


async def test_a_line_that_a_killed_process_did_not_finish_is_passed_over(history: History) -> None:
    before = len(EffectsLog(history.log).read())
    with history.log.open("ab") as file:
        file.write(b'\n["process-1","ba')
    EffectsLog(history.log).write('["another"]')
    assert len(EffectsLog(history.log).read()) == before


def _replayed(*events: tuple[int, EventData]) -> list[str]:
    """The problems of a history of two documents; each event has its time, in seconds."""
    replay = Replay(Definition(STAGES.tags, False, BatchConfig()))
    first = 0, event_data.batch_created(workflow="run", version="1", total=2)
    for seq, (seconds, (tag, fields)) in enumerate([first, *events], start=1):
        record = EventRecord(BatchId("batch"), seq, seconds * 1_000_000, tag, to_json(fields))
        replay.take(decode_event(record))
    return replay.problems


def test_what_is_started_in_spite_of_a_pause_is_found() -> None:
    def paused(until: int) -> EventData:
        return event_data.batch_paused(reason="quota", note="", until=until * 1_000_000)

    resumed = event_data.batch_resumed(reason="quota")
    one = event_data.document_started(document_id="one", attempt=1)
    two = event_data.document_started(document_id="two", attempt=1)
    released = event_data.document_released(document_id="one", reason="paused", crashes=0)
    assert _replayed((0, paused(30)), (30, one), (31, resumed), (31, two)) == []
    assert _replayed((0, paused(30)), (30, one), (31, released), (31, paused(91)), (91, two)) == []
    (early,) = _replayed((0, paused(30)), (29, one))
    assert early.startswith("16: event 3: 'one' was started while the batch was paused until ")
    (second,) = _replayed((0, paused(30)), (30, one), (30, two))
    assert second == "16: event 4: 'two' was started while 'one' looked"
    assert _replayed((0, resumed)) == ["16: event 2: batch_resumed, and it was not paused"]
    # An operator's has no end by time, and goes on when a provider serves again.
    by_operator = event_data.batch_paused(reason="operator", note="", until=None)
    assert _replayed((0, by_operator), (9, event_data.batch_resumed(reason="operator")), (9, one)) == []
    (early,) = _replayed((0, by_operator), (0, paused(30)), (31, resumed), (99, one))
    assert early == "16: event 5: 'one' was started while the batch was paused until None (operator)"
