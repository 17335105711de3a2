"""What was recorded is not run again: after an interruption, in a new version of the code, at a document's retry."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import count
from typing import Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel
from tests.conftest import StoreMaker
from tests.support import (
    NO_DELAY,
    NO_DRAIN,
    ONCE,
    STAGES,
    Thinking,
    Writing,
    eventually,
    everything,
    in_turns,
    turns,
    within,
)

from durable_batches import (
    ActivityFailedError,
    BatchConfig,
    BatchId,
    BatchOrchestrator,
    DocumentCompleted,
    DocumentFailure,
    DocumentRetrying,
    DocumentSucceeded,
    MemoryStore,
    Outcome,
    RetryFailed,
    RetryPolicy,
    Store,
    StoreUnavailableError,
    Worker,
    current_activity,
    durable_activity,
    durable_now,
    durable_uuid,
    enter_stage,
    map_activity,
    workflow,
)
from durable_batches.lifecycle.facts import ActivityCompleted, ActivityFailed, Fact, StageEntered
from durable_batches.lifecycle.records import ClaimRequest, Committed, WorkerId
from durable_batches.testing import ManualClock, environment


class Log:
    """Which calls were made, and a gate that some of them wait at."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.gate = asyncio.Event()

    def note(self, call: str) -> None:
        self.calls.append(call)

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.calls)


async def interrupted(run: Any, open_store: StoreMaker, log: Log, last: str, documents: Sequence[Any] = ("x",)) -> str:
    """Run until the call named `last` was made, and leave at once; the batch's id."""
    worker = Worker(open_store(None), drain=NO_DRAIN)
    async with BatchOrchestrator(run, worker=worker) as batches:
        batch_id = await batches.submit(documents)
        await eventually(lambda: last in log.calls)
        # What was recorded before is committed by now: a call is only made once its predecessor is.
    return batch_id


async def resumed(run: Any, open_store: StoreMaker, batch_id: str) -> list[Outcome[Any]]:
    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        await within(batches.result(batch_id))
        return await everything(batches.results(batch_id))


# ---- after an interruption ---------------------------------------------------------------------------------


async def test_only_what_was_not_recorded_is_run(open_store: StoreMaker) -> None:
    log = Log()

    @durable_activity
    async def step(name: str) -> str:
        log.note(name)
        if name == "b":
            await log.gate.wait()
        return name.upper()

    @durable_activity
    def step_sync(name: str) -> str:
        log.note(name)
        return name.upper()

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await step_sync("s") + await step("a") + await step("b") + await step("c")

    batch_id = await interrupted(run, open_store, log, "b")
    log.gate.set()
    assert await resumed(run, open_store, batch_id) == [DocumentSucceeded(document_id="0", value="SABC")]
    assert log.counts == {"s": 1, "a": 1, "b": 2, "c": 1}


async def test_an_interruption_between_two_documents(open_store: StoreMaker) -> None:
    log = Log()

    @durable_activity
    async def step(name: str) -> str:
        log.note(name)
        if len(log.calls) > 12:
            await log.gate.wait()
        return name

    @workflow(STAGES)
    async def run(document: int) -> list[str]:
        return [await step(f"{document}-{part}") for part in range(3)]

    worker = Worker(open_store(None), drain=NO_DRAIN)
    async with BatchOrchestrator(run, worker=worker, config=BatchConfig(concurrency=3)) as batches:
        batch_id = await batches.submit(range(10))
        await eventually(lambda: len(log.calls) >= 13)
        recorded = await batches.count_checkpoints(batch_id)
    before = len(log.calls)
    log.gate.set()
    outcomes = await resumed(run, open_store, batch_id)
    assert [outcome.value for outcome in outcomes if isinstance(outcome, DocumentSucceeded)] == [
        [f"{document}-{part}" for part in range(3)] for document in range(10)
    ]
    # Those that were in flight, and no others, ran twice.
    assert len(log.calls) <= 30 + 3
    assert before - recorded <= 3
    assert all(times <= 2 for times in log.counts.values())


