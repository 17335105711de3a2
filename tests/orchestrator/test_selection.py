"""Which batches a worker runs: all, its own, or those of a filter; others are left to other workers."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from tests.support import STAGES, at_rest, eventually, moving, opened, within

from durable_batches import (
    BatchConfig,
    BatchFilter,
    BatchId,
    BatchOrchestrator,
    ConfigurationError,
    MemoryStore,
    Store,
    Worker,
    workflow,
)
from durable_batches.lifecycle.commands import Cancel
from durable_batches.stores import Capabilities, ClaimRequest, Micros, WaitsForClaims
from durable_batches.testing import ManualClock
from durable_batches.worker.selection import Selection, SelectionSweep


@workflow(STAGES, name="shout")
async def shout(document: str) -> str:
    return document.upper()


async def submitted(store: Store, batch_id: str, metadata: dict[str, str] | None = None) -> BatchId:
    """Submit a batch that is left unfinished."""
    config = BatchConfig(metadata=metadata or {})
    async with BatchOrchestrator(shout, store=store, max_in_flight=0) as batches:
        return await batches.submit(["a", "b"], batch_id=batch_id, config=config)


async def states(store: Store, *batch_ids: str) -> list[str]:
    async with opened(store):
        found = [await store.batch(BatchId(batch_id)) for batch_id in batch_ids]
    return [record.state for record in found if record is not None]


async def test_by_default_it_runs_what_others_left_unfinished(store: Store) -> None:
    left = await submitted(store, "left")
    async with BatchOrchestrator(shout, store=store) as batches:
        assert (await within(batches.result(left))).counts.succeeded == 2


async def test_its_own_batches_and_no_others(store: Store) -> None:
    left = await submitted(store, "left")
    attached = await submitted(store, "attached")
    worker = Worker(store, batches="mine")
    async with BatchOrchestrator(shout, worker=worker) as batches:
        own = await batches.submit(["c"])
        assert (await within(batches.result(own))).counts.succeeded == 1
        assert await batches.submit(["never read"], batch_id=attached) == attached
        assert (await within(batches.result(attached))).counts.succeeded == 2
        await at_rest(worker)
        assert (await batches.snapshot(left)).counts.running == 0
    assert await states(store, left, attached, own) == ["pending", "completed", "completed"]


async def test_what_it_attaches_to_while_it_waits_is_run_at_once(store: Store) -> None:
    """Not when its wait for work of other batches ends."""
    attached = await submitted(store, "attached")
    async with BatchOrchestrator(shout, worker=Worker(store, batches="mine")) as batches:
        own = await batches.submit(["c"])
        await within(batches.result(own))
        await eventually(lambda: not batches.worker.session.scheduler.wants_work)
        await batches.submit([], batch_id=attached)
        assert (await within(batches.result(attached), seconds=4)).counts.succeeded == 2


async def test_batches_with_an_id_or_all_labels(store: Store) -> None:
    named = await submitted(store, "named")
    labelled = await submitted(store, "labelled", {"team": "a", "kind": "b"})
    others = [await submitted(store, "other"), await submitted(store, "half", {"team": "a"})]
    wanted = BatchFilter(batch_ids=[named], metadata={"kind": "b", "team": "a"})
    worker = Worker(store, batches=wanted)
    async with BatchOrchestrator(shout, worker=worker) as batches:
        for batch_id in (named, labelled):
            assert (await within(batches.result(batch_id))).counts.succeeded == 2
        # Also what comes later.
        config = BatchConfig(metadata={"kind": "b", "team": "a", "more": ""})
        assert (await within(batches.run(["c"], config=config))).counts.succeeded == 1
        unwanted = await batches.submit(["d"])
        await at_rest(worker)
    assert await states(store, *others, unwanted) == ["pending"] * 3


async def test_batches_with_a_label_and_of_no_id(store: Store) -> None:
    labelled = await submitted(store, "labelled", {"team": "a", "kind": "b"})
    other = await submitted(store, "other", {"team": "b"})
    worker = Worker(store, batches=BatchFilter(metadata={"team": "a"}))
    async with BatchOrchestrator(shout, worker=worker) as batches:
        assert (await within(batches.result(labelled))).counts.succeeded == 2
        await at_rest(worker)
    assert await states(store, other) == ["pending"]


async def test_an_own_batch_that_ended_is_forgotten(store: Store) -> None:
    """Or each claim of a service would name all batches that it has ever submitted."""
    worker = Worker(store, batches="mine")
    async with BatchOrchestrator(shout, worker=worker) as batches:
        await within(batches.run(["a"]))
        # The result is read from the store, perhaps before the worker hears that its commit is done.
        await eventually(lambda: worker._selection.is_empty)
        with pytest.raises(RuntimeError):
            await batches.submit(failing(), batch_id="failing")
        assert worker._selection.is_empty
        await batches.submit([], batch_id=await finished(batches))
        await eventually(lambda: worker._selection.is_empty)


async def finished(batches: BatchOrchestrator[str, str, Any, None]) -> BatchId:
    return (await within(batches.run(["a"], batch_id="finished"))).batch_id


def failing() -> Any:
    yield "a"
    raise RuntimeError("half-way")


async def test_own_batches_that_others_end_are_forgotten(store: Store) -> None:
    clock = ManualClock()
    selection = Selection("mine")
    sweep = SelectionSweep(selection, store, clock)
    async with opened(store):
        for batch_id in ("ended", "unfinished"):
            selection.add(await submitted(store, batch_id))
        await store.control(BatchId("ended"), Cancel("request", ""))
        # Submitted in a transaction that is open yet, or was rolled back.
        selection.add(BatchId("unseen"))
        for _ in range(6):
            await sweep.look()
        assert selection.batches == frozenset([BatchId("unfinished"), BatchId("unseen")])
        clock.advance(3601)
        for _ in range(3):
            await sweep.look()
        assert selection.batches == frozenset([BatchId("unfinished")])


async def test_a_worker_looks_whether_others_ended_what_is_its_own() -> None:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    ended = await submitted(store, "ended")
    async with opened(store):
        await store.control(ended, Cancel("request", ""))
    worker = Worker(store, clock=clock, batches="mine")
    async with BatchOrchestrator(shout, worker=worker):
        worker.take(ended)
        assert not worker._selection.is_empty
        async with moving(clock, 0.5):
            await eventually(lambda: worker._selection.is_empty)


async def test_what_a_thread_submits_is_run(store: Store) -> None:
    async with BatchOrchestrator(shout, worker=Worker(store, batches="mine")) as batches:
        batch_id = await asyncio.to_thread(batches.submit_sync, ["a"])
        assert (await within(batches.result(batch_id))).counts.succeeded == 1


class Counting(MemoryStore):
    """Counts the waits for work, and by which method."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    async def wait(self, seen: Any, *, work: Any, timeout: Micros) -> None:
        if work:
            self.waits.append("all")
        await super().wait(seen, work=work, timeout=timeout)

    async def wait_for_claim(self, request: ClaimRequest, *, timeout: Micros) -> None:
        self.waits.append("some")
        await super().wait_for_claim(request, timeout=timeout)


