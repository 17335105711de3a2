"""An operator pauses a batch, and resumes it: what finishes, what is released, and what is not called again."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import timedelta
from typing import Any, Literal

import pytest
from tests.conftest import StoreMaker
from tests.support import STAGES, everything

from durable_batches import (
    BatchClient,
    BatchConfig,
    BatchEndedError,
    BatchNotFoundError,
    BatchPaused,
    BatchResumed,
    ConfigurationError,
    DocumentReleased,
    Pause,
    QuotaExhausted,
    ReadOnlyClientError,
    Results,
    SQLiteStore,
    Workflow,
    durable_activity,
    workflow,
)
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.testing import ManualClock, environment

SECOND = timedelta(seconds=1)
HALF_A_SECOND = SECOND / 2
"""Between two looks of a worker."""


class Work:
    """Documents of two activities, and a resolver of two: each call takes a minute of the test's clock."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.calls: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()

    def workflow(self) -> Workflow[str, str, Any, int]:
        @durable_activity
        async def step(name: str) -> str:
            self.calls[name] += 1
            await self.clock.sleep(60)
            self.ended[name] += 1
            return name

        async def count(results: Results[str]) -> int:
            await step("resolver 1")
            await step("resolver 2")
            return sum([1 async for _ in results])

        @workflow(STAGES, resolver=count)
        async def run(document: str) -> str:
            await step(f"{document} 1")
            return await step(f"{document} 2")

        return run


@pytest.mark.parametrize("by", ["the orchestrator", "another process"])
async def test_running_calls_finish_and_no_other_starts_until_it_is_resumed(
    open_store: StoreMaker, by: str, caplog: pytest.LogCaptureFixture
) -> None:
    work = Work()
    config = BatchConfig(concurrency=2)
    # The worker is not told of what the client does.
    async with (
        environment(work.workflow(), store=open_store, clock=work.clock, config=config) as env,
        BatchClient(open_store(work.clock), clock=work.clock) as client,
    ):
        side = env.batches if by == "the orchestrator" else client
        batch_id = await env.batches.submit(["a", "b", "c"])
        await env.advance(30 * SECOND)
        assert work.calls == {"a 1": 1, "b 1": 1}
        assert await side.pause(batch_id, note="prices look wrong")
        assert not await env.batches.pause(batch_id)
        now = from_micros(work.clock.now())
        snapshot = await client.snapshot(batch_id)
        assert snapshot.pauses == (Pause(reason="operator", since=now, note="prices look wrong"),)
        assert (snapshot.state.tag, snapshot.counts.running) == ("reading", 2)
        await env.advance(HALF_A_SECOND)
        assert work.ended == {}
        await env.advance(timedelta(hours=10))
        # What was running is paid for and recorded; their documents have no worker.
        assert work.calls == work.ended == {"a 1": 1, "b 1": 1}
        snapshot = await client.snapshot(batch_id)
        assert (snapshot.counts.running, snapshot.counts.pending, snapshot.state.tag) == (0, 3, "reading")
        explanation = str(await env.batches.explain(batch_id))
        assert f"An operator has paused it at {now:%Y-%m-%d %H:%M:%S} UTC: prices look wrong." in explanation
        assert await side.resume(batch_id) == ()
        assert await side.resume(batch_id) == ()
        await env.settled()
        assert (await env.finished(batch_id)).value == 3
        events = await everything(env.batches.progress(batch_id))
    assert set(work.calls.values()) == {1}, "nothing is paid for twice"
    assert {event.reason for event in events if isinstance(event, DocumentReleased)} == {"paused"}
    assert sum(isinstance(event, BatchPaused) for event in events) == 1
    assert sum(isinstance(event, BatchResumed) for event in events) == 1
    if by == "the orchestrator":
        lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert lines == [
            f"batch {batch_id!r} paused (operator): prices look wrong; running calls finish, and nothing is started "
            "until it is resumed",
            f"batch {batch_id!r} resumed (operator)",
        ]


async def test_whole_documents_may_finish(open_store: StoreMaker) -> None:
    work = Work()
    config = BatchConfig(concurrency=2)
    async with environment(work.workflow(), store=open_store, clock=work.clock, config=config) as env:
        batch_id = await env.batches.submit(["a", "b", "c"])
        await env.advance(30 * SECOND)
        assert await env.batches.pause(batch_id, running="documents")
        await env.advance(timedelta(hours=1))
        assert work.ended == {"a 1": 1, "b 1": 1, "a 2": 1, "b 2": 1}
        snapshot = await env.batches.snapshot(batch_id)
        assert (snapshot.counts.succeeded, snapshot.counts.pending) == (2, 1)
        await env.batches.resume(batch_id)
        await env.advance(30 * SECOND)
        # Of a pause that waits for documents, one that does not is made.
        assert await env.batches.pause(batch_id, running="documents")
        assert await env.batches.pause(batch_id, running="calls")
        await env.advance(timedelta(hours=1))
        assert "c 2" not in work.calls
        await env.batches.resume(batch_id)
        assert (await env.finished(batch_id)).value == 3
    assert set(work.calls.values()) == {1}


async def test_a_pause_survives_the_end_of_the_process(open_store: StoreMaker) -> None:
    work = Work()
    run = work.workflow()
    async with environment(run, store=open_store, clock=work.clock) as env:
        batch_id = await env.batches.submit(["a"])
        await env.advance(30 * SECOND)
        await env.batches.pause(batch_id)
        await env.crash()
        await env.advance(timedelta(hours=1))
        assert work.calls == {"a 1": 1}
    async with environment(run, store=open_store, clock=work.clock) as env:
        await env.advance(timedelta(hours=1))
        assert work.calls == {"a 1": 1}
        assert (await env.batches.snapshot(batch_id)).paused
        await env.batches.resume(batch_id)
        assert (await env.finished(batch_id)).value == 1
    # The call that the crash has ended is made again.
    assert work.calls == {"a 1": 2, "a 2": 1, "resolver 1": 1, "resolver 2": 1}


