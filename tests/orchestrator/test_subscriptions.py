"""Subscribers: what is handed over to them they do not read from the store, and nothing is missed for it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator
from contextlib import aclosing
from json import JSONDecodeError
from typing import Any

import pytest
from tests.conftest import StoreMaker
from tests.support import NO_DRAIN, STAGES, everything, turns, within

from durable_batches import BatchClient, BatchConfig, BatchOrchestrator, MemoryStore, Worker, workflow
from durable_batches.errors import WorkerNotRunningError
from durable_batches.lifecycle.events import LAST_EVENT_TAGS, BatchEvent, decode_event
from durable_batches.lifecycle.records import BatchRecord, EventRecord
from durable_batches.lifecycle.states import BatchId
from durable_batches.reading.feed import BLOCK, Feed
from durable_batches.reading.subscriptions import Subscriptions
from durable_batches.testing import ManualClock

BATCH, OTHER = BatchId("b"), BatchId("other")


def decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sequence numbers of the events that are decoded for subscribers from now on."""
    decoded: list[int] = []

    def counted(record: EventRecord) -> BatchEvent:
        decoded.append(record.seq)
        return decode_event(record)

    monkeypatch.setattr("durable_batches.reading.feed.decode_event", counted)
    return decoded


def event(seq: int, tag: str = "document_started", batch_id: BatchId = BATCH) -> EventRecord:
    return EventRecord(batch_id=batch_id, seq=seq, at=0, tag=tag, data=b'["a",1]')


def seqs(events: Iterable[BatchEvent | EventRecord]) -> list[int]:
    return [event.seq for event in events]


async def ends(awaitable: Awaitable[object]) -> bool:
    """Whether it ends now, rather than waits."""
    task = asyncio.ensure_future(awaitable)
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    return not task.cancelled()


class Stored:
    """Events in a store, whose reads last until they are let go."""

    def __init__(self, last: int, *, held: bool = False) -> None:
        self.last = last
        self.reads: list[int] = []
        self.may_end = asyncio.Event()
        if not held:
            self.may_end.set()

    async def read(self, after: int) -> list[EventRecord]:
        self.reads.append(after)
        await self.may_end.wait()
        return [event(seq) for seq in range(after + 1, min(self.last, after + BLOCK) + 1)]


@pytest.fixture
def feed() -> Iterator[Feed]:
    """Followed by one subscriber, from the beginning."""
    feed = Feed(ManualClock())
    with feed.followed(0):
        yield feed
    feed.close()


# ---- one feed -----------------------------------------------------------------------------------------------------


async def test_events_that_follow_are_taken_and_then_it_waits(feed: Feed) -> None:
    feed.deliver([event(1), event(2)])
    feed.deliver([event(3)])
    assert seqs(feed.take(0)) == [1, 2, 3]
    assert seqs(feed.take(2)) == [3]
    assert feed.take(3) == ()
    assert feed.known == feed.last
    assert not await ends(feed.moved())


async def test_who_waits_is_woken_by_what_is_delivered(feed: Feed) -> None:
    waiting = asyncio.create_task(feed.moved())
    await asyncio.sleep(0)
    feed.deliver([event(1)])
    await within(waiting)


async def test_across_a_gap_nothing_is_taken_until_the_store_was_read(feed: Feed) -> None:
    feed.deliver([event(1), event(3)])
    assert seqs(feed.take(0)) == [1]
    assert feed.take(1) == ()
    assert feed.known > feed.last
    stored = Stored(3)
    await feed.read_next(stored.read)
    assert seqs(feed.take(1)) == [2, 3]
    assert (stored.reads, feed.known) == ([1], feed.last)


async def test_what_is_missing_is_read_once_for_all(feed: Feed) -> None:
    feed.deliver([event(9)])
    stored = Stored(9, held=True)
    reading = [asyncio.create_task(feed.read_next(stored.read)) for _ in range(50)]
    await asyncio.sleep(0)
    stored.may_end.set()
    await within(asyncio.gather(*reading))
    assert (stored.reads, feed.last) == ([0], 9)