async def test_it_may_be_interrupted_at_every_call(open_store: StoreMaker) -> None:
    log = Log()

    @durable_activity
    async def step(number: int) -> int:
        log.note(str(number))
        if log.counts[str(number)] == 1:
            await asyncio.Event().wait()
        return number

    @workflow(STAGES)
    async def run(document: str) -> int:
        return await step(0) + await step(1) + await step(2) + await step(3)

    batch_id = await interrupted(run, open_store, log, "0")
    for name in "123":
        worker = Worker(open_store(None), drain=NO_DRAIN)
        async with BatchOrchestrator(run, worker=worker):
            await eventually(lambda name=name: name in log.calls)  # type: ignore[misc]
    assert await resumed(run, open_store, batch_id) == [DocumentSucceeded(document_id="0", value=6)]
    assert log.counts == {"0": 2, "1": 2, "2": 2, "3": 2}


async def test_concurrent_calls_may_come_in_another_order(open_store: StoreMaker) -> None:
    log = Log()
    turned = False

    @durable_activity
    async def step(name: str) -> str:
        log.note(name)
        if name in ("c", "last"):
            await log.gate.wait()
        return name.upper()

    @workflow(STAGES)
    async def run(document: str) -> str:
        names = ["a", "b", "c", "d"]
        if turned:
            names.reverse()
        upper = await asyncio.gather(*map(step, names))
        return "".join(sorted(upper))

    worker = Worker(open_store(None), drain=NO_DRAIN)
    async with BatchOrchestrator(run, worker=worker) as batches:
        batch_id = await batches.submit(["x"])

        async def all_but_one_recorded() -> bool:
            return await batches.count_checkpoints(batch_id) == 3

        await eventually(all_but_one_recorded)
    turned = True
    log.gate.set()
    assert await resumed(run, open_store, batch_id) == [DocumentSucceeded(document_id="0", value="ABCD")]
    assert log.counts == {"a": 1, "b": 1, "c": 2, "d": 1}


async def test_identical_concurrent_calls_are_counted(open_store: StoreMaker) -> None:
    log = Log()
    numbers = count()

    @durable_activity
    async def draw() -> int:
        log.note("draw")
        number = next(numbers)
        if number == 2:
            await log.gate.wait()
        return number

    @workflow(STAGES)
    async def run(document: str) -> list[int]:
        return sorted(await asyncio.gather(draw(), draw(), draw(), draw()))

    worker = Worker(open_store(None), drain=NO_DRAIN)
    async with BatchOrchestrator(run, worker=worker) as batches:
        batch_id = await batches.submit(["x"])

        async def all_but_one_recorded() -> bool:
            return await batches.count_checkpoints(batch_id) == 3

        await eventually(all_but_one_recorded)
    assert await resumed(run, open_store, batch_id) == [DocumentSucceeded(document_id="0", value=[0, 1, 3, 4])]
    assert len(log.calls) == 5


