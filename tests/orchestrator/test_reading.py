"""Looking at batches: states, snapshots, events live and later, results, documents, lists."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from tests.conftest import StoreMaker
from tests.support import (
    NO_DELAY,
    NO_DRAIN,
    STAGES,
    Reading,
    Thinking,
    Writing,
    committed_until,
    eventually,
    everything,
    turns,
    within,
)

from durable_batches import (
    BatchCompleted,
    BatchConfig,
    BatchCreated,
    BatchEvent,
    BatchId,
    BatchNotFoundError,
    BatchOrchestrator,
    BatchSnapshot,
    BatchStateMachine,
    Cancelled,
    Completed,
    ConfigurationError,
    Counts,
    DocumentCancelled,
    DocumentCompleted,
    DocumentFailure,
    DocumentInfo,
    DocumentReleased,
    DocumentStarted,
    DocumentSucceeded,
    MemoryStore,
    PayloadError,
    Pending,
    RetryFailed,
    Stage,
    StageCount,
    StageProgress,
    StateChanged,
    Store,
    UnknownEvent,
    Worker,
    durable_activity,
    enter_stage,
    workflow,
)
from durable_batches.lifecycle.batch_core import Definition
from durable_batches.testing import ManualClock, environment
from durable_batches.testing.history.replay import Replay


@durable_activity(stage=Reading)
async def read(text: str) -> str:
    return text


@durable_activity(stage=Thinking)
async def think(text: str) -> str:
    return text.upper()


@workflow(STAGES)
async def staged(document: str) -> str:
    text = await think(await read(document))
    enter_stage(Writing)
    await asyncio.sleep(0)
    if text == "BAD":
        raise ValueError("bad")
    return text


def gated() -> tuple[Any, asyncio.Event, list[str]]:
    """A workflow whose documents wait at a gate between their first stage and their second."""
    gate = asyncio.Event()
    waiting: list[str] = []

    @workflow(STAGES, name="gated")
    async def run(document: str) -> str:
        await read(document)
        waiting.append(document)
        await gate.wait()
        return await think(document)

    return run, gate, waiting


# ---- states and snapshots ----------------------------------------------------------------------------------


async def test_a_batch_s_states_from_beginning_to_end(store: Store) -> None:
    run, gate, waiting = gated()
    async with BatchOrchestrator(run, store=store, max_in_flight=0) as reader:
        batch_id = await reader.submit(["a", "b", "c", "d"], config=BatchConfig(concurrency=2, metadata={"of": "me"}))
        assert await reader.state(batch_id) == Pending(total=4)
        snapshot = await reader.snapshot(batch_id)
        assert snapshot.counts == Counts(total=4, pending=4)
        assert (snapshot.percentage, snapshot.paused, snapshot.run, snapshot.seq) == (0, False, 1, 1)
        assert (snapshot.documents_per_second, snapshot.eta) == (None, None)
        assert snapshot.metadata == {"of": "me"}
        assert abs(snapshot.created_at - datetime.now(UTC)) < timedelta(minutes=1)
        assert [count.stage for count in snapshot.stages] == ["reading", "thinking", "writing"]
        async with BatchOrchestrator(run, worker=Worker(store)) as runner:
            await eventually(lambda: len(waiting) == 2)
            assert await runner.state(batch_id) == Reading(done=0, total=4)
            snapshot = await runner.snapshot(batch_id)
            assert snapshot.counts == Counts(total=4, pending=2, running=2)
            assert snapshot.stages[0] == StageCount(stage="reading", current=2, done=0, total=4)
            gate.set()
            result = await within(runner.result(batch_id))
        assert await reader.state(batch_id) == result.state == Completed(counts=Counts(total=4, succeeded=4))
        snapshot = await reader.snapshot(batch_id)
        assert snapshot.percentage == 100
        assert snapshot.stages[2] == StageCount(stage="writing", current=4, done=4, total=4)
        assert snapshot.documents_per_second is not None
        assert snapshot.documents_per_second > 0
        assert snapshot.eta is None


async def test_the_batch_is_in_the_earliest_stage_of_its_unfinished_documents(store: Store) -> None:
    gates = {name: asyncio.Event() for name in ("a think", "b think", "a write", "b write")}

    @workflow(STAGES)
    async def run(document: str) -> None:
        enter_stage(Reading)
        await gates[f"{document} think"].wait()
        await think(document)
        await gates[f"{document} write"].wait()

    async with BatchOrchestrator(run, store=store) as batches:
        batch_id = await batches.submit(["a", "b"])

        async def is_in(state: Stage) -> bool:
            return await batches.state(batch_id) == state

        await committed_until(batches.worker, lambda: is_in(Reading(done=0, total=2)))
        gates["a think"].set()
        await committed_until(batches.worker, lambda: is_in(Reading(done=1, total=2)))
        gates["b think"].set()
        await committed_until(batches.worker, lambda: is_in(Thinking(done=0, total=2)))
        gates["a write"].set()
        await committed_until(batches.worker, lambda: is_in(Thinking(done=1, total=2)))
        gates["b write"].set()
        await within(batches.result(batch_id))


async def test_a_snapshot_estimates_the_end(open_store: StoreMaker) -> None:
    clock = ManualClock()
    gate = asyncio.Semaphore(0)

    @workflow(STAGES)
    async def run(document: int) -> int:
        await gate.acquire()
        return document

    worker = Worker(open_store(clock), clock=clock, lease=timedelta(days=1))
    async with BatchOrchestrator(run, worker=worker) as batches:
        batch_id = await batches.submit(range(10), config=BatchConfig(concurrency=10))

        async def counted(**counts: int) -> bool:
            found = (await batches.snapshot(batch_id)).counts
            return all(getattr(found, name) == count for name, count in counts.items())

        await committed_until(batches.worker, lambda: counted(running=10))
        clock.advance(20)
        for _ in range(4):
            gate.release()
        await committed_until(batches.worker, lambda: counted(succeeded=4))
        snapshot = await batches.snapshot(batch_id)
        assert snapshot.documents_per_second == pytest.approx(0.2)
        assert snapshot.eta == datetime.fromtimestamp(clock.now() / 1e6, UTC) + timedelta(seconds=30)
        for _ in range(6):
            gate.release()
        await within(batches.result(batch_id))


async def test_an_older_deployment_s_stage_is_shown_as_the_nearest_before_it(open_store: StoreMaker) -> None:
    class Extra(Stage):
        tag: Literal["extra"] = "extra"

    gate = asyncio.Event()
    marked: list[str] = []

    @workflow(BatchStateMachine(Reading, Extra, Writing), name="run")
    async def old(document: str) -> None:
        enter_stage(Extra)
        marked.append(document)
        await gate.wait()

    @workflow(BatchStateMachine(Reading, Writing), name="run")
    async def new(document: str) -> None: ...

    async with BatchOrchestrator(old, worker=Worker(open_store(None), drain=NO_DRAIN)) as batches:
        batch_id = await batches.submit(["a"])

        async def in_extra() -> bool:
            return await batches.state(batch_id) == Extra(done=0, total=1)

        await committed_until(batches.worker, in_extra)
        async with BatchOrchestrator(new, store=open_store(None), max_in_flight=0) as readers:
            assert isinstance(await readers.state(batch_id), Reading)
            assert [count.stage for count in (await readers.snapshot(batch_id)).stages] == [
                "reading",
                "extra",
                "writing",
            ]


@pytest.mark.parametrize("batch_id", ["", "nul\0", "\ud800", "x" * 513])
async def test_an_id_that_no_batch_can_have_is_not_found(batch_id: str, store: Store) -> None:
    async with BatchOrchestrator(staged, store=store) as batches:
        with pytest.raises(BatchNotFoundError):
            await batches.state(batch_id)


# ---- progress ----------------------------------------------------------------------------------------------


def assert_complete(events: list[BatchEvent], total: int) -> None:
    """What is true of every history of a batch."""
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert isinstance(events[0], BatchCreated)
    assert isinstance(events[-1], BatchCompleted)
    assert sum(isinstance(event, DocumentCompleted) for event in events) == total
    assert all(event.at.utcoffset() == timedelta(0) for event in events)
    assert sorted(event.at for event in events) == [event.at for event in events]
    percentages = [event.percentage for event in events if isinstance(event, StageProgress | DocumentCompleted)]
    assert sorted(percentages) == percentages
    assert percentages[-1] == 100
    states = [event for event in events if isinstance(event, StateChanged)]
    assert [event.previous for event in states[1:]] == [event.state for event in states[:-1]]
    assert [event.state for event in states] == sorted(
        {event.state for event in states}, key=["reading", "thinking", "writing", "completed"].index
    )


async def test_the_history_of_a_batch(store: Store) -> None:
    async with BatchOrchestrator(staged, store=store) as batches:
        batch_id = await batches.submit(["a"], batch_id="b")
        events = await within(everything(batches.progress("b")))
    assert_complete(events, 1)
    assert [event.tag for event in events] == [
        "batch_created",
        "document_started",
        "state_changed",
        "stage_progress",
        "stage_progress",
        "state_changed",
        "stage_progress",
        "state_changed",
        "document_completed",
        "state_changed",
        "batch_completed",
    ]
    assert {event.batch_id for event in events} == {batch_id}
    progress = [event for event in events if isinstance(event, StageProgress)]
    assert [(event.document_id, event.stage, event.current, event.total) for event in progress] == [
        ("0", "reading", 1, 1),
        ("0", "thinking", 1, 1),
        ("0", "writing", 1, 1),
    ]
    assert progress[2].percentage == pytest.approx(66.6667)


async def test_every_subscriber_sees_everything_once_and_in_order(store: Store) -> None:
    async with BatchOrchestrator(staged, store=store) as batches:
        batch_id = await batches.submit([str(number) for number in range(120)], config=BatchConfig(concurrency=16))
        streams: list[list[BatchEvent]] = [[] for _ in range(6)]

        async def follow(stream: list[BatchEvent], pause: int) -> None:
            async for event in batches.progress(batch_id):
                stream.append(event)
                if pause and event.seq % 40 == 0:
                    await turns(pause)

        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            for index, stream in enumerate(streams):
                group.create_task(follow(stream, 100 * (index % 3)))
        late = await within(everything(batches.progress(batch_id)))
    assert all(stream == late for stream in streams)
    assert_complete(late, 120)


async def test_a_subscriber_far_behind_misses_nothing(store: Store) -> None:
    """More events than are kept for it."""
    async with BatchOrchestrator(staged, store=store) as batches:
        batch_id = await batches.submit(["x"] * 300, config=BatchConfig(concurrency=50))
        async with aclosing(batches.progress(batch_id)) as events:
            first = await anext(events)
            result = await within(batches.result(batch_id))
            rest = await within(everything(events))
    assert result.counts.succeeded == 300
    assert len(rest) > 1_024
    assert_complete([first, *rest], 300)


async def test_from_the_middle_and_after_the_end(store: Store) -> None:
    async with BatchOrchestrator(staged, store=store) as batches:
        batch_id = await batches.submit(["a", "b"])
        live = await within(everything(batches.progress(batch_id, after=3)))
        whole = await within(everything(batches.progress(batch_id)))
        assert live == whole[3:]
        for after in range(len(whole) + 1):
            assert await within(everything(batches.progress(batch_id, after=after))) == whole[after:]
        assert await within(everything(batches.progress(batch_id, after=10_000))) == []
        assert await within(everything(batches.progress(batch_id, after=-5))) == whole


async def test_who_subscribes_later_does_not_wait_for_news_of_other_batches(
    open_store: StoreMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look-out serves all subscribers of a process; it notices who joins while it waits."""
    monkeypatch.setattr("durable_batches.reading.news._WAIT_MICROS", 3_600_000_000)
    run, gate, waiting = gated()
    store = open_store(None)
    watcher = Worker(store, max_in_flight=0)
    runner = BatchOrchestrator(run, worker=Worker(store))
    async with BatchOrchestrator(staged, worker=watcher) as others, BatchOrchestrator(run, worker=watcher) as batches:
        idle = await others.submit(["a"])
        with watcher.signals.news.waiting.listen() as waited:
            watching = asyncio.create_task(everything(others.progress(idle)))
            await waited.matching(lambda seen: idle in seen)
            async with runner:
                batch_id = await runner.submit(["b"])
                await eventually(lambda: bool(waiting))
                result = asyncio.create_task(batches.result(batch_id))
                await waited.matching(lambda seen: batch_id in seen)
                gate.set()
                assert (await within(result)).counts.succeeded == 1
        watching.cancel()
        await asyncio.wait([watching])