async def test_events_that_come_while_the_store_is_read_are_kept_once(feed: Feed) -> None:
    feed.deliver([event(2)])
    stored = Stored(4, held=True)
    reading = asyncio.create_task(feed.read_next(stored.read))
    await asyncio.sleep(0)
    feed.deliver([event(1), event(2), event(3)])
    stored.may_end.set()
    await within(reading)
    feed.deliver([event(4), event(5)])
    assert seqs(feed.take(0)) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_another_reads_where_the_one_that_reads_for_all_ends_early(feed: Feed, how: str) -> None:
    feed.deliver([event(3)])
    stored = Stored(3, held=True)

    async def read(after: int) -> list[EventRecord]:
        records = await stored.read(after)
        if how == "failed" and len(stored.reads) == 1:
            raise RuntimeError
        return records

    async def follow() -> None:
        while feed.known > feed.last:
            await feed.read_next(read)

    first, *others = [asyncio.create_task(follow()) for _ in range(5)]
    await asyncio.sleep(0)
    if how == "cancelled":
        first.cancel()
        await asyncio.wait([first])
    stored.may_end.set()
    await within(asyncio.gather(*others))
    assert (stored.reads, seqs(feed.take(0))) == ([0, 0], [1, 2, 3])
    if how == "failed":
        with pytest.raises(RuntimeError):
            await first


async def test_a_wake_has_the_batch_read_also_where_it_comes_during_a_read(feed: Feed) -> None:
    store = MemoryStore()
    async with BatchOrchestrator(shout, store=store, max_in_flight=0) as batches:
        record = await store.batch(BatchId(await batches.submit(["x"])))

    async def read() -> BatchRecord | None:
        return record

    async def read_and_wake() -> BatchRecord | None:
        feed.wake()
        return record

    feed.deliver([event(1)])
    waiting = asyncio.create_task(feed.moved())
    await asyncio.sleep(0)
    feed.wake()
    await within(waiting)
    doubted = [feed.is_doubted]
    for one in (read_and_wake, read):
        assert await feed.read_record(one) == record
        doubted.append(feed.is_doubted)
    assert doubted == [True, True, False]


async def test_who_asks_while_the_batch_is_read_is_answered_by_a_later_read(feed: Feed) -> None:
    may_end = [asyncio.Event(), asyncio.Event()]
    reads = 0

    async def read() -> None:
        nonlocal reads
        reads += 1
        await may_end[reads - 1].wait()

    first = asyncio.create_task(feed.read_record(read))
    await asyncio.sleep(0)
    later = [asyncio.create_task(feed.read_record(read)) for _ in range(20)]
    await asyncio.sleep(0)
    may_end[0].set()
    await within(first)
    assert not await ends(asyncio.wait(later, return_when=asyncio.FIRST_COMPLETED))
    may_end[1].set()
    await within(asyncio.gather(*later))
    assert reads == 2


async def test_more_events_than_are_kept_are_read_in_blocks_that_those_at_the_same_point_share(feed: Feed) -> None:
    for seq in range(1, 3_000):
        feed.deliver([event(seq)])
        assert feed.last - feed.first <= 2_048
    assert feed.take(0) == ()
    assert seqs(feed.take(2_900)) == list(range(2_901, 3_000))
    stored = Stored(2_999, held=True)
    reading = [asyncio.create_task(feed.read_earlier(0, stored.read)) for _ in range(20)]
    await asyncio.sleep(0)
    stored.may_end.set()
    await within(asyncio.gather(*reading))
    assert (stored.reads, seqs(feed.take(0))) == ([0], list(range(1, BLOCK + 1)))
    for cursor in range(20):
        await feed.read_earlier(cursor, stored.read)
        assert len(feed._blocks) <= 4


async def test_an_event_is_decoded_when_it_is_taken_and_once(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = decodes(monkeypatch)
    feed.deliver([event(1), event(2)])
    assert not decoded
    for _ in range(10):
        feed.take(0)
        feed.take(1)
    assert decoded == [1, 2]


async def test_an_event_that_cannot_be_decoded_is_an_error_of_who_takes_it(feed: Feed) -> None:
    feed.deliver([event(1)._replace(data=b"nonsense")])
    for _ in range(2):
        with pytest.raises(JSONDecodeError):
            feed.take(0)


@pytest.mark.parametrize("last", sorted(LAST_EVENT_TAGS))
async def test_who_waits_for_the_end_only_is_woken_by_it_alone(last: str) -> None:
    feed = Feed(ManualClock())
    before = feed.ends
    waiting = [asyncio.create_task(feed.ended_since(before)) for _ in range(1_000)]
    await asyncio.sleep(0)
    feed.deliver([event(1)])
    assert not await ends(asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED))
    feed.deliver([event(2), event(3, last)])
    await within(asyncio.gather(*waiting))
    assert feed.last == 0, "it keeps nothing: nobody follows the events"