async def test_more_checkpoints_than_come_with_a_claim(open_store: StoreMaker) -> None:
    log = Log()

    @durable_activity
    async def step(number: int) -> int:
        log.note(str(number))
        if number == -1:
            await log.gate.wait()
        return number

    @workflow(STAGES)
    async def run(document: str) -> int:
        total = sum(await map_activity(step, range(2_300), concurrency=200))
        return total + await step(-1)

    batch_id = await interrupted(run, open_store, log, "-1")
    log.gate.set()
    assert await resumed(run, open_store, batch_id) == [
        DocumentSucceeded(document_id="0", value=2_300 * 2_299 // 2 - 1)
    ]
    assert len(log.calls) == 2_302


async def test_a_document_whose_checkpoints_cannot_be_read_now_is_given_back(
    open_store: StoreMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log()

    @durable_activity
    async def step(number: int) -> int:
        log.note(str(number))
        if number == -1:
            await log.gate.wait()
        return number

    @workflow(STAGES)
    async def run(document: str) -> int:
        return sum(await map_activity(step, range(1_100), concurrency=200)) + await step(-1)

    batch_id = await interrupted(run, open_store, log, "-1")
    log.gate.set()
    store = open_store(None)
    failures = iter([StoreUnavailableError("away for a moment")] * 2)
    original = store.checkpoints

    async def checkpoints(*args: Any, **kwargs: Any) -> Any:
        for failure in failures:
            raise failure
        return await original(*args, **kwargs)

    monkeypatch.setattr(store, "checkpoints", checkpoints)
    async with BatchOrchestrator(run, store=store) as batches:
        assert (await within(batches.result(batch_id))).counts.succeeded == 1
    assert len(log.calls) == 1_102


async def test_a_call_that_the_workflow_itself_gives_up_is_not_recorded(open_store: StoreMaker) -> None:
    log = Log()
    patience: list[asyncio.Timeout] = []

    @durable_activity
    async def slow() -> str:
        log.note("slow")
        if not log.gate.is_set():
            # The second time it has all the time that it needs.
            patience[0].reschedule(asyncio.get_running_loop().time())
        await log.gate.wait()
        return "slow"

    @durable_activity
    async def last() -> None:
        log.note("last")
        await log.gate.wait()

    @workflow(STAGES)
    async def run(document: str) -> str:
        try:
            async with asyncio.timeout(None) as limit:
                patience.append(limit)
                found = await slow()
        except TimeoutError:
            found = "gave up"
        await last()
        return found

    batch_id = await interrupted(run, open_store, log, "last")
    log.gate.set()
    assert await resumed(run, open_store, batch_id) == [DocumentSucceeded(document_id="0", value="slow")]
    assert log.counts == {"slow": 2, "last": 2}


async def test_a_worker_that_was_declared_dead_starts_anew_and_repeats_nothing(open_store: StoreMaker) -> None:
    log = Log()
    store = open_store(None)

    @durable_activity
    async def step(name: str) -> str:
        log.note(name)
        if name == "b" and log.counts["b"] == 1:
            await asyncio.Event().wait()
        return name

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await step("a") + await step("b")

    async with BatchOrchestrator(run, store=store) as batches:
        batch_id = await batches.submit(["x"])
        await eventually(lambda: "b" in log.calls)
        before = batches.worker.worker_id
        expired = await store.expire(dead=[before])
        assert list(expired.workers) == [before]
        await within(batches.result(batch_id))
        assert await everything(batches.results(batch_id)) == [DocumentSucceeded(document_id="0", value="ab")]
        assert batches.worker.worker_id != before
    assert log.counts == {"a": 1, "b": 2}


async def test_the_idempotency_key_is_the_same_after_an_interruption(open_store: StoreMaker) -> None:
    log = Log()
    keys: list[tuple[int, str]] = []

    @durable_activity
    async def pay(amount: int) -> str:
        keys.append((amount, current_activity().idempotency_key))
        log.note(str(amount))
        if amount == 2:
            await log.gate.wait()
        return "paid"

    @workflow(STAGES)
    async def run(document: str) -> list[str]:
        return [await pay(1), await pay(1), await pay(2)]

    batch_id = await interrupted(run, open_store, log, "2")
    log.gate.set()
    await resumed(run, open_store, batch_id)
    assert [amount for amount, _ in keys] == [1, 1, 2, 2]
    assert keys[2] == keys[3]
    assert len({key for _, key in keys}) == 3


async def test_the_time_and_the_random_id_are_the_same_on_replay(open_store: StoreMaker) -> None:
    log = Log()
    seen: list[tuple[datetime, UUID, UUID]] = []

    @durable_activity
    async def wait() -> None:
        log.note("wait")
        await log.gate.wait()

    @workflow(STAGES)
    async def run(document: str) -> str:
        seen.append((await durable_now(), await durable_uuid(), await durable_uuid()))
        await wait()
        return ""

    batch_id = await interrupted(run, open_store, log, "wait")
    log.gate.set()
    await resumed(run, open_store, batch_id)
    assert len(seen) == 2
    assert seen[0] == seen[1]
    moment, one, other = seen[0]
    assert moment.utcoffset() == timedelta(0)
    assert one != other


async def test_the_time_is_the_worker_s(store: Store) -> None:
    clock = ManualClock(datetime(2031, 5, 6, 7, 8, 9).astimezone())

    @workflow(STAGES)
    async def run(document: str) -> datetime:
        return await durable_now()

    async with BatchOrchestrator(run, worker=Worker(store, clock=clock)) as batches:
        result = await within(batches.run(["x"]))
        (outcome,) = await everything(batches.results(result.batch_id))
    assert isinstance(outcome, DocumentSucceeded)
    assert outcome.value == datetime(2031, 5, 6, 7, 8, 9).astimezone()


# ---- a new version of the code -----------------------------------------------------------------------------


async def test_an_activity_may_be_inserted(open_store: StoreMaker) -> None:
    log = Log()

    @durable_activity
    async def step(name: str) -> str:
        log.note(name)
        if name == "c":
            await log.gate.wait()
        return name

    @workflow(STAGES, name="run")
    async def old(document: str) -> str:
        return await step("a") + await step("b") + await step("c")

    @workflow(STAGES, name="run")
    async def new(document: str) -> str:
        return await step("new") + await step("b") + await step("newer") + await step("a") + await step("c")

    batch_id = await interrupted(old, open_store, log, "c")
    log.gate.set()
    assert await resumed(new, open_store, batch_id) == [DocumentSucceeded(document_id="0", value="newbneweracc"[:-1])]
    assert log.counts == {"a": 1, "b": 1, "c": 2, "new": 1, "newer": 1}


async def test_an_activity_that_is_removed_is_counted_shown_and_warned_about(
    open_store: StoreMaker, caplog: pytest.LogCaptureFixture
) -> None:
    log = Log()

    @durable_activity
    async def step(name: str) -> str:
        log.note(name)
        if name == "c":
            await log.gate.wait()
        return name

    @workflow(STAGES, name="run")
    async def old(document: str) -> str:
        return await step("a") + await step("b") + await step("c")

    @workflow(STAGES, name="run")
    async def new(document: str) -> str:
        return await step("b") + await step("c")

    batch_id = await interrupted(old, open_store, log, "c")
    log.gate.set()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "durable_batches"):
        async with BatchOrchestrator(new, store=open_store(None)) as batches:
            await within(batches.result(batch_id))
            events = await everything(batches.progress(batch_id))
            stats = batches.stats
    assert log.counts == {"a": 1, "b": 1, "c": 2}
    (completed,) = (event for event in events if isinstance(event, DocumentCompleted))
    assert completed.unused_checkpoints == 1
    assert (stats.checkpoints_unused, stats.activities_replayed, stats.activities_run) == (1, 1, 1)
    (warning,) = (record.getMessage() for record in caplog.records)
    assert f"document '0' of batch '{batch_id}' did not use 1 of its recorded activities" in warning


async def test_what_is_used_is_not_warned_about(open_store: StoreMaker, caplog: pytest.LogCaptureFixture) -> None:
    log = Log()

    @durable_activity
    async def step(name: str) -> str:
        log.note(name)
        if name == "b":
            await log.gate.wait()
        return name

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await step("a") + await step("b")

    batch_id = await interrupted(run, open_store, log, "b")
    log.gate.set()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "durable_batches"):
        await resumed(run, open_store, batch_id)
    assert not caplog.records


