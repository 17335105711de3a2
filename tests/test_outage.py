"""The store's outages: calls that are repeated, pauses that grow, and one line of the log at each end."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest
from tests.support import NO_DRAIN, PATIENCE, STAGES, eventually, moving, within

from durable_batches import BatchOrchestrator, MemoryStore, Worker, workflow
from durable_batches.errors import (
    CommitUnknownError,
    OldWorkersError,
    SchemaTooNewError,
    StoreAccessError,
    StoreCorruptError,
    StoreFullError,
    StoreLockedError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.outage import Backoff, Outages, repeat_unknown, ride_out
from durable_batches.reading.news import News
from durable_batches.reading.signals import NewsSignals
from durable_batches.testing import ManualClock

AWAY = StoreUnavailableError("nobody answers")


class Calls:
    """A call to a store that fails with these errors, one after the other, and then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.made = 0

    async def __call__(self) -> str:
        self.made += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


class Sleeps:
    """Pauses of the clock, which take no time."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.clock.advance(seconds)


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= level]


# ---- pauses -----------------------------------------------------------------------------------------------------


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(0.5, 3.0)
    assert [backoff.pause() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    backoff.reset()
    assert backoff.pause() == 0.5


# ---- which failures pass -----------------------------------------------------------------------------------------


def test_every_kind_says_whether_it_is_transient() -> None:
    assert AWAY.transient
    assert StoreLockedError("here").transient
    assert CommitUnknownError("lost").transient
    lasting = (
        StoreReadOnlyError,
        StoreAccessError,
        StoreFullError,
        StoreCorruptError,
        SchemaTooNewError,
        OldWorkersError,
    )
    assert not any(kind.transient for kind in lasting)


async def test_a_call_is_repeated_until_it_is_answered() -> None:
    clock = ManualClock()
    call, sleeps = Calls(*[AWAY] * 4), Sleeps(clock)
    assert await ride_out(call, Outages(clock), "a test", sleeps) == "answer"
    assert call.made == 5
    assert sleeps.seconds == [0.05, 0.1, 0.2, 0.4]


@pytest.mark.parametrize("error", [StoreFullError("full"), ValueError("no")])
async def test_what_does_not_pass_by_itself_is_raised(error: Exception) -> None:
    clock = ManualClock()
    call, sleeps = Calls(AWAY, error), Sleeps(clock)
    with pytest.raises(type(error)):
        await ride_out(call, Outages(clock), "a test", sleeps)
    assert call.made == 2


async def test_a_caller_decides_what_passes() -> None:
    clock = ManualClock()
    call, sleeps = Calls(StoreFullError("full")), Sleeps(clock)
    answer = await ride_out(call, Outages(clock), "a test", sleeps, backoff=lambda: Backoff(7.0), passes=lambda _: True)
    assert answer == "answer"
    assert sleeps.seconds == [7.0]


async def test_a_write_whose_reply_was_lost_is_made_five_times_at_most() -> None:
    clock = ManualClock()
    async with moving(clock, 1.0):
        answered, lost = Calls(*[CommitUnknownError("lost")] * 4), Calls(*[CommitUnknownError("lost")] * 5)
        outages = Outages(clock)
        assert await within(repeat_unknown(answered, outages, "a test", clock)) == "answer"
        with pytest.raises(CommitUnknownError):
            await within(repeat_unknown(lost, outages, "a test", clock))
    assert (answered.made, lost.made) == (5, 5)


async def test_a_write_that_was_not_made_is_not_repeated() -> None:
    clock = ManualClock()
    call = Calls(AWAY)
    with pytest.raises(StoreUnavailableError):
        await repeat_unknown(call, Outages(clock), "a test", clock)
    assert call.made == 1


# ---- the log -----------------------------------------------------------------------------------------------------


async def test_an_outage_has_one_line_at_its_begin_and_one_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    await ride_out(Calls(*[AWAY] * 9), Outages(clock), "a test", Sleeps(clock))
    assert lines(caplog) == [
        "store unavailable: nobody answers; waiting: a test",
        "store connection restored after 16.4 s",
    ]
    began, ended = (record.__dict__ for record in caplog.records if record.levelno >= logging.WARNING)
    assert (began["operation"], began["error_code"]) == ("a test", "store-unavailable")
    assert ended["outage_seconds"] == pytest.approx(16.35)


def test_all_who_call_one_store_share_the_lines(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    outages = Outages(clock)
    with outages.of("one") as one, outages.of("another") as another:
        one.answered()
        one.failed(AWAY)
        another.failed(AWAY)
        clock.advance(1)
        one.answered()
        one.answered()
        one.failed(AWAY)
        clock.advance(2)
        another.answered()
        assert lines(caplog) == ["store unavailable: nobody answers; waiting: one"]
        one.answered()
    assert lines(caplog)[1:] == ["store connection restored after 3.0 s"]


def test_another_cause_is_logged_in_the_midst_of_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    with Outages(ManualClock()).of("one") as one:
        one.failed(AWAY)
        one.failed(StoreReadOnlyError("it is a replica now"))
        one.failed(StoreReadOnlyError("it is a replica now"))
        one.answered()
    assert lines(caplog) == [
        "store unavailable: nobody answers; waiting: one",
        "store still unavailable: it is a replica now; waiting: one",
        "store connection restored after 0.0 s",
    ]


def test_the_end_of_all_waiting_is_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    with Outages(ManualClock()).of("one") as one:
        one.failed(AWAY)
    assert lines(caplog)[1:] == ["nothing waits for the store any more after 0.0 s"]


def test_threads_may_share_them(caplog: pytest.LogCaptureFixture) -> None:
    outages = Outages(ManualClock())
    together = threading.Barrier(8)

    def fail_and_recover() -> None:
        with outages.of("a thread") as outage:
            together.wait()
            for _ in range(50):
                outage.failed(AWAY)
            together.wait()
            outage.answered()

    threads = [threading.Thread(target=fail_and_recover) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines(caplog)) == 2


# ---- a worker's --------------------------------------------------------------------------------------------------


@workflow(STAGES)
async def shout(document: str) -> str:
    return document.upper()


class Moody(MemoryStore):
    """A store that can be away, as a whole."""

    away = False

    def _check(self) -> None:
        if self.away:
            raise AWAY

    async def commit(self, *args: Any, **kwargs: Any) -> Any:
        self._check()
        return await super().commit(*args, **kwargs)

    async def register(self, *args: Any, **kwargs: Any) -> None:
        self._check()
        await super().register(*args, **kwargs)

    async def leave(self, *args: Any, **kwargs: Any) -> Any:
        self._check()
        return await super().leave(*args, **kwargs)

    async def workers(self) -> Any:
        self._check()
        return await super().workers()

    async def wait(self, *args: Any, **kwargs: Any) -> None:
        self._check()
        await super().wait(*args, **kwargs)

    async def batch(self, *args: Any, **kwargs: Any) -> Any:
        self._check()
        return await super().batch(*args, **kwargs)

    def beat(self, *args: Any, **kwargs: Any) -> bool:
        self._check()
        return super().beat(*args, **kwargs)


async def pass_time(clock: ManualClock, seconds: float) -> None:
    """Move the clock when the lease renewer waits, which would otherwise be left behind."""
    await eventually(lambda: clock.waiting_threads == 1)
    clock.advance(seconds)
    await asyncio.sleep(0)


async def test_a_worker_has_two_lines_for_an_outage_however_many_of_its_loops_notice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = ManualClock()
    store = Moody(clock=clock)
    worker = Worker(store, clock=clock, drain=NO_DRAIN)
    async with BatchOrchestrator(shout, worker=worker) as batches:
        batch_id = await batches.submit(["x"])
        await within(batches.result(batch_id))
        signals = worker.signals
        with signals.journal.pausing.listen() as pausing, signals.lease.failed.listen() as renewal_failed:
            store.away = True
            waiting = asyncio.create_task(batches.submit(["y"], batch_id="later"))
            worker.wake()
            await pausing.next()
            await pass_time(clock, 10)
            await renewal_failed.next()
            store.away = False
            while len(lines(caplog)) < 2:
                await pass_time(clock, 1)
            await within(waiting)
            await within(batches.result("later"))
    assert len(lines(caplog)) == 2, lines(caplog)
    assert lines(caplog)[0].startswith("store unavailable: nobody answers; ")
    assert lines(caplog)[1].startswith("store connection restored after ")


async def test_an_outage_that_costs_the_lease_is_one_outage(caplog: pytest.LogCaptureFixture) -> None:
    """The session gives up when its loop has stood still for too long, and its successor goes on waiting."""
    clock = ManualClock()
    store = Moody(clock=clock)
    worker = Worker(store, clock=clock, drain=NO_DRAIN)
    signals = worker.signals
    async with BatchOrchestrator(shout, worker=worker) as batches:
        with (
            signals.membership.lease_lost.listen() as lost,
            signals.membership.restarted.listen() as restarted,
            signals.journal.pausing.listen() as pausing,
        ):
            await pass_time(clock, 1)
            store.away = True
            began = clock.boot()
            worker.wake()
            await pausing.next()
            await eventually(lambda: clock.waiting_threads == 1)
            clock.advance(301)
            for thread in threading.enumerate():
                if thread.name == "durable-batches lease":
                    # It gives the loop time to turn, then gives the lease up, and ends: the loop stands still.
                    while clock.waiting_threads == 0 and thread.is_alive():
                        thread.join(0.001)
                    clock.advance(2)
                    thread.join(PATIENCE)
            await lost.next()
            async with moving(clock, 1.0):
                await eventually(lambda: clock.boot() > began + 390)
                store.away = False
                await restarted.next()
        assert (await within(batches.run(["x"]))).counts.succeeded == 1
    outage = [record for record in caplog.records if "operation" in record.__dict__ and record.levelno > logging.INFO]
    assert [record.message.partition(":")[0].partition(" after")[0] for record in outage] == [
        "store unavailable",
        "store connection restored",
    ]
    assert outage[1].__dict__["outage_seconds"] > 385


def test_an_outage_is_joined_only_if_there_is_one(caplog: pytest.LogCaptureFixture) -> None:
    outages = Outages(ManualClock())
    with outages.of("one") as one, outages.of("another") as another:
        another.join()
        assert not another.away
        one.failed(AWAY)
        another.join()
        one.give_up()
        assert len(lines(caplog)) == 1
        another.answered()
    assert lines(caplog)[1:] == ["store connection restored after 0.0 s"]


async def test_subscribers_that_leave_in_an_outage_leave_none_behind(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    store = Moody(clock=clock)
    outages, signals = Outages(clock), NewsSignals()
    news = News(store, clock, outages, signals)
    news.open()
    for _ in range(2):
        store.away = True
        with news.subscribed(BatchId("a")):
            # As a subscriber does that has read its batch.
            news.look_out()
            await eventually(lambda: bool(outages._cut_off))
        async with moving(clock, 1.0):
            await eventually(lambda: not outages._cut_off)
    await news.close()
    assert [line.partition(":")[0].partition(" after")[0] for line in lines(caplog)] == [
        "store unavailable",
        "nothing waits for the store any more",
    ] * 2