async def test_a_subscriber_goes_on_in_the_next_process(open_store: StoreMaker) -> None:
    run, gate, waiting = gated()
    seen: list[BatchEvent] = []
    async with BatchOrchestrator(run, worker=Worker(open_store(None), drain=NO_DRAIN)) as batches:
        batch_id = await batches.submit(["a"])
        async with aclosing(batches.progress(batch_id)) as events:
            async for event in events:
                seen.append(event)
                if isinstance(event, StageProgress):
                    break
        await eventually(lambda: len(waiting) == 1)
    gate.set()
    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        seen += await within(everything(batches.progress(batch_id, after=seen[-1].seq)))
    assert_complete(seen, 1)
    (released,) = (event for event in seen if isinstance(event, DocumentReleased))
    assert (released.reason, released.crashes) == ("shutdown", 0)
    assert [event.attempt for event in seen if isinstance(event, DocumentStarted)] == [1, 2]


async def test_a_subscriber_of_another_worker_sees_it_live(open_store: StoreMaker) -> None:
    run, gate, _ = gated()
    seen: list[BatchEvent] = []
    async with (
        BatchOrchestrator(run, store=open_store(None)) as batches,
        BatchOrchestrator(run, worker=Worker(open_store(None), max_in_flight=0)) as remote,
    ):
        batch_id = await batches.submit(["a", "b"])
        following = asyncio.create_task(everything(remote.progress(batch_id), seen))
        ending = asyncio.create_task(remote.result(batch_id))
        # It sees the first of it before the rest has happened.
        await eventually(lambda: sum(isinstance(event, StageProgress) for event in seen) == 2)
        gate.set()
        await within(following)
        assert (await within(ending)).counts.succeeded == 2
    assert_complete(seen, 2)