class OldPage(BaseModel):
    url: str


class NewPage(BaseModel):
    url: str
    language: str | None = None
    tags: list[str] = []


async def test_an_optional_field_or_parameter_may_be_added(open_store: StoreMaker) -> None:
    log = Log()

    def old() -> Any:
        @durable_activity
        async def fetch(page: OldPage) -> OldPage:
            log.note("fetch")
            return page

        @durable_activity
        async def last() -> None:
            log.note("last")
            await log.gate.wait()

        @workflow(STAGES)
        async def run(document: str) -> OldPage:
            page = await fetch(OldPage(url=document))
            await last()
            return page

        return run

    def new() -> Any:
        @durable_activity
        async def fetch(page: NewPage, retries: int = 3) -> NewPage:
            log.note("fetch")
            return page

        @durable_activity
        async def last() -> None:
            log.note("last")

        @workflow(STAGES)
        async def run(document: str) -> NewPage:
            page = await fetch(page=NewPage(url=document))
            await last()
            return page

        return run

    batch_id = await interrupted(old(), open_store, log, "last")
    assert await resumed(new(), open_store, batch_id) == [DocumentSucceeded(document_id="0", value=NewPage(url="x"))]
    assert log.counts == {"fetch": 1, "last": 2}


async def test_a_new_version_of_an_activity_is_run_again(open_store: StoreMaker) -> None:
    log = Log()

    def made(version: str) -> Any:
        @durable_activity(version=version)
        async def step() -> str:
            log.note(version)
            return version

        @durable_activity
        async def last() -> None:
            log.note("last")
            if log.counts["last"] == 1:
                await log.gate.wait()

        @workflow(STAGES)
        async def run(document: str) -> str:
            value = await step()
            await last()
            return value

        return run

    batch_id = await interrupted(made("1"), open_store, log, "last")
    assert await resumed(made("2"), open_store, batch_id) == [DocumentSucceeded(document_id="0", value="2")]
    assert log.counts == {"1": 1, "2": 1, "last": 2}