async def test_many_are_woken_at_a_pace_and_at_once_by_many_events_and_the_end() -> None:
    clock = ManualClock()
    feed = Feed(clock)
    woken: Counter[str] = Counter()

    async def follow() -> None:
        cursor = 0
        while True:
            if block := feed.take(cursor):
                woken["taken"] += 1
                cursor = block[-1].seq
            else:
                await feed.moved()

    async def rounds() -> float:
        for _ in range(3):
            await asyncio.sleep(0)
        return woken["taken"] / 100

    with feed.followed(0):
        following = [asyncio.create_task(follow()) for _ in range(100)]
        assert await rounds() == 0
        feed.deliver([event(1)])
        assert await rounds() == 1
        feed.deliver([event(2)])
        feed.deliver([event(3)])
        assert await rounds() == 1
        clock.advance(0.1)
        assert await rounds() == 2
        feed.deliver([event(seq) for seq in range(4, 300)])
        assert await rounds() == 3
        feed.deliver([event(300, "batch_paused")])
        assert await rounds() == 3
        feed.wake()
        assert await rounds() == 4
        feed.deliver([event(301)._replace(tag="batch_cancelled", data=b'[[1,0,0],""]')])
        assert await rounds() == 5
        for task in following:
            task.cancel()
        await asyncio.wait(following)
    feed.close()


async def test_events_reach_the_subscribers_of_their_batch_only() -> None:
    subscriptions = Subscriptions(ManualClock())
    with subscriptions.to(BATCH) as one, subscriptions.to(OTHER) as other, one.followed(0), other.followed(0):
        with subscriptions.to(BATCH) as again:
            assert again is one
        subscriptions.deliver([event(1), event(1, batch_id=OTHER), event(2)])
        assert (seqs(one.take(0)), seqs(other.take(0))) == ([1, 2], [1])
        assert subscriptions.seen == {BATCH: 2, OTHER: 1}
    assert subscriptions.seen == {}
    assert subscriptions.latest(BATCH) is None


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


async def reads_and_commits(documents: int, subscribers: int) -> tuple[int, int, int]:
    """How often the store is read, and committed to, while one document runs after the other; and how many events."""
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
    return store.calls["events"] + store.calls["batch"], store.calls["commits"], len(first)