async def test_a_resolver_is_paused_like_a_document(open_store: StoreMaker) -> None:
    work = Work()
    async with environment(work.workflow(), store=open_store, clock=work.clock) as env:
        batch_id = await env.batches.submit(["a"])
        await env.advance(150 * SECOND)
        await env.batches.pause(batch_id)
        await env.advance(timedelta(hours=1))
        assert work.ended["resolver 1"] == 1
        assert "resolver 2" not in work.calls
        assert (await env.batches.state(batch_id)).tag == "resolving"
        await env.batches.resume(batch_id)
        assert (await env.finished(batch_id)).value == 1
    assert set(work.calls.values()) == {1}


async def test_a_paused_batch_can_be_cancelled_and_its_deadline_runs_on() -> None:
    work = Work()
    async with environment(work.workflow(), clock=work.clock, config=BatchConfig(deadline=timedelta(hours=1))) as env:
        late, cancelled = await env.batches.submit(["a"]), await env.batches.submit(["b"])
        for batch_id in (late, cancelled):
            await env.batches.pause(batch_id)
        await env.advance(timedelta(minutes=59))
        assert await env.batches.cancel(cancelled)
        assert (await env.batches.state(late)).tag == "pending"
        await env.advance(timedelta(minutes=2))
        assert (await env.batches.state(late)).tag == "failed"
        for batch_id in (late, cancelled):
            assert not (await env.batches.snapshot(batch_id)).paused
    assert not work.calls


async def test_what_waits_for_its_retry_is_released_and_its_attempt_is_over(open_store: StoreMaker) -> None:
    """A pause does not wait for hours until a provider that is overloaded may be asked again."""
    clock = ManualClock()
    asked: list[float] = []

    @durable_activity
    async def ask(text: str) -> str:
        asked.append(clock.boot())
        if len(asked) == 1:
            raise TimeoutError("later")
        return text

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await ask(document)

    async with environment(run, store=open_store, clock=clock) as env:
        batch_id = await env.batches.submit(["x"])
        await env.settled()
        await env.batches.pause(batch_id)
        await env.settled()
        assert (await env.batches.snapshot(batch_id)).counts.running == 0
        await env.advance(timedelta(hours=1))
        assert len(asked) == 1
        await env.batches.resume(batch_id)
        assert (await env.finished(batch_id)).counts.succeeded == 1


async def test_what_looks_for_the_end_of_a_quota_is_paused_too(open_store: StoreMaker) -> None:
    clock = ManualClock()
    asked: list[str] = []
    serves = False

    @durable_activity
    async def ask(text: str) -> str:
        asked.append(text)
        await clock.sleep(10)
        if not serves:
            raise QuotaExhausted("no credit")
        return text

    @workflow(STAGES)
    async def run(document: str) -> str:
        await ask(document)
        return await ask(document + "!")

    async with environment(run, store=open_store, clock=clock, config=BatchConfig(concurrency=1)) as env:
        batch_id = await env.batches.submit(["x", "y"])
        await env.advance(15 * SECOND)
        assert asked == ["x"]
        # The account is filled up: nobody waits for the next look.
        serves = True
        (left,) = await env.batches.resume(batch_id)
        assert left.reason == "quota"
        await env.advance(5 * SECOND)
        assert asked == ["x", "y"]
        await env.batches.pause(batch_id)
        await env.advance(timedelta(hours=1))
        assert asked == ["x", "y"], "the look's next call does not start"
        assert [pause.reason for pause in (await env.batches.snapshot(batch_id)).pauses] == ["operator"]
        assert await env.batches.resume(batch_id) == ()
        assert (await env.finished(batch_id)).counts.succeeded == 2
    assert Counter(asked) == {"x": 2, "x!": 1, "y": 1, "y!": 1}


# ---- bad input -------------------------------------------------------------------------------------------------------


async def test_bad_input_is_refused() -> None:
    work = Work()
    wrong: Any = "everything"
    number: Any = 1
    async with environment(work.workflow(), clock=work.clock) as env:
        with pytest.raises(BatchNotFoundError):
            await env.batches.pause("nowhere")
        batch_id = await env.batches.submit(["a"])
        with pytest.raises(ConfigurationError, match="running must be one of calls, documents, not 'everything'"):
            await env.batches.pause(batch_id, running=wrong)
        with pytest.raises(ConfigurationError, match="note must be"):
            await env.batches.pause(batch_id, note=number)
        await env.finished(batch_id)
        commands: list[tuple[Literal["pause", "resume"], Any]] = [
            ("pause", env.batches.pause),
            ("resume", env.batches.resume),
        ]
        for name, command in commands:
            message = rf"{name}\(\) of batch '{batch_id}' changes nothing: it has ended, and is completed"
            with pytest.raises(BatchEndedError, match=message):
                await command(batch_id)


async def test_a_client_that_reads_only_refuses_both(tmp_path: Any) -> None:
    store = SQLiteStore(tmp_path / "batches.db")
    await store.open()
    async with BatchClient(store, read_only=True) as client:
        for command in (client.pause, client.resume):
            with pytest.raises(ReadOnlyClientError, match=command.__name__):
                await command("batch")
    await store.close()