async def test_a_recorded_result_that_the_code_cannot_read_any_more_fails_the_document(open_store: StoreMaker) -> None:
    log = Log()

    def made(kind: Any) -> Any:
        async def step() -> Any:
            return "not a number"

        step.__annotations__["return"] = kind
        recorded = durable_activity(step)

        @durable_activity
        async def last() -> None:
            log.note("last")
            await log.gate.wait()

        @workflow(STAGES)
        async def run(document: str) -> None:
            await recorded()
            await last()

        return run

    batch_id = await interrupted(made(str), open_store, log, "last")
    (failure,) = await resumed(made(int), open_store, batch_id)
    assert isinstance(failure, DocumentFailure)
    assert failure.error_type == "PayloadError"
    assert "the result of activity 'step'" in failure.error
    assert "not a number" not in failure.error


# ---- recorded failures -------------------------------------------------------------------------------------


async def test_a_recorded_failure_takes_the_same_branch_again(open_store: StoreMaker) -> None:
    log = Log()

    @durable_activity(retry=ONCE)
    async def primary() -> str:
        log.note("primary")
        if log.counts["primary"] == 1:
            raise ConnectionError("down")
        return "primary"

    @durable_activity
    async def secondary() -> str:
        log.note("secondary")
        await log.gate.wait()
        return "secondary"

    @workflow(STAGES)
    async def run(document: str) -> str:
        try:
            return await primary()
        except ActivityFailedError as error:
            if not error.caused_by(ConnectionError):
                raise
            return await secondary()

    batch_id = await interrupted(run, open_store, log, "secondary")
    log.gate.set()
    assert await resumed(run, open_store, batch_id) == [DocumentSucceeded(document_id="0", value="secondary")]
    assert log.counts == {"primary": 1, "secondary": 2}


def retrying(attempts: int = 3) -> BatchConfig:
    return BatchConfig(failure_policy=RetryFailed(max_attempts=attempts, backoff=NO_DELAY))


async def test_a_retry_forgets_the_failure_that_ended_the_attempt_and_keeps_the_rest(store: Store) -> None:
    log = Log()

    @durable_activity(retry=ONCE)
    async def optional() -> str:
        log.note("optional")
        raise ConnectionError("never there")

    @durable_activity
    async def sibling(name: str) -> str:
        log.note(name)
        return name

    @durable_activity(retry=ONCE)
    async def failing() -> str:
        log.note("failing")
        if log.counts["failing"] < 3:
            raise ConnectionError(f"not the {log.counts['failing']}. time")
        return "at last"

    @workflow(STAGES)
    async def run(document: str) -> list[str]:
        try:
            found = await optional()
        except ActivityFailedError:
            found = "nothing"
        before = await sibling("before")
        return [found, before, *await asyncio.gather(sibling("a"), failing(), sibling("b"))]

    async with BatchOrchestrator(run, store=store, config=retrying()) as batches:
        result = await within(batches.run(["x"]))
        assert await everything(batches.results(result.batch_id)) == [
            DocumentSucceeded(document_id="0", value=["nothing", "before", "a", "at last", "b"])
        ]
        events = await everything(batches.progress(result.batch_id))
    assert log.counts == {"optional": 1, "before": 1, "a": 1, "b": 1, "failing": 3}
    retries = [event for event in events if isinstance(event, DocumentRetrying)]
    assert [event.failures for event in retries] == [1, 2]
    assert "not the 2. time" in retries[1].error
    assert all(event.unused_checkpoints == 0 for event in events if isinstance(event, DocumentCompleted))