async def test_a_subscriber_that_leaves_early_leaves_nothing_behind(store: Store) -> None:
    run, gate, _ = gated()
    async with BatchOrchestrator(run, store=store) as batches:
        batch_id = await batches.submit(["a"])
        for _ in range(20):
            async with aclosing(batches.progress(batch_id)) as events:
                await anext(events)
        waiting = [asyncio.create_task(batches.result(batch_id)) for _ in range(5)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        # Nobody is subscribed any more.
        assert batches.worker.news.watched == []
        gate.set()
        await within(batches.result(batch_id))


async def test_the_events_add_up_to_the_counts(store: Store) -> None:
    config = BatchConfig(failure_policy=RetryFailed(max_attempts=2, backoff=NO_DELAY))
    async with BatchOrchestrator(staged, store=store, config=config) as batches:
        result = await within(batches.run(["a", "bad", "b", "bad", "c"]))
        events = await everything(batches.progress(result.batch_id))
        snapshot = await batches.snapshot(result.batch_id)
    replay = Replay(Definition(STAGES.tags, False, config))
    for event in events:
        replay.take(event)
    replay.end_of_log()
    assert not replay.problems
    assert replay.counts == snapshot.counts == Counts(total=5, succeeded=3, failed=2)
    assert (replay.state, replay.percentage, events[-1].seq) == ("completed", 100, snapshot.seq)


# ---- watching ----------------------------------------------------------------------------------------------


async def test_watching_ends_with_the_end(store: Store) -> None:
    async with BatchOrchestrator(staged, store=store) as batches:
        batch_id = await batches.submit(["x"] * 60, config=BatchConfig(concurrency=4))
        seen = await within(everything(batches.watch(batch_id, interval=timedelta(milliseconds=2))))
        assert isinstance(seen[-1].state, Completed)
        assert seen[-1].counts.succeeded == 60
        assert [snapshot.seq for snapshot in seen] == sorted({snapshot.seq for snapshot in seen})
        assert [snapshot.percentage for snapshot in seen] == sorted(snapshot.percentage for snapshot in seen)
        for snapshot in seen:
            counts = snapshot.counts
            parts = counts.pending + counts.running + counts.waiting + counts.succeeded + counts.failed
            assert parts + counts.cancelled == counts.total == 60
        again = await within(everything(batches.watch(batch_id)))
        assert [snapshot.seq for snapshot in again] == [seen[-1].seq]


async def test_watching_yields_only_what_is_new_and_not_more_often_than_asked(open_store: StoreMaker) -> None:
    run, gate, _ = gated()
    seen: list[BatchSnapshot[Any]] = []
    async with environment(run, store=open_store) as env:
        batch_id = await env.batches.submit(["a"])
        watching = asyncio.create_task(everything(env.batches.watch(batch_id, interval=timedelta(seconds=60)), seen))
        await env.settled()
        gate.set()
        await env.settled()
        await env.advance(timedelta(seconds=59))
        # It ended long ago, but the interval has not passed.
        assert (await env.batches.state(batch_id)).tag == "completed"
        assert len(seen) == 1
        await env.advance(timedelta(seconds=1))
        await within(watching)
    assert [type(snapshot.state) for snapshot in seen[1:]] == [Completed]


# ---- results and documents ---------------------------------------------------------------------------------


async def test_results_of_a_running_batch_are_those_there_are(store: Store) -> None:
    gates = {name: asyncio.Event() for name in "abc"}

    @workflow(STAGES)
    async def run(document: str) -> str:
        await gates[document].wait()
        if document == "b":
            raise ValueError("not b")
        return document.upper()

    async with BatchOrchestrator(run, store=store) as batches:
        batch_id = await batches.submit("a b c".split(), document_id=str)
        assert await everything(batches.results(batch_id)) == []
        gates["c"].set()

        async def ended(count: int) -> bool:
            return (await batches.snapshot(batch_id)).counts.ended == count

        await eventually(lambda: ended(1))
        assert await everything(batches.results(batch_id)) == [DocumentSucceeded(document_id="c", value="C")]
        gates["b"].set()
        await eventually(lambda: ended(2))
        gates["a"].set()
        await within(batches.result(batch_id))
        outcomes = await everything(batches.results(batch_id))
        assert [outcome.document_id for outcome in outcomes] == ["a", "b", "c"]
        match outcomes[1]:
            case DocumentFailure(error=error, error_type=error_type):
                assert (error, error_type) == ("not b", "ValueError")
            case DocumentSucceeded() | DocumentCancelled():
                raise AssertionError


async def test_results_and_documents_are_read_in_pages(store: Store) -> None:
    @workflow(STAGES)
    async def run(document: int) -> int:
        return document * 2

    async with BatchOrchestrator(run, store=store) as batches:
        result = await within(batches.run(range(450), config=BatchConfig(concurrency=100)))
        outcomes = await everything(batches.results(result.batch_id))
        assert outcomes == [DocumentSucceeded(document_id=str(n), value=n * 2) for n in range(450)]
        infos = await everything(batches.documents(result.batch_id))
        assert [info.document for info in infos] == list(range(450))


class Page(BaseModel):
    url: str


async def test_documents_by_status(store: Store) -> None:
    gate = asyncio.Event()

    @workflow(STAGES)
    async def run(document: Page) -> str:
        if document.url == "bad":
            raise ValueError("bad page")
        if document.url != "good":
            enter_stage(Thinking)
            await gate.wait()
        return document.url

    async with BatchOrchestrator(run, store=store) as batches:
        urls = ["good", "bad", "slow", "never"]
        batch_id = await batches.submit(
            [Page(url=url) for url in urls], document_id=lambda page: page.url, config=BatchConfig(concurrency=1)
        )

        async def slow_runs() -> bool:
            infos = await everything(batches.documents(batch_id, status="running"))
            return [(info.document_id, info.stage) for info in infos] == [("slow", "thinking")]

        await eventually(slow_runs)

        async def by_status() -> dict[str, list[str]]:
            found: dict[str, list[str]] = {}
            statuses: list[Any] = ["pending", "running", "waiting", "succeeded", "failed", "cancelled"]
            for status in statuses:
                infos = await everything(batches.documents(batch_id, status=status))
                assert all(info.status == status for info in infos)
                found[status] = [info.document_id for info in infos]
            return found

        assert await by_status() == {
            "pending": ["never"],
            "running": ["slow"],
            "waiting": [],
            "succeeded": ["good"],
            "failed": ["bad"],
            "cancelled": [],
        }
        (bad,) = await everything(batches.documents(batch_id, status="failed"))
        assert isinstance(bad, DocumentInfo)
        assert bad.document == Page(url="bad")
        assert bad.failure == DocumentFailure(
            document_id="bad", error="bad page", error_type="ValueError", activity=None, attempts=1
        )
        assert (bad.attempts, bad.stage) == (1, None)
        assert abs(bad.updated_at - datetime.now(UTC)) < timedelta(minutes=1)
        assert await batches.cancel(batch_id)

        async def freed() -> bool:
            return (await by_status())["cancelled"] == ["slow", "never"]

        await eventually(freed)
        assert await by_status() == {
            "pending": [],
            "running": [],
            "waiting": [],
            "succeeded": ["good"],
            "failed": ["bad"],
            "cancelled": ["slow", "never"],
        }
        assert [info.status for info in await everything(batches.documents(batch_id))] == [
            "succeeded",
            "failed",
            "cancelled",
            "cancelled",
        ]
        assert isinstance(await batches.state(batch_id), Cancelled)


async def test_what_the_code_cannot_read_any_more_is_an_error(open_store: StoreMaker) -> None:
    @workflow(STAGES, name="run")
    async def old(document: str) -> str:
        return document

    @workflow(STAGES, name="run")
    async def new(document: int) -> int:
        return document

    async with BatchOrchestrator(old, store=open_store(None)) as batches:
        result = await within(batches.run(["a text of mine"]))
    async with BatchOrchestrator(new, store=open_store(None)) as later:
        with pytest.raises(PayloadError, match="the result of workflow 'run'") as caught:
            await everything(later.results(result.batch_id))
        assert "a text of mine" not in str(caught.value)
        with pytest.raises(PayloadError, match="a document of workflow 'run'"):
            await everything(later.documents(result.batch_id))


# ---- lists -------------------------------------------------------------------------------------------------


async def test_batches_are_listed_newest_first_and_filtered(store: Store) -> None:
    run, gate, _ = gated()
    worker = Worker(store)
    async with BatchOrchestrator(run, worker=worker) as batches:
        others = BatchOrchestrator(staged, worker=worker)
        await within(others.run(["x"], batch_id="another workflow's"))
        await batches.submit(["a"], batch_id="1", config=BatchConfig(metadata={"tenant": "a", "kind": "x"}))
        await batches.submit(["a"], batch_id="2", config=BatchConfig(metadata={"tenant": "b", "kind": "x"}))
        await batches.submit(["a"], batch_id="3", config=BatchConfig(metadata={"tenant": "a"}))
        await batches.cancel("1")

        async def listed(**query: Any) -> list[str]:
            return [str(snapshot.batch_id) async for snapshot in batches.list_batches(**query)]

        assert await listed() == ["3", "2", "1"]
        assert await listed(metadata={"tenant": "a"}) == ["3", "1"]
        assert await listed(metadata={"tenant": "a", "kind": "x"}) == ["1"]
        assert await listed(metadata={"tenant": "nobody"}) == []
        assert await listed(metadata={"no such": ""}) == []
        assert await listed(states=["cancelled"]) == ["1"]
        assert sorted(await listed(states=["pending", "reading"])) == ["2", "3"]
        assert await listed(states=["completed"]) == []
        assert await listed(created_before=datetime.now(UTC) + timedelta(minutes=1)) == ["3", "2", "1"]
        assert await listed(created_before=datetime.now(UTC) - timedelta(minutes=1)) == []
        gate.set()
        await within(asyncio.gather(batches.result("2"), batches.result("3")))
        assert await listed(states=["completed", "cancelled"], metadata={"tenant": "a"}) == ["3", "1"]


async def test_labels_are_found_by_all_of_their_text(store: Store) -> None:
    labels = {"1": {"a": "x\0y"}, "2": {"a": "x"}, "3": {"a\0b": "x"}, "4": {"a": 'x", "b": "y'}, "5": {"a": "\0"}}
    async with BatchOrchestrator(staged, store=store) as batches:
        for batch_id, metadata in labels.items():
            await batches.submit(["a"], batch_id=batch_id, config=BatchConfig(metadata=metadata))
        for batch_id, metadata in labels.items():
            assert [found.batch_id async for found in batches.list_batches(metadata=metadata)] == [batch_id]
        for metadata in ({"a": "x\0"}, {"a": ""}, {"a\0": "x"}, {"b": "y"}, {"a": "\ud800"}, {"a": "X"}, {"A": "x"}):
            assert [found async for found in batches.list_batches(metadata=metadata)] == [], metadata


@pytest.mark.parametrize("text", ["a\0b", "\0", "a\ud800"])
async def test_a_text_that_no_database_could_be_asked_for_is_refused(store: Store, text: str) -> None:
    """By every store alike."""
    async with BatchOrchestrator(staged, store=store) as batches:
        batch_id = await batches.submit(["a"])
        client = batches.worker.raw_access()
        asked: list[tuple[str, AsyncIterable[object]]] = [
            ("each of states", batches.list_batches(states=["pending", text])),
            ("each of states", client.list_batches(states=[text])),
            ("workflow", client.list_batches(workflow=text)),
            ("after", client.list_batches(after=text)),
            ("fingerprint", client.documents(batch_id, fingerprint=text)),
        ]
        for name, found in asked:
            with pytest.raises(ConfigurationError, match=f"^{name} must not contain NUL or lone surrogates$"):
                await everything(found)
        wrong: Any = text
        for documents in (batches.documents(batch_id, status=wrong), client.documents(batch_id, status=wrong)):
            with pytest.raises(ConfigurationError, match=r"^status must be one of pending, running, waiting"):
                await everything(documents)
        for read in (batches.snapshot, client.explain, client.errors, batches.result, client.count_checkpoints):
            with pytest.raises(BatchNotFoundError):
                await within(read(text))
        with pytest.raises(ConfigurationError, match=r"^batch_id must not contain NUL or lone surrogates$"):
            await batches.submit(["a"], batch_id=text)


async def test_long_lists_are_read_in_pages(store: Store) -> None:
    async with BatchOrchestrator(staged, store=store, max_in_flight=0) as batches:
        for number in range(205):
            await batches.submit(["x"], batch_id=str(number))
        listed = [str(snapshot.batch_id) async for snapshot in batches.list_batches()]
    assert listed == [str(number) for number in reversed(range(205))]


async def test_the_former_name_of_counting_checkpoints_still_counts_and_warns(store: Store) -> None:
    @durable_activity
    async def ask(question: str) -> str:
        return question

    @workflow(STAGES)
    async def asking(document: str) -> str:
        return await ask(document)

    async with BatchOrchestrator(asking, store=store) as batches:
        result = await batches.run(["x", "y"])
        with pytest.warns(DeprecationWarning, match="count_checkpoints"):
            assert await batches.recorded_activities(result.batch_id) == 2  # type: ignore[deprecated]  # pyright: ignore[reportDeprecated]


async def test_events_of_a_newer_library_are_passed_on_in_their_place() -> None:
    """A process with a newer version runs the batch, and this one follows it."""
    store = MemoryStore()
    async with BatchOrchestrator(staged, store=store) as batches:
        batch_id = await batches.submit(["a"])
        await batches.result(batch_id)
        before = await everything(batches.progress(batch_id))
        log = store._batches[BatchId(batch_id)].events
        log[2] = log[2]._replace(tag="documents_shredded", data=b'["a",{"by":7}]')
        events = await within(everything(batches.progress(batch_id)))
        assert events[:2] + events[3:] == before[:2] + before[3:]
        newer = events[2]
        assert isinstance(newer, UnknownEvent)
        assert (newer.seq, newer.name, newer.data) == (3, "documents_shredded", '["a",{"by":7}]')
        rest = await everything(batches.progress(batch_id, after=2))
        assert rest == events[2:]
