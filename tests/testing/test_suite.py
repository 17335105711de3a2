"""The conformance suite finds what it is there to find: one store with one fault for each rule that it tests."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import pytest
from tests.support import turns

from durable_batches import BatchId, MemoryStore
from durable_batches.clock import Clock
from durable_batches.errors import DuplicateDocumentError, DurableBatchesError
from durable_batches.lifecycle.commands import Command, Discard
from durable_batches.lifecycle.facts import Fact
from durable_batches.lifecycle.planning import Candidates, Writes
from durable_batches.lifecycle.records import (
    BatchRecord,
    CheckpointRecord,
    ClaimRequest,
    Committed,
    DocumentRecord,
    EventRecord,
    ExecutionRecord,
    ExecutionStatus,
    Micros,
    NewDocument,
    WorkerId,
)
from durable_batches.stores import BatchQuery, Store
from durable_batches.stores.protocol import Expired
from durable_batches.testing import ManualClock, StoreConformance
from durable_batches.testing.conformance.scene import Scene


class DoesNotFence(MemoryStore):
    def _release(self, gone: Collection[WorkerId], *, crashed: bool) -> Writes:
        writes = super()._release(gone, crashed=crashed)
        for worker in gone:
            if worker in self._workers:
                self._workers[worker].alive = True
        return writes


class AppliesRepeats(MemoryStore):
    async def commit(
        self, worker: WorkerId, number: int, facts: Sequence[Fact], claim: ClaimRequest | None = None
    ) -> Committed:
        if worker in self._workers and self._workers[worker].commits == number:
            self._workers[worker].commits -= 1
        return await super().commit(worker, number, facts, claim)


class ForgetsItsAnswers(MemoryStore):
    async def commit(
        self, worker: WorkerId, number: int, facts: Sequence[Fact], claim: ClaimRequest | None = None
    ) -> Committed:
        committed = await super().commit(worker, number, facts, claim)
        self._workers[worker].last = Committed()
        return committed


class CountsNothing(MemoryStore):
    async def commit(
        self, worker: WorkerId, number: int, facts: Sequence[Fact], claim: ClaimRequest | None = None
    ) -> Committed:
        if worker in self._workers and self._workers[worker].commits != number:
            self._workers[worker].commits = number - 1
        return await super().commit(worker, number, facts, claim)


class RenewsNothing(MemoryStore):
    async def commit(
        self, worker: WorkerId, number: int, facts: Sequence[Fact], claim: ClaimRequest | None = None
    ) -> Committed:
        until = self._workers[worker].lease_until
        committed = await super().commit(worker, number, facts, claim)
        self._workers[worker].lease_until = until
        return committed


class ClaimsEarly(MemoryStore):
    def _candidates(self, request: ClaimRequest, now: Micros) -> list[Candidates]:
        return super()._candidates(request, now + 3_600_000_000)


class ServesOneBatch(MemoryStore):
    def _candidates(self, request: ClaimRequest, now: Micros) -> list[Candidates]:
        return super()._candidates(request, now)[:1]


class ClaimsInAnyOrder(MemoryStore):
    def _first_due(self, batch: Any, limit: int, now: Micros) -> list[ExecutionRecord]:
        return super()._first_due(batch, limit, now)[::-1]


class ClaimsByTimeAlone(MemoryStore):
    def _first_due(self, batch: Any, limit: int, now: Micros) -> list[ExecutionRecord]:
        found = super()._first_due(batch, limit, now)
        return sorted(found, key=lambda execution: (execution.due or 0, execution.position))


class SleepsForEver(MemoryStore):
    def _has_work(self, batch: Any, now: Micros) -> bool:
        return batch.record.free > 0 and super()._has_work(batch, now)


class ForgetsTheSleepers(MemoryStore):
    def _next_due(self, request: ClaimRequest, now: Micros) -> Micros | None:
        due = super()._next_due(request, now)
        return None if any(batch.record.next_due is not None for batch in self._batches.values()) else due


class ForgetsWhatIsHeld(MemoryStore):
    def _claim(self, worker: WorkerId, number: int, request: ClaimRequest, committed: Committed) -> Committed:
        return super()._claim(worker, number, request._replace(held=0), committed)


class ClaimsEveryWorkflow(MemoryStore):
    def _claim(self, worker: WorkerId, number: int, request: ClaimRequest, committed: Committed) -> Committed:
        every = {(batch.record.workflow, batch.record.version) for batch in self._batches.values()}
        return super()._claim(worker, number, request._replace(workflows=frozenset(every)), committed)


class LeavesNothingOut(MemoryStore):
    def _claim(self, worker: WorkerId, number: int, request: ClaimRequest, committed: Committed) -> Committed:
        return super()._claim(worker, number, request._replace(without=frozenset()), committed)


class NeverLooksAgain(MemoryStore):
    def _next_due(self, request: ClaimRequest, now: Micros) -> Micros | None:
        return None


class TakesAllCheckpoints(MemoryStore):
    def _claim(self, worker: WorkerId, number: int, request: ClaimRequest, committed: Committed) -> Committed:
        return super()._claim(worker, number, request._replace(checkpoints=1_000), committed)


class _Writes(MemoryStore):
    """Writes only a part of what it should."""

    def _apply(self, writes: Writes) -> None:
        super()._apply(self.part(writes))

    def part(self, writes: Writes) -> Writes:
        raise NotImplementedError


class LosesTurns(_Writes):
    def part(self, writes: Writes) -> Writes:
        return writes._replace(batches=[replace(record, served=0) for record in writes.batches])


class SleepsTooLong(_Writes):
    """Knows nothing of what is due beside the executions that a claim takes."""

    @staticmethod
    def _next_due_beside(batch: Any, executions: Sequence[ExecutionRecord]) -> Micros | None:
        return None

    def part(self, writes: Writes) -> Writes:
        return writes


class NeverSleeps(_Writes):
    def part(self, writes: Writes) -> Writes:
        awake = [
            record if record.next_due is None else replace(record, free=1, next_due=None) for record in writes.batches
        ]
        return writes._replace(batches=awake)


class LosesMarks(_Writes):
    def part(self, writes: Writes) -> Writes:
        return writes._replace(marks=())


class LosesOutcomes(_Writes):
    def part(self, writes: Writes) -> Writes:
        return writes._replace(outcomes=())


class LosesEvents(_Writes):
    def part(self, writes: Writes) -> Writes:
        return writes._replace(events=writes.events[:1])


class LosesBatches(_Writes):
    def part(self, writes: Writes) -> Writes:
        return writes._replace(batches=writes.batches[:1])


class LosesExecutions(_Writes):
    def part(self, writes: Writes) -> Writes:
        return writes._replace(executions=writes.executions[:1])


class ForgetsNothing(_Writes):
    def part(self, writes: Writes) -> Writes:
        return writes._replace(forget=())


class DropsWhatWasPaid(_Writes):
    def part(self, writes: Writes) -> Writes:
        return writes._replace(checkpoints=()) if writes.refused else writes


class TheLastRecordWins(MemoryStore):
    def _apply(self, writes: Writes) -> None:
        for write in writes.checkpoints:
            self._batches[write.batch_id].checkpoints.get(write.position, {}).pop(write.key, None)
        super()._apply(writes)


class DiscardsTheRecordOnly(MemoryStore):
    async def control(self, batch_id: BatchId, command: Command) -> Committed:
        kept = self._batches.get(batch_id)
        committed = await super().control(batch_id, command)
        self.left = kept if isinstance(command, Discard) and committed.applied else None
        return committed

    async def create(self, batch: BatchRecord) -> BatchRecord | None:
        created = await super().create(batch)
        left = getattr(self, "left", None)
        if left is not None:
            self._batches[batch.batch_id].executions.update(left.executions)
        return created


class CreatesAgain(MemoryStore):
    async def create(self, batch: BatchRecord) -> BatchRecord | None:
        existing = await super().create(batch)
        if existing is not None:
            self._batches[batch.batch_id].record = batch
        return existing


class IgnoresCase(MemoryStore):
    async def create(self, batch: BatchRecord) -> BatchRecord | None:
        return await super().create(replace(batch, batch_id=BatchId(batch.batch_id.casefold())))


class AddsHalf(MemoryStore):
    async def add(self, batch_id: BatchId, loader: WorkerId, documents: Sequence[NewDocument]) -> None:
        try:
            await super().add(batch_id, loader, documents)
        except DuplicateDocumentError:
            await super().add(batch_id, loader, documents[:1])
            raise


class AddsForAnybody(MemoryStore):
    async def add(self, batch_id: BatchId, loader: WorkerId, documents: Sequence[NewDocument]) -> None:
        batch = self._batches.get(batch_id)
        await super().add(batch_id, loader if batch is None else batch.record.loader or loader, documents)


class TakesBytesForText(MemoryStore):
    async def add(self, batch_id: BatchId, loader: WorkerId, documents: Sequence[NewDocument]) -> None:
        text = [document._replace(input=document.input.decode(errors="replace").encode()) for document in documents]
        await super().add(batch_id, loader, text)


class ShowsLoading(MemoryStore):
    async def batches(self, query: BatchQuery, *, after: BatchId | None = None, limit: int) -> Sequence[BatchRecord]:
        return [batch.record for batch in self._batches.values()][:limit]


class ForgetsTheQuery(MemoryStore):
    async def batches(self, query: BatchQuery, *, after: BatchId | None = None, limit: int) -> Sequence[BatchRecord]:
        return await super().batches(replace(query, metadata={}), after=after, limit=limit)


class RepeatsTheFirstPage(MemoryStore):
    async def events(self, batch_id: BatchId, *, after: int, limit: int) -> Sequence[EventRecord]:
        return await super().events(batch_id, after=max(after - 1, 0), limit=limit)


class ShowsTheResolver(MemoryStore):
    async def documents(
        self,
        batch_id: BatchId,
        *,
        statuses: Collection[ExecutionStatus] = (),
        after: int = -1,
        limit: int,
        inputs: bool = True,
    ) -> Sequence[DocumentRecord]:
        after = min(after, -2) if after < 0 else after
        return await super().documents(batch_id, statuses=statuses, after=after, limit=limit, inputs=inputs)


class FiltersAfterwards(MemoryStore):
    async def documents(
        self,
        batch_id: BatchId,
        *,
        statuses: Collection[ExecutionStatus] = (),
        after: int = -1,
        limit: int,
        inputs: bool = True,
    ) -> Sequence[DocumentRecord]:
        page = await super().documents(batch_id, after=after, limit=limit, inputs=inputs)
        return [found for found in page if not statuses or found.execution.status in statuses]


class SortsLikePeople(MemoryStore):
    async def checkpoints(
        self, batch_id: BatchId, position: int, *, after: str = "", limit: int
    ) -> Sequence[CheckpointRecord]:
        found = await super().checkpoints(batch_id, position, limit=1_000)
        later = [item for item in found if item.key.casefold() > after.casefold()]
        return sorted(later, key=lambda item: item.key.casefold())[:limit]


class CountsCrashesOfTheLiving(MemoryStore):
    async def leave(self, worker: WorkerId) -> Sequence[EventRecord]:
        return self._release([worker], crashed=True).events


class FreesEverybody(MemoryStore):
    async def expire(self, *, dead: Collection[WorkerId] = ()) -> Expired:
        return await super().expire(dead=list(self._workers) if dead else ())


class NeverWakes(MemoryStore):
    def _notify(self) -> None:
        pass


class SleepsThroughWhatIsThere(MemoryStore):
    def _has_moved(self, seen: Mapping[BatchId, int]) -> bool:
        return bool(self._waiters) and super()._has_moved(seen)


FAULTS: Final[dict[type[MemoryStore], str]] = {
    DoesNotFence: "test_the_dead_cannot_write",
    AppliesRepeats: "test_the_same_number_again_changes_nothing",
    ForgetsItsAnswers: "test_the_same_number_again_returns_the_claims",
    CountsNothing: "test_a_number_out_of_turn_is_refused",
    RenewsNothing: "test_a_commit_renews_the_lease",
    ClaimsEarly: "test_a_retry_waits_for_its_time",
    LosesTurns: "test_a_batch_of_many_does_not_starve_one_of_few",
    ServesOneBatch: "test_an_unused_share_goes_to_the_others",
    ClaimsInAnyOrder: "test_documents_come_in_submission_order",
    ClaimsByTimeAlone: "test_a_retry_is_not_held_up_by_its_batch",
    SleepsForEver: "test_a_batch_with_nothing_due_sleeps",
    ForgetsTheSleepers: "test_a_sleeping_batch_has_its_deadline",
    SleepsTooLong: "test_a_batch_sleeps_until_the_first_of_many",
    NeverSleeps: "test_a_resolver_sleeps_until_its_retry",
    ForgetsWhatIsHeld: "test_suspects_come_alone",
    ClaimsEveryWorkflow: "test_only_the_workers_workflows_are_claimed",
    LeavesNothingOut: "test_a_claim_takes_only_from_the_batches_that_it_names",
    NeverLooksAgain: "test_a_claim_knows_when_to_look_again",
    TakesAllCheckpoints: "test_checkpoints_come_with_the_claim",
    LosesMarks: "test_entering_a_stage_marks_the_document",
    LosesOutcomes: "test_success_ends_the_document",
    LosesEvents: "test_the_first_claim_starts_the_batch",
    LosesBatches: "test_one_commit_may_be_about_several_batches",
    LosesExecutions: "test_the_last_document_completes_the_batch",
    ForgetsNothing: "test_forgotten_failures_are_gone",
    DropsWhatWasPaid: "test_what_was_paid_for_is_kept",
    TheLastRecordWins: "test_the_first_record_wins",
    DiscardsTheRecordOnly: "test_discarding_leaves_nothing",
    CreatesAgain: "test_create_inserts_once",
    IgnoresCase: "test_awkward_batch_ids_are_told_apart",
    AddsHalf: "test_an_id_of_an_earlier_chunk_is_refused",
    AddsForAnybody: "test_only_the_loader_may_add",
    TakesBytesForText: "test_payloads_are_kept_to_the_byte",
    ShowsLoading: "test_an_unsealed_batch_is_invisible",
    ForgetsTheQuery: "test_batches_are_filtered",
    RepeatsTheFirstPage: "test_events_are_paged_by_number",
    ShowsTheResolver: "test_documents_are_paged_by_position",
    FiltersAfterwards: "test_documents_are_filtered_by_status",
    SortsLikePeople: "test_checkpoints_are_paged_by_key",
    CountsCrashesOfTheLiving: "test_leaving_frees_and_counts_no_crash",
    FreesEverybody: "test_only_the_dead_lose_what_they_hold",
    NeverWakes: "test_wait_wakes_for_an_event",
    SleepsThroughWhatIsThere: "test_wait_returns_when_there_is_news_already",
}
PARAMETERS: Final[dict[str, dict[str, object]]] = {
    "test_a_number_out_of_turn_is_refused": {"number": 5},
    "test_payloads_are_kept_to_the_byte": {"payload": b"\xff"},
}


class Suite(StoreConformance):
    """The suite, called by hand."""

    __test__ = False

    def __init__(self, kind: type[MemoryStore]) -> None:
        self.kind = kind

    async def make_store(self, clock: Clock) -> Store:
        return self.kind(clock=clock)

    async def run(self, name: str) -> None:
        self.clock = ManualClock()
        scene = Scene(await self.make_store(self.clock), self.pass_time)
        await getattr(self, name)(scene, **PARAMETERS.get(name, {}))


@pytest.mark.parametrize("name", sorted(set(FAULTS.values())))
async def test_a_store_without_a_fault_passes(name: str) -> None:
    await Suite(MemoryStore).run(name)


@pytest.mark.parametrize(("kind", "name"), FAULTS.items(), ids=[kind.__name__ for kind in FAULTS])
async def test_a_fault_is_found(kind: type[MemoryStore], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind is SleepsThroughWhatIsThere:
        # Rather than ten seconds, which the suite gives to a slow store.
        monkeypatch.setattr(asyncio, "wait_for", _briefly)
    with pytest.raises((AssertionError, DurableBatchesError, pytest.fail.Exception, TimeoutError)):
        await Suite(kind).run(name)


async def _briefly(awaitable: Any, _: float) -> Any:
    task = asyncio.ensure_future(awaitable)
    await turns(100)
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
        raise TimeoutError
    return task.result()


def test_every_test_says_its_rule() -> None:
    tests = [name for name in dir(StoreConformance) if name.startswith("test_")]
    assert len(tests) > 100
    for name in tests:
        rule = getattr(StoreConformance, name).__doc__ or ""
        assert rule.strip(), f"{name} has no docstring"
        assert "\n\n" not in rule, f"{name}: one sentence"


@pytest.mark.processes
def test_it_runs_where_asyncio_tests_are_marked(tmp_path: Any) -> None:
    """Also under pytest-asyncio's strict mode, which an adapter's project may have."""
    module = tmp_path / "test_store.py"
    module.write_text(
        "from durable_batches.stores import MemoryStore\n"
        "from durable_batches.testing import StoreConformance\n"
        "class TestStore(StoreConformance):\n"
        "    async def make_store(self, clock):\n"
        "        return MemoryStore(clock=clock)\n"
    )
    arguments = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "asyncio_mode=strict",
        "-k",
        "OpeningConformance or opening or create",
    ]
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, str(module)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
    assert " passed" in finished.stdout


@pytest.mark.processes
def test_without_pytest_it_says_what_to_install() -> None:
    program = (
        "import sys\n"
        "sys.modules['pytest'] = None\n"
        "import durable_batches.testing as testing\n"
        "testing.ManualClock()\n"
        "try:\n"
        "    testing.StoreConformance\n"
        "except ImportError as error:\n"
        "    print(error.code, error)\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout == (
        "missing-extra 'pytest' is not installed; the conformance suite needs pytest and pytest-asyncio: "
        "pip install 'durable-batches[testing]'\n"
    )