async def test_a_failure_within_a_failure_is_forgotten_with_it(store: Store) -> None:
    log = Log()

    @durable_activity(retry=ONCE)
    async def step(name: str) -> str:
        log.note(name)
        if log.counts[name] == 1:
            raise ConnectionError(name)
        return name

    @workflow(STAGES)
    async def run(document: str) -> str:
        try:
            return await step("first")
        except ActivityFailedError:
            return await step("instead")

    async with BatchOrchestrator(run, store=store, config=retrying()) as batches:
        result = await within(batches.run(["x"]))
        assert await everything(batches.results(result.batch_id)) == [DocumentSucceeded(document_id="0", value="first")]
    assert log.counts == {"first": 2, "instead": 1}


@pytest.mark.parametrize("way", ["in turn", "gathered"])
@pytest.mark.parametrize("crashes", [1, 2, 3])
async def test_identical_calls_keep_their_order_over_failures_and_successes(
    store: Store, crashes: int, way: Literal["in turn", "gathered"]
) -> None:
    log = Log()
    attempts = count(1)

    @durable_activity(retry=ONCE)
    async def quote(item: str) -> int:
        log.note("quote")
        if log.counts["quote"] == 1:
            raise ConnectionError("the exchange is closed")
        return 42

    @durable_activity
    async def keep(price: int | None) -> str:
        log.note(f"keep {price}")
        return f"kept {price}"

    async def quote_or_none(item: str) -> int | None:
        if way == "gathered":
            quoted = await asyncio.gather(quote(item), return_exceptions=True)
            return quoted[0] if isinstance(quoted[0], int) else None
        try:
            return await quote(item)
        except ActivityFailedError:
            return None

    @workflow(STAGES)
    async def run(document: str) -> list[Any]:
        morning = await quote_or_none(document)
        kept = await keep(morning)
        evening = await quote_or_none(document)
        if next(attempts) <= crashes:
            raise RuntimeError("stands for a crash at this point")
        return [morning, kept, evening]

    async with BatchOrchestrator(run, store=store, config=retrying(crashes + 1)) as batches:
        result = await within(batches.run(["gold"]))
        assert await everything(batches.results(result.batch_id)) == [
            DocumentSucceeded(document_id="0", value=[None, "kept None", 42])
        ]
    assert log.calls == ["quote", "keep None", "quote"]


async def test_all_replayed_failures_of_a_group_are_forgotten(open_store: StoreMaker) -> None:
    log = Log()

    @durable_activity(retry=ONCE)
    async def step(name: str) -> str:
        log.note(name)
        if log.counts[name] == 1:
            raise ConnectionError(name)
        return name

    @durable_activity
    async def hold() -> str:
        log.note("hold")
        await log.gate.wait()
        return "held"

    @workflow(STAGES)
    async def run(document: str) -> list[str]:
        found = await asyncio.gather(step("a"), step("b"), hold(), return_exceptions=True)
        if log.counts["hold"] == 1:
            raise AssertionError("the process was to end before this")
        return [one if isinstance(one, str) else await again(one) for one in found]

    async def again(error: BaseException) -> str:
        raise error

    config = retrying(2)
    worker = Worker(open_store(None), drain=NO_DRAIN)
    async with BatchOrchestrator(run, worker=worker, config=config) as batches:
        batch_id = await batches.submit(["x"])

        async def both_recorded() -> bool:
            return await batches.count_checkpoints(batch_id) == 2

        await eventually(both_recorded)
    log.gate.set()
    assert await resumed(run, open_store, batch_id) == [DocumentSucceeded(document_id="0", value=["a", "b", "held"])]
    assert log.counts == {"a": 2, "b": 2, "hold": 2}


async def test_all_failures_of_a_group_are_forgotten(store: Store) -> None:
    log = Log()
    both = asyncio.Barrier(2)

    @durable_activity(retry=ONCE)
    async def step(name: str) -> str:
        log.note(name)
        if log.counts[name] == 1:
            await both.wait()
            raise ConnectionError(name)
        return name

    @workflow(STAGES)
    async def run(document: str) -> list[str]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(step("a")), group.create_task(step("b"))]
        return [task.result() for task in tasks]

    async with BatchOrchestrator(run, store=store, config=retrying(2)) as batches:
        result = await within(batches.run(["x"]))
        assert await everything(batches.results(result.batch_id)) == [
            DocumentSucceeded(document_id="0", value=["a", "b"])
        ]
    assert log.counts == {"a": 2, "b": 2}


