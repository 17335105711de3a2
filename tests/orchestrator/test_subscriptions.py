"""Subscribers: what is handed over to them they do not read from the store, and nothing is missed for it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from tests.conftest import StoreMaker
from tests.support import NO_DRAIN, STAGES, everything, within

from durable_batches import BatchOrchestrator, MemoryStore, Worker, workflow
from durable_batches.errors import WorkerNotRunningError
from durable_batches.lifecycle.events import LAST_EVENT_TAGS, BatchEvent
from durable_batches.lifecycle.records import EventRecord
from durable_batches.lifecycle.states import BatchId
from durable_batches.reading.subscriptions import Subscription, Subscriptions
from durable_batches.testing import ManualClock

BATCH, OTHER = BatchId("b"), BatchId("other")


def event(seq: int, tag: str = "document_completed", batch_id: BatchId = BATCH) -> EventRecord:
    return EventRecord(batch_id=batch_id, seq=seq, at=0, tag=tag, data=b"")


def seqs(events: list[EventRecord]) -> list[int]:
    return [event.seq for event in events]


async def moves(subscription: Subscription) -> bool:
    """Whether the subscriber would go on now, rather than wait."""
    moved = asyncio.create_task(subscription.moved())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    moved.cancel()
    await asyncio.wait([moved])
    return not moved.cancelled()


# ---- one subscription ---------------------------------------------------------------------------------------------


async def test_events_that_follow_the_cursor_are_taken_and_then_it_waits() -> None:
    subscription = Subscription(ends_only=False)
    subscription.deliver([event(1), event(2)])
    subscription.deliver([event(3)])
    assert seqs(subscription.take(0)) == [1, 2, 3]
    assert not await moves(subscription)


async def test_events_from_before_the_cursor_are_dropped() -> None:
    subscription = Subscription(ends_only=False)
    subscription.deliver([event(1), event(2), event(3)])
    assert seqs(subscription.take(2)) == [3]


async def test_across_a_gap_nothing_is_taken_until_the_store_was_read() -> None:
    subscription = Subscription(ends_only=False)
    subscription.deliver([event(1), event(3)])
    assert seqs(subscription.take(0)) == [1]
    # Event 3 is still there: the subscriber goes on at once, and reads the store.
    assert await moves(subscription)
    assert subscription.take(1) == []
    assert seqs(subscription.take(2)) == [3]


async def test_who_was_woken_reads_the_store_though_events_were_handed_over() -> None:
    subscription = Subscription(ends_only=False)
    subscription.deliver([event(1)])
    subscription.wake()
    assert seqs(subscription.take(0)) == [1]
    assert await moves(subscription)
    # With this empty answer the store is read, which is what it was woken for.
    assert subscription.take(1) == []
    subscription.deliver([event(2)])
    assert seqs(subscription.take(1)) == [2]
    assert not await moves(subscription)


async def test_a_wake_or_a_gap_behind_what_is_taken_is_not_lost() -> None:
    """Also where a wait has ended in between: for a subscriber that was busy, these came together."""
    for then in ("wake", "gap"):
        subscription = Subscription(ends_only=False)
        subscription.deliver([event(1)])
        if then == "wake":
            subscription.wake()
        else:
            subscription.deliver([event(3)])
        await subscription.moved()
        assert seqs(subscription.take(0)) == [1]
        assert await moves(subscription), then
        assert subscription.take(1) == []


async def test_who_was_busy_when_the_worker_closed_is_told(open_store: StoreMaker) -> None:
    busy, closed = asyncio.Event(), asyncio.Event()

    async def follow(batches: BatchOrchestrator[int, int, Any, Any], batch_id: str) -> None:
        async for seen in batches.progress(batch_id):
            if seen.seq == 2:
                busy.set()
                await closed.wait()

    @workflow(STAGES, name="never")
    async def never(number: int) -> int:
        await asyncio.get_running_loop().create_future()
        return number

    async with BatchOrchestrator(never, worker=Worker(open_store(None), drain=NO_DRAIN)) as batches:
        batch_id = await batches.submit([1, 2])
        follower = asyncio.create_task(follow(batches, batch_id))
        await within(busy.wait())
    closed.set()
    with pytest.raises(WorkerNotRunningError):
        await within(follower)


async def test_a_wake_while_the_store_is_read_is_not_lost() -> None:
    subscription = Subscription(ends_only=False)
    assert subscription.take(0) == []
    subscription.wake()
    subscription.deliver([event(1)])
    assert seqs(subscription.take(0)) == [1]
    assert await moves(subscription)


async def test_more_events_than_are_kept_leave_a_gap() -> None:
    subscription = Subscription(ends_only=False)
    subscription.deliver([event(seq) for seq in range(1, 3_000)])
    assert subscription.take(0) == []
    assert seqs(subscription.take(2_900)) == list(range(2_901, 3_000))


@pytest.mark.parametrize("last", sorted(LAST_EVENT_TAGS))
async def test_who_waits_for_the_end_only_is_woken_by_it_alone(last: str) -> None:
    subscription = Subscription(ends_only=True)
    subscription.deliver([event(1)])
    assert not await moves(subscription)
    subscription.deliver([event(2), event(3, last)])
    assert await moves(subscription)
    assert subscription.take(0) == []


async def test_events_reach_the_subscribers_of_their_batch_only() -> None:
    subscriptions = Subscriptions()
    with subscriptions.to(BATCH, ends_only=False) as one, subscriptions.to(OTHER, ends_only=False) as other:
        subscriptions.deliver([event(1), event(7, batch_id=OTHER), event(2)])
        assert (seqs(one.take(0)), seqs(other.take(6))) == ([1, 2], [7])
        assert subscriptions.seen == {BATCH: 2, OTHER: 7}
    assert subscriptions.seen == {}
    assert subscriptions.latest(BATCH) is None


# ---- what is read of the store ------------------------------------------------------------------------------------


@workflow(STAGES)
async def shout(document: str) -> str:
    return document.upper()


class Counting(MemoryStore):
    """Counts reads of events and batches, and commits."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.calls: Counter[str] = Counter()

    async def events(self, *args: Any, **kwargs: Any) -> Any:
        self.calls["events"] += 1
        return await super().events(*args, **kwargs)

    async def batch(self, *args: Any, **kwargs: Any) -> Any:
        self.calls["batch"] += 1
        return await super().batch(*args, **kwargs)

    async def commit(self, *args: Any, **kwargs: Any) -> Any:
        self.calls["commits"] += 1
        return await super().commit(*args, **kwargs)