@pytest.mark.parametrize("subscribers", [1, 10, 100, 1_000])
async def test_the_store_is_read_and_an_event_is_decoded_once_for_all_subscribers(
    subscribers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, commits, _ = await reads_and_commits(4, subscribers)
    decoded = decodes(monkeypatch)
    more_reads, more_commits, events = await reads_and_commits(44, subscribers)
    assert more_commits >= commits + 40
    # The look-out may look once more or less at the beginning and at the end.
    assert abs(more_reads - reads) <= 2
    assert more_reads <= 12
    assert decoded == list(range(1, events + 1))


async def test_the_end_reaches_all_who_follow_in_any_way() -> None:
    clock = ManualClock()
    store = Counting(clock)
    gate = asyncio.Event()

    @workflow(STAGES)
    async def wait(document: str) -> str:
        await gate.wait()
        return document

    async with BatchOrchestrator(wait, worker=Worker(store, clock=clock, drain=NO_DRAIN)) as batches:
        batch_id = await batches.submit(["x"])
        following = [asyncio.create_task(everything(batches.progress(batch_id))) for _ in range(1_000)]
        results = [asyncio.create_task(batches.result(batch_id)) for _ in range(1_000)]
        await turns(5)
        before = store.calls["events"] + store.calls["batch"]
        gate.set()
        ended = await within(asyncio.gather(*following))
        for result in await within(asyncio.gather(*results)):
            assert result.counts.succeeded == 1
        assert {events[-1].tag for events in ended} == {"batch_completed"}
        # That it has ended is read for all.
        assert store.calls["events"] + store.calls["batch"] - before <= 10
        assert batches.worker.news.watched == []


async def test_subscribers_that_begin_at_different_points() -> None:
    clock = ManualClock()
    store = Counting(clock)
    async with BatchOrchestrator(shout, worker=Worker(store, clock=clock, max_in_flight=1, drain=NO_DRAIN)) as batches:
        batch_id = await batches.submit([str(number) for number in range(30)])
        live = [asyncio.create_task(everything(batches.progress(batch_id, after=after))) for after in range(80)]
        streams = await within(asyncio.gather(*live))
        whole = await within(everything(batches.progress(batch_id)))
        late = [everything(batches.progress(batch_id, after=after)) for after in range(80)]
        for after, (live_stream, late_stream) in enumerate(
            zip(streams, await within(asyncio.gather(*late)), strict=True)
        ):
            assert live_stream == late_stream == whole[after:]


async def test_a_slow_subscriber_holds_nobody_up_and_reads_what_is_kept_no_more() -> None:
    clock = ManualClock()
    store = Counting(clock)
    worker = Worker(store, clock=clock, max_in_flight=64, drain=NO_DRAIN)
    async with BatchOrchestrator(shout, worker=worker) as batches:
        batch_id = await batches.submit(["x"] * 1_200, config=BatchConfig(concurrency=64))
        async with aclosing(batches.progress(batch_id)) as slow:
            first = await anext(slow)
            others = await within(asyncio.gather(*(everything(batches.progress(batch_id)) for _ in range(20))))
            before = store.calls["events"]
            rest = await within(everything(slow))
    assert len(rest) > 2_048
    assert store.calls["events"] > before
    assert all(other == [first, *rest] for other in others)


async def test_subscribers_that_leave_in_the_middle_take_nothing_from_the_others() -> None:
    clock = ManualClock()
    store = Counting(clock)
    async with BatchOrchestrator(shout, worker=Worker(store, clock=clock, max_in_flight=1, drain=NO_DRAIN)) as batches:
        batch_id = await batches.submit([str(number) for number in range(40)])

        async def leave(after: int) -> None:
            async with aclosing(batches.progress(batch_id)) as events:
                async for seen in events:
                    if seen.seq == after:
                        return

        leaving = [asyncio.create_task(leave(number)) for number in range(1, 50)]
        cancelled = [asyncio.create_task(everything(batches.progress(batch_id))) for _ in range(50)]
        staying = [asyncio.create_task(everything(batches.progress(batch_id))) for _ in range(50)]
        for turn, task in enumerate(cancelled):
            await turns(turn % 3)
            task.cancel()
        first, *others = await within(asyncio.gather(*staying))
        await within(asyncio.gather(*leaving))
        await asyncio.wait(cancelled)
        assert seqs(first) == list(range(1, len(first) + 1))
        assert first[-1].tag == "batch_completed"
        assert all(other == first for other in others)
        assert batches.worker.news.watched == []


async def test_those_who_follow_through_a_client_share_its_reads(
    open_store: StoreMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        BatchOrchestrator(shout, worker=Worker(open_store(None), max_in_flight=1)) as batches,
        BatchClient(store := open_store(None)) as client,
    ):
        reads: Counter[str] = Counter()
        for name in ("events", "batch"):
            method = getattr(store, name)

            async def counted(*args: Any, name: str = name, method: Any = method, **kwargs: Any) -> Any:
                reads[name] += 1
                return await method(*args, **kwargs)

            monkeypatch.setattr(store, name, counted)
        decoded = decodes(monkeypatch)
        batch_id = await batches.submit([str(number) for number in range(20)])
        with client.signals.looked.listen() as looked:
            first, *others = await within(asyncio.gather(*(everything(client.progress(batch_id)) for _ in range(100))))
        assert seqs(first) == decoded == list(range(1, len(first) + 1))
        assert all(other == first for other in others)
        assert reads["events"] + reads["batch"] <= 3 * len(looked.heard) + 10


async def test_a_subscriber_beyond_a_gap_reads_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    store = Counting(clock)
    worker = Worker(store, clock=clock, max_in_flight=1, drain=NO_DRAIN)
    deliver, lost = Feed.deliver, list[EventRecord]()

    def deliver_some(feed: Feed, events: list[EventRecord]) -> None:
        """As where another process commits every third event."""
        lost.extend(event for event in events if event.seq % 3 == 0)
        if kept := [event for event in events if event.seq % 3]:
            deliver(feed, kept)

    monkeypatch.setattr(Feed, "deliver", deliver_some)
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