class SlowStore(MemoryStore):
    """Each commit takes a moment, as on a slow disk, so that facts gather for the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.failing = asyncio.Event()
        """A failure is being committed."""

    async def commit(
        self, worker: WorkerId, number: int, facts: Sequence[Fact], claim: ClaimRequest | None = None
    ) -> Committed:
        committed = await super().commit(worker, number, facts, claim)
        if any(isinstance(fact, ActivityFailed) for fact in facts):
            self.failing.set()
        await turns(50)
        return committed


@pytest.mark.parametrize("group", ["gather", "TaskGroup"])
async def test_a_failure_whose_record_is_on_its_way_when_a_sibling_s_ends_the_attempt(group: str) -> None:
    log = Log()
    store = SlowStore()

    @durable_activity(retry=ONCE)
    async def step(name: str) -> str:
        log.note(name)
        if name == "b":
            await store.failing.wait()
        if log.counts[name] == 1:
            raise ConnectionError(name)
        return name

    @workflow(STAGES)
    async def run(document: str) -> list[str]:
        # The second fails while the first one's failure is being committed.
        calls = step("a"), step("b")
        if group == "gather":
            return list(await asyncio.gather(*calls))
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(call) for call in calls]
        return [task.result() for task in running]

    async with BatchOrchestrator(run, store=store, config=retrying(2)) as batches:
        result = await within(batches.run(["x"]))
        assert await everything(batches.results(result.batch_id)) == [
            DocumentSucceeded(document_id="0", value=["a", "b"])
        ]


async def test_a_failure_after_the_end_of_the_attempt_is_not_recorded(store: Store) -> None:
    log = Log()
    ended = asyncio.Event()

    @durable_activity(retry=ONCE)
    async def first() -> str:
        log.note("first")
        if log.counts["first"] == 1:
            raise ConnectionError
        return "first"

    @durable_activity(retry=ONCE)
    async def later() -> str:
        log.note("later")
        if log.counts["later"] == 1:
            await ended.wait()
            raise ConnectionError
        return "later"

    @workflow(STAGES)
    async def run(document: str) -> list[str]:
        try:
            return list(await asyncio.gather(first(), later()))
        finally:
            in_turns(50, ended.set)

    async with BatchOrchestrator(run, store=store, config=retrying(2)) as batches:
        result = await within(batches.run(["x"]))
        assert await everything(batches.results(result.batch_id)) == [
            DocumentSucceeded(document_id="0", value=["first", "later"])
        ]


# ---- an execution owns its calls ---------------------------------------------------------------------------


async def test_a_call_whose_sibling_failed_is_recorded_before_the_document_ends(store: Store) -> None:
    log = Log()
    failed = asyncio.Event()

    @durable_activity
    async def expensive() -> str:
        log.note("expensive")
        await failed.wait()
        await turns(50)
        return "worth its price"

    @durable_activity(retry=ONCE)
    async def failing() -> str:
        log.note("failing")
        if log.counts["failing"] == 1:
            failed.set()
            raise ConnectionError
        return "fine"

    @workflow(STAGES)
    async def run(document: str) -> list[str]:
        return list(await asyncio.gather(expensive(), failing()))

    async with BatchOrchestrator(run, store=store, config=retrying()) as batches:
        result = await within(batches.run(["x"]))
        assert await everything(batches.results(result.batch_id)) == [
            DocumentSucceeded(document_id="0", value=["worth its price", "fine"])
        ]
    assert log.counts == {"expensive": 1, "failing": 2}


async def test_what_a_workflow_leaves_running_is_recorded_before_its_end(store: Store) -> None:
    tasks: list[asyncio.Task[str]] = []
    begun, returned = asyncio.Event(), asyncio.Event()

    @durable_activity
    async def slow() -> str:
        begun.set()
        await returned.wait()
        await turns(50)
        return "slow"

    @workflow(STAGES)
    async def run(document: str) -> str:
        tasks.append(asyncio.create_task(left_behind()))
        await begun.wait()
        returned.set()
        return "done"

    async def left_behind() -> str:
        value = await slow()
        # The attempt has ended: no call starts from here on.
        return value + await slow()

    async with BatchOrchestrator(run, store=store) as batches:
        result = await within(batches.run(["x"]))
        assert result.counts.succeeded == 1
        assert await batches.count_checkpoints(result.batch_id) == 1
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]


async def test_after_the_grace_what_still_runs_is_cancelled(open_store: StoreMaker) -> None:
    log = Log()

    @durable_activity
    async def endless() -> None:
        log.note("endless")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            log.note("cancelled")
            raise

    @durable_activity(retry=ONCE)
    async def failing() -> None:
        log.note("failing")
        raise ConnectionError

    @workflow(STAGES)
    async def run(document: str) -> None:
        await asyncio.gather(endless(), failing())

    async with environment(run, store=open_store) as env:
        batch_id = await env.batches.submit(["x"])
        await env.advance(timedelta(seconds=29))
        assert sorted(log.calls) == ["endless", "failing"]
        assert await env.batches.count_checkpoints(batch_id) == 1
        assert (await env.batches.snapshot(batch_id)).counts.running == 1
        await env.advance(timedelta(seconds=1))
        assert log.calls[2:] == ["cancelled"]
        assert (await env.batches.snapshot(batch_id)).counts.failed == 1


async def test_facts_of_one_call_are_committed_before_the_workflow_goes_on(open_store: StoreMaker) -> None:
    """The promise itself: at the moment that the next line runs, the result is in the store."""
    store = open_store(None)
    seen: list[int] = []

    @durable_activity
    async def step(number: int) -> int:
        return number

    @workflow(STAGES)
    async def run(document: str) -> None:
        for number in range(5):
            await step(number)
            seen.append(await store.count_checkpoints(batch_id))

    async with BatchOrchestrator(run, store=store) as batches:
        batch_id = BatchId("b")
        await within(batches.run(["x"], batch_id=batch_id))
    assert seen == [1, 2, 3, 4, 5]


class Recording(MemoryStore):
    """Notes what is committed."""

    def __init__(self) -> None:
        super().__init__()
        self.facts: list[Fact] = []

    async def commit(
        self, worker: WorkerId, number: int, facts: Sequence[Fact], claim: ClaimRequest | None = None
    ) -> Committed:
        self.facts += facts
        return await super().commit(worker, number, facts, claim)


@pytest.mark.parametrize("way", ["return", "raise"])
async def test_a_replayed_call_is_not_reported_again(way: Literal["return", "raise"]) -> None:
    store = Recording()
    log = Log()

    @durable_activity(retry=RetryPolicy(max_attempts=1))
    async def step() -> str:
        if way == "raise":
            raise ConnectionError
        return "fine"

    @durable_activity
    async def last() -> None:
        log.note("last")
        await log.gate.wait()

    @workflow(STAGES)
    async def run(document: str) -> None:
        with suppress(ActivityFailedError):
            await step()
        await last()

    batch_id = await interrupted(run, lambda _: store, log, "last")
    log.gate.set()
    await resumed(run, lambda _: store, batch_id)
    reported = [
        fact.key.partition(":")[0] for fact in store.facts if isinstance(fact, ActivityCompleted | ActivityFailed)
    ]
    assert reported == ["step", "last"]


async def test_stages_that_follow_each_other_at_once_are_reported_once() -> None:
    store = Recording()
    gate = asyncio.Event()

    @workflow(STAGES)
    async def run(document: str) -> None:
        enter_stage(Thinking)
        enter_stage(Writing)
        await gate.wait()

    async with BatchOrchestrator(run, store=store) as batches:
        batch_id = await batches.submit(["x"])

        async def is_writing() -> bool:
            return isinstance(await batches.state(batch_id), Writing)

        await eventually(is_writing)
        gate.set()
        await within(batches.result(batch_id))
    assert [fact.mark for fact in store.facts if isinstance(fact, StageEntered)] == [2]