@pytest.mark.parametrize(("batches", "by"), [("all", "all"), ("mine", "some")])
async def test_the_work_of_others_does_not_wake_it(batches: Literal["all", "mine"], by: str) -> None:
    store = Counting()
    gate = asyncio.Event()

    @workflow(STAGES)
    async def hold(document: str) -> str:
        await gate.wait()
        return document

    async with BatchOrchestrator(hold, worker=Worker(store, batches=batches)) as orchestrator:
        batch_id = await orchestrator.submit(["a"])
        await eventually(lambda: bool(store.waits))
        assert set(store.waits) == {by}
        gate.set()
        await within(orchestrator.result(batch_id))


class WithoutWaits:
    """An adapter of level 2 that waits for all work of its workflows only."""

    def __init__(self) -> None:
        self._store = MemoryStore()

    def __getattr__(self, name: str) -> Any:
        if name == "wait_for_claim":
            raise AttributeError(name)
        return getattr(self._store, name)


class Sleeping(MemoryStore):
    """Sleeps through whatever comes, and notes for which batches it was to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[frozenset[BatchId] | None] = []

    async def wait_for_claim(self, request: ClaimRequest, *, timeout: Micros) -> None:
        self.asked.append(request.batches)
        await asyncio.Event().wait()


async def test_a_wait_for_the_batches_of_before_is_given_up() -> None:
    """It would not end for the work of a batch that was added since."""
    store = Sleeping()
    one, another = BatchId("one"), BatchId("another")
    async with BatchOrchestrator(shout, worker=Worker(store, batches="mine")) as batches:
        batches.worker.take(one)
        await eventually(lambda: store.asked == [frozenset({one})])
        batches.worker.take(another)
        await eventually(lambda: store.asked[1:] == [frozenset({one, another})])


async def test_a_store_that_cannot_wait_for_some_batches_waits_for_all() -> None:
    store: Any = WithoutWaits()
    assert not isinstance(store, WaitsForClaims)
    left = await submitted(store, "left")
    async with BatchOrchestrator(shout, worker=Worker(store, batches="mine")) as batches:
        assert (await within(batches.run(["a"]))).counts.succeeded == 1
        assert (await batches.snapshot(left)).state.tag == "pending"


# ---- bad input -----------------------------------------------------------------------------------------------------


class OlderStore(MemoryStore):
    """An adapter that was written before there were levels."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(several_processes=False, durable=False, pushes=True)


@pytest.mark.parametrize("batches", ["mine", BatchFilter(batch_ids=["a"])])
def test_an_adapter_that_takes_from_all_is_refused(batches: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^Worker\(batches=.* needs a store of level 2 .* OlderStore"):
        Worker(OlderStore(), batches=batches)
    Worker(OlderStore())


@pytest.mark.parametrize("batches", ["own", None, ["a"], {"team": "a"}, BatchFilter, ""], ids=repr)
def test_what_names_no_batches_is_refused(batches: Any) -> None:
    with pytest.raises(ConfigurationError, match="batches must be 'all', 'mine' or a BatchFilter"):
        Worker(MemoryStore(), batches=batches)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"batch_ids": []},
        {"batch_ids": "march"},
        {"batch_ids": None},
        {"batch_ids": [1]},
        {"batch_ids": ["a\0"]},
        {"batch_ids": ["a", "\ud800"]},
        {"batch_ids": [""]},
        {"batch_ids": ["a" * 513]},
        {"metadata": {"team": 1}},
        {"metadata": {1: "a"}},
        {"metadata": [("team", "a")]},
    ],
    ids=repr,
)
def test_a_filter_that_cannot_be_meant_is_refused(fields: Any) -> None:
    with pytest.raises(ConfigurationError):
        BatchFilter(**fields)


def test_a_filter_does_not_change() -> None:
    ids, labels = ["a"], {"team": "a"}
    wanted = BatchFilter(batch_ids=ids, metadata=labels)
    ids.append("b")
    labels["kind"] = "b"
    assert wanted == BatchFilter(batch_ids=["a"], metadata={"team": "a"})