async def reads_and_commits(documents: int, subscribers: int) -> tuple[int, int]:
    """How often the store is read, and committed to, while one document runs after the other."""
    # A clock that stands still: nothing is looked at because of the time.
    clock = ManualClock()
    store = Counting(clock)
    worker = Worker(store, clock=clock, max_in_flight=1, drain=NO_DRAIN)
    async with BatchOrchestrator(shout, worker=worker) as batches:
        batch_id = await batches.submit([str(number) for number in range(documents)])
        following = [everything(batches.progress(batch_id)) for _ in range(subscribers)]
        first, *others = await within(asyncio.gather(*following))
        assert [event.seq for event in first] == list(range(1, len(first) + 1))
        assert all(other == first for other in others)
    return store.calls["events"] + store.calls["batch"], store.calls["commits"]


@pytest.mark.parametrize("subscribers", [1, 50])
async def test_who_follows_a_batch_of_this_process_reads_the_store_no_oftener_for_more_commits(
    subscribers: int,
) -> None:
    reads, commits = await reads_and_commits(4, subscribers)
    more_reads, more_commits = await reads_and_commits(44, subscribers)
    assert more_commits >= commits + 40
    # The look-out may look once more or less at the beginning and at the end.
    assert abs(more_reads - reads) <= 2
    # At the beginning: the batch, its events so far, and that it goes on; at the end once more.
    assert more_reads <= 8 * subscribers + 4


async def test_a_subscriber_beyond_a_gap_reads_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    store = Counting(clock)
    worker = Worker(store, clock=clock, max_in_flight=1, drain=NO_DRAIN)
    deliver, lost = Subscription.deliver, list[EventRecord]()

    def deliver_some(subscription: Subscription, events: list[EventRecord]) -> None:
        """As where another process commits every third event."""
        lost.extend(event for event in events if event.seq % 3 == 0)
        deliver(subscription, [event for event in events if event.seq % 3])

    monkeypatch.setattr(Subscription, "deliver", deliver_some)
    async with BatchOrchestrator(shout, worker=worker) as batches:
        batch_id = await batches.submit([str(number) for number in range(20)])
        events = await within(everything(batches.progress(batch_id)))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert len(lost) > 5
    assert events[-1].tag in LAST_EVENT_TAGS


# ---- two processes ------------------------------------------------------------------------------------------------


async def test_what_two_processes_commit_in_turns_is_seen_in_both(open_store: StoreMaker) -> None:
    async with (
        BatchOrchestrator(shout, worker=Worker(open_store(None), max_in_flight=1)) as one,
        BatchOrchestrator(shout, worker=Worker(open_store(None), max_in_flight=1)) as two,
    ):
        batch_id = await one.submit([str(number) for number in range(20)])
        seen: list[list[BatchEvent]] = await within(
            asyncio.gather(*(everything(batches.progress(batch_id)) for batches in (one, one, two)))
        )
        assert [event.seq for event in seen[0]] == list(range(1, len(seen[0]) + 1))
        assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("how", ["result", "progress", "watch"])
async def test_the_end_that_another_process_brings_about_is_seen(how: str, open_store: StoreMaker) -> None:
    gate = asyncio.Event()

    @workflow(STAGES)
    async def wait(document: str) -> str:
        await gate.wait()
        return document

    async with (
        BatchOrchestrator(wait, store=open_store(None)) as runner,
        BatchOrchestrator(wait, store=open_store(None), max_in_flight=0) as remote,
    ):
        batch_id = await runner.submit(["x"])
        waits: dict[str, Any] = {
            "result": lambda: runner.result(batch_id),
            "progress": lambda: everything(runner.progress(batch_id)),
            "watch": lambda: everything(runner.watch(batch_id)),
        }
        with runner.worker.signals.news.waiting.listen() as waiting:
            ending = asyncio.create_task(waits[how]())
            await waiting.matching(lambda seen: batch_id in seen)
        assert await remote.cancel(batch_id)
        await within(ending)
        assert (await runner.state(batch_id)).tag == "cancelled"


async def test_a_subscriber_is_not_woken_by_what_it_was_handed_over() -> None:
    clock = ManualClock()
    worker = Worker(Counting(clock), clock=clock, max_in_flight=1, drain=NO_DRAIN)
    async with BatchOrchestrator(shout, worker=worker) as batches:
        batch_id = await batches.submit([str(number) for number in range(30)])
        with worker.signals.news.woken.listen() as woken, worker.signals.news.looked.listen() as looked:
            await within(everything(batches.progress(batch_id)))
        assert len(looked.heard) >= 5
        # Once: when the look-out begins, it knows of no event.
        assert len(woken.heard) <= 1
