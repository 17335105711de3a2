"""What an error says and carries, its code, its page, and what the log is told of failures."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import to_json
from tests.conftest import StoreMaker
from tests.error_examples import EXAMPLES, as_printed, example_of, on_a_page
from tests.support import AT_ONCE, NO_DRAIN, ONCE, STAGES, eventually, everything, moving, within

from durable_batches import (
    ActivityFailedError,
    BatchConfig,
    BatchOrchestrator,
    DurableBatchesError,
    MemoryStore,
    PayloadError,
    Results,
    RetryFailed,
    RetryLater,
    RetryPolicy,
    Store,
    Worker,
    durable_activity,
    errors,
    workflow,
)
from durable_batches.lifecycle.facts import ExecutionFailed, Fact
from durable_batches.lifecycle.records import ClaimRequest, Committed, EventRecord, WorkerId
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.protocol import Expired
from durable_batches.testing import ManualClock
from durable_batches.version import DOCS_URL

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "errors"

CODES = {
    "ActivityDefinitionError": "activity-definition",
    "ActivityFailedError": "activity-failed",
    "ActivityTimeoutError": "activity-timeout",
    "BatchCancelledError": "batch-cancelled",
    "BatchEndedError": "batch-ended",
    "BatchExistsError": "batch-exists",
    "BatchFailedError": "batch-failed",
    "BatchNotFoundError": "batch-not-found",
    "CheckpointMismatchError": "checkpoint-mismatch",
    "CommitUnknownError": "commit-unknown",
    "ConfigurationError": "configuration",
    "CrashLoopError": "crash-loop",
    "DependencyError": "dependency",
    "DocumentTimeoutError": "document-timeout",
    "DocumentsFailedError": "documents-failed",
    "DuplicateDocumentError": "duplicate-document",
    "DurableBatchesError": "durable-batches",
    "ExecutorError": "executor",
    "FactRejectedError": "fact-rejected",
    "ForeignStageError": "foreign-stage",
    "InvalidTransitionError": "invalid-transition",
    "MachineError": "machine",
    "MissingExtraError": "missing-extra",
    "NotInActivityError": "not-in-activity",
    "NotInWorkflowError": "not-in-workflow",
    "PayloadError": "payload",
    "PayloadTooLargeError": "payload-too-large",
    "CircuitOpenError": "circuit-open",
    "QuotaExhausted": "quota-exhausted",
    "RateLimitedError": "rate-limited",
    "OldWorkersError": "old-workers",
    "ReadOnlyClientError": "read-only-client",
    "SchemaTooNewError": "schema-too-new",
    "SchemaTooOldError": "schema-too-old",
    "StoreAccessError": "store-access",
    "StoreCorruptError": "store-corrupt",
    "StoreFullError": "store-full",
    "StoreLockedError": "store-locked",
    "StoreNotFoundError": "store-not-found",
    "StoreReadOnlyError": "store-read-only",
    "StoreUnavailableError": "store-unavailable",
    "SubmissionInProgressError": "submission-in-progress",
    "TransactionOpenError": "transaction-open",
    "WorkerFencedError": "worker-fenced",
    "WorkerNotRunningError": "worker-not-running",
    "WorkflowMismatchError": "workflow-mismatch",
}
"""What people have alerts on. A line is added with each new error; none is ever changed."""

RETIRED = {"workflow-not-found"}
"""Codes of errors that are gone: none of them is given again."""


# ---- codes -------------------------------------------------------------------------------------------------


def library_errors() -> dict[str, type[DurableBatchesError]]:
    found = {name: kind for name, kind in vars(errors).items() if not name.startswith("_")}
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, DurableBatchesError) and kind.__module__ == errors.__name__
    }


def test_codes_do_not_change() -> None:
    assert {name: kind.code for name, kind in library_errors().items()} == CODES


def test_every_error_has_a_code_of_its_own() -> None:
    assert all("code" in vars(kind) for kind in library_errors().values())
    assert len(set(CODES.values())) == len(CODES)
    assert not RETIRED & set(CODES.values())
    assert set(CODES) <= set(errors.__all__)


# ---- pages -------------------------------------------------------------------------------------------------

RAISED = sorted(set(CODES.values()) - {DurableBatchesError.code})


def test_every_code_has_a_page_and_every_page_a_code() -> None:
    assert sorted(page.stem for page in PAGES.glob("*.md") if page.stem != "index") == RAISED
    assert set(EXAMPLES) == set(RAISED)


def test_every_page_is_in_the_index_and_in_the_navigation() -> None:
    linked = re.findall(r"^\| \[`([\w-]+)`\]\(\1\.md\) \| `(\w+)` \|", (PAGES / "index.md").read_text(), re.MULTILINE)
    assert {name: code for code, name in linked} == {name: code for name, code in CODES.items() if code in RAISED}
    pages = re.findall(
        r"^          - (?:([\w-]+): )?errors/([\w-]+)\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE
    )
    assert sorted(pages) == sorted([("", "index"), *((code, code) for code in RAISED)])


@pytest.mark.parametrize("code", RAISED)
async def test_a_page_shows_what_the_library_says(code: str, tmp_path: Path) -> None:
    error = await within(example_of(code, tmp_path))
    page = (PAGES / f"{code}.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```text\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)
    assert on_a_page(as_printed(error, tmp_path)) == shown
    assert page.startswith(f"# {code}\n\n`{type(error).__name__}`\n")
    assert error.help_page == f"{DOCS_URL}errors/{code}/"
    assert (PAGES / f"{code}.md").is_file()


@pytest.mark.parametrize("code", RAISED)
async def test_an_error_survives_the_way_to_another_process(code: str, tmp_path: Path) -> None:
    error = await within(example_of(code, tmp_path))
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301, RUF100
        assert type(again) is type(error)
        assert as_printed(again, tmp_path) == as_printed(error, tmp_path)
        assert {**vars(again)} == {**vars(error)}


def test_a_wish_for_a_later_try_survives_it_too() -> None:
    again = pickle.loads(pickle.dumps(RetryLater(timedelta(seconds=3))))
    assert (again.after, str(again)) == (timedelta(seconds=3), "retry after 3 s")


# ---- which batch, which document ---------------------------------------------------------------------------


async def test_an_activity_s_failure_says_where_live_and_on_replay(open_store: StoreMaker) -> None:
    seen: list[ActivityFailedError] = []
    gate = asyncio.Event()

    @durable_activity(retry=ONCE)
    async def ask(text: str) -> str:
        raise ConnectionError("no route")

    @workflow(STAGES)
    async def run(document: str) -> str:
        try:
            return await ask(document)
        except ActivityFailedError as error:
            seen.append(error)
        await gate.wait()
        return "without"

    worker = Worker(open_store(None), drain=NO_DRAIN)
    async with BatchOrchestrator(run, worker=worker) as batches:
        await batches.submit(["x"], batch_id="b", document_id=lambda _: "doc")
        await eventually(lambda: len(seen) == 1)
    gate.set()
    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        await within(batches.result("b"))
    live, replayed = seen
    assert live is not replayed
    assert (live.batch_id, live.document_id) == ("b", "doc")
    assert live.__notes__ == ["in document 'doc' of batch 'b'"]

    def data(error: ActivityFailedError) -> dict[str, Any]:
        return {name: value for name, value in vars(error).items() if not name.startswith("_")}

    assert (data(live), live.__notes__, str(live)) == (data(replayed), replayed.__notes__, str(replayed))


async def test_a_failure_that_is_not_tried_again_says_so(store: Store) -> None:
    @durable_activity(retry=RetryPolicy(non_retryable=(LookupError,)))
    async def ask() -> None:
        raise KeyError

    @workflow(STAGES)
    async def run(document: str) -> None:
        await ask()

    async with BatchOrchestrator(run, store=store) as batches:
        (failure,) = (await within(batches.run(["x"]))).failures
    assert failure.error == "activity 'ask' failed after 1 attempt (this error is not tried again): KeyError"


async def test_an_argument_that_cannot_be_stored_says_whose_it_is(store: Store) -> None:
    seen: list[PayloadError] = []

    @durable_activity
    async def ask(text: str) -> None: ...

    @workflow(STAGES)
    async def run(document: str) -> None:
        try:
            await ask("\ud800")
        except PayloadError as error:
            seen.append(error)

    async with BatchOrchestrator(run, store=store) as batches:
        await within(batches.run(["x"], batch_id="b", document_id=lambda _: "doc"))
    assert (seen[0].batch_id, seen[0].document_id) == ("b", "doc")
    assert str(seen[0]).endswith(" (document 'doc' of batch 'b')")


async def test_a_document_that_cannot_be_stored_is_named_even_if_its_id_is_what_is_wrong(store: Store) -> None:
    @workflow(STAGES)
    async def run(document: str) -> None: ...

    def no_id(document: str) -> str:
        raise LookupError("this one has none")

    async with BatchOrchestrator(run, store=store) as batches:
        with pytest.raises(PayloadError) as caught:
            await batches.submit(["\ud800"], batch_id="b", document_id=no_id)
        assert caught.value.document_id == "0"
        with pytest.raises(LookupError, match="this one has none") as other:
            await batches.submit(["fine"], batch_id="b", document_id=no_id)
        assert other.value.__notes__ == ["in the id of the document at position 0 of batch 'b'"]


async def test_what_cannot_be_read_any_more_says_whose_it_is(open_store: StoreMaker) -> None:
    @workflow(STAGES, name="run")
    async def old(document: str) -> str:
        return document

    @workflow(STAGES, name="run")
    async def new(document: int) -> int:
        return document

    async with BatchOrchestrator(old, store=open_store(None)) as batches:
        await within(batches.run(["text"], batch_id="b", document_id=lambda _: "doc"))
    async with BatchOrchestrator(new, store=open_store(None)) as later:
        for reading in (later.results("b"), later.documents("b")):
            with pytest.raises(PayloadError, match=r" cannot be read: .* \(document 'doc' of batch 'b'\)$"):
                await everything(reading)


async def test_a_batch_that_failed_shows_the_first_of_its_documents() -> None:
    @workflow(STAGES)
    async def run(document: str) -> None:
        raise ValueError(f"bad {document}")

    async with BatchOrchestrator(run, store=MemoryStore()) as batches:
        result = await within(batches.run([str(number) for number in range(12)], batch_id="b"))
    with pytest.raises(errors.BatchFailedError) as caught:
        _ = result.value
    assert caught.value.failures[0] == ("0", "bad 0")
    assert "all documents failed" in str(caught.value)
    assert "\n  1: bad 1\n" in str(caught.value)
    assert "... and 2 more" in str(caught.value)


async def test_a_group_s_record_says_what_is_in_it(store: Store) -> None:
    @workflow(STAGES)
    async def run(document: str) -> None:
        async def fail() -> None:
            raise ValueError("bad")

        async with asyncio.TaskGroup() as group:
            group.create_task(fail())

    async with BatchOrchestrator(run, store=store) as batches:
        (failure,) = (await within(batches.run(["x"]))).failures
    assert failure.error_type == "ExceptionGroup"
    assert failure.error.endswith(": ValueError: bad")


def test_messages_hold_no_payload() -> None:
    payload = "a secret of mine"
    error = PayloadError("the result of activity 'act'", "$", "nan is no JSON number")
    error.locate("b", "doc")
    error.locate("another", "one")
    assert str(error).count("(") == 1
    assert payload not in str(error)


# ---- what the log is told ----------------------------------------------------------------------------------


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "durable_batches"):
        yield caplog


def lines(log: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelno == level]


async def test_a_failed_attempt_is_told_once_with_what_one_needs(log: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()

    @durable_activity(retry=ONCE)
    async def ask(text: str) -> str:
        raise ConnectionError("no route\nto the host")

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await ask(document)

    config = BatchConfig(failure_policy=RetryFailed(max_attempts=2, backoff=timedelta(seconds=4)))
    worker = Worker(MemoryStore(clock=clock), clock=clock, lease=timedelta(days=1))
    async with BatchOrchestrator(run, worker=worker) as batches, moving(clock, 1):
        await within(batches.run(["x"], config=config, batch_id="b", document_id=lambda _: "doc"))
    what = "activity 'ask' failed after 1 attempt: ConnectionError: no route to the host"
    assert lines(log, logging.WARNING) == [
        f"document 'doc' of batch 'b' failed in attempt 1: {what}; retried in 4 s",
        f"document 'doc' of batch 'b' failed in attempt 2: {what}; not retried",
    ]
    first = next(record for record in log.records if record.levelno == logging.WARNING)
    told = [getattr(first, name) for name in ("batch_id", "document_id", "attempt", "activity", "error_type")]
    assert told == ["b", "doc", 1, "ask", "ConnectionError"]
    assert log.text.count("in ask\n") == 2
    assert "durable_batches/runtime" not in log.text
    assert "durable_batches/orchestrator" not in log.text


async def test_tries_of_an_activity_are_told_in_a_line(log: pytest.LogCaptureFixture) -> None:
    tries = count(1)

    @durable_activity(retry=AT_ONCE)
    async def ask() -> int:
        number = next(tries)
        if number < 3:
            raise ConnectionError("no route\nto the host")
        return number

    @workflow(STAGES)
    async def run(document: str) -> int:
        return await ask()

    async with BatchOrchestrator(run, store=MemoryStore()) as batches:
        await within(batches.run(["x"], batch_id="b"))
    what = "failed: ConnectionError: no route to the host; retried in 0 s"
    assert [line for line in lines(log, logging.INFO) if "attempt" in line] == [
        f"activity 'ask' in document '0' of batch 'b': attempt {number} of 3 {what}" for number in (1, 2)
    ]
    assert not lines(log, logging.WARNING)


async def test_only_the_first_failures_of_a_kind_bring_their_traceback(log: pytest.LogCaptureFixture) -> None:
    @workflow(STAGES)
    async def run(document: int) -> None:
        raise (ValueError if document % 2 else LookupError)(document)

    async with BatchOrchestrator(run, store=MemoryStore()) as batches:
        for batch_id in ("a", "b"):
            await within(batches.run(range(20), batch_id=batch_id))
    told = [record for record in log.records if record.levelno == logging.WARNING]
    assert len(told) == 40
    kinds = Counter(
        (record.__dict__["batch_id"], record.__dict__["error_type"]) for record in told if record.exc_info is not None
    )
    assert kinds == {(batch, kind): 3 for batch in "ab" for kind in ("ValueError", "LookupError")}
    assert sum("no more tracebacks of this kind" in record.getMessage() for record in told) == 4


async def test_a_result_that_cannot_be_stored_is_told(log: pytest.LogCaptureFixture) -> None:
    @workflow(STAGES)
    async def run(document: str) -> str:
        return "\ud800"

    async with BatchOrchestrator(run, store=MemoryStore()) as batches:
        await within(batches.run(["x"], batch_id="b"))
    (line,) = lines(log, logging.WARNING)
    assert line.startswith("document '0' of batch 'b' failed in attempt 1: PayloadError: the result of workflow 'run'")


@pytest.mark.parametrize(("fails", "expected"), [(1, [logging.WARNING]), (9, [logging.WARNING] * 2 + [logging.ERROR])])
async def test_a_failed_resolver_is_told(fails: int, expected: list[int], log: pytest.LogCaptureFixture) -> None:
    attempts = count(1)

    async def link(results: Results[str]) -> int:
        attempt = next(attempts)
        if attempt <= fails:
            raise ConnectionError("no route")
        return attempt

    @workflow(STAGES, resolver=link, resolver_retry=AT_ONCE)
    async def run(document: str) -> str:
        return document

    async with BatchOrchestrator(run, store=MemoryStore()) as batches:
        await within(batches.run(["x"], batch_id="b"))
    told = [record for record in log.records if record.levelno >= logging.WARNING]
    assert [record.levelno for record in told] == expected
    assert all(
        record.getMessage().startswith("the resolver of batch 'b' failed in attempt ")
        and "ConnectionError: no route" in record.getMessage()
        for record in told
    )
    assert log.text.count("in link\n") == len(expected)


async def test_what_a_log_cannot_hold_is_told_all_the_same(log: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    @workflow(STAGES)
    async def run(document: str) -> None:
        raise ValueError("half a letter: \ud83d")

    file = logging.FileHandler(tmp_path / "log", encoding="utf-8")
    logging.getLogger("durable_batches").addHandler(file)
    try:
        async with BatchOrchestrator(run, store=MemoryStore()) as batches:
            await within(batches.run(["x"]))
    finally:
        logging.getLogger("durable_batches").removeHandler(file)
        file.close()
    written = (tmp_path / "log").read_text(encoding="utf-8")
    assert "ValueError: half a letter: ?" in written
    assert "in run\n" in written


class AwayStore(MemoryStore):
    """Its commits of failures do not come back until it is told so."""

    def __init__(self) -> None:
        super().__init__()
        self.back = asyncio.Event()

    async def commit(
        self, worker: WorkerId, number: int, facts: Sequence[Fact], claim: ClaimRequest | None = None
    ) -> Committed:
        if any(isinstance(fact, ExecutionFailed) for fact in facts):
            await self.back.wait()
        return await super().commit(worker, number, facts, claim)


async def test_a_failure_is_told_before_it_is_committed(log: pytest.LogCaptureFixture) -> None:
    @workflow(STAGES)
    async def run(document: str) -> None:
        raise ValueError("bad")

    store = AwayStore()
    async with BatchOrchestrator(run, store=store) as batches:
        batch_id = await batches.submit(["x"])
        await eventually(lambda: bool(lines(log, logging.WARNING)))
        store.back.set()
        await within(batches.result(batch_id))
    assert len(lines(log, logging.WARNING)) == 1


class RescuingStore(MemoryStore):
    """Whose first rescue ends a document, its batch, and another batch's resolver."""

    def __init__(self, events: list[EventRecord]) -> None:
        super().__init__()
        self.events_of_rescue = events

    async def expire(self, *, dead: Collection[WorkerId] = ()) -> Expired:
        events, self.events_of_rescue = self.events_of_rescue, []
        return Expired(workers=[WorkerId("dead")], events=events) if events else await super().expire(dead=dead)


async def test_what_a_crash_loop_ended_is_told(log: pytest.LogCaptureFixture) -> None:
    @workflow(STAGES)
    async def run(document: str) -> str:
        return document

    what = str(errors.CrashLoopError("b", "doc", 3))
    counts = [1, 0, 0, 0, 0, 1, 0]
    events = [
        EventRecord(BatchId("b"), 1, 0, "document_failed", to_json(["doc", what, 100.0])),
        EventRecord(BatchId("b"), 2, 0, "batch_failed", to_json([counts, "all documents failed"])),
    ]
    async with BatchOrchestrator(run, store=RescuingStore(events)):
        pass
    assert f"document 'doc' of batch 'b' failed: {what}" in lines(log, logging.WARNING)
    assert lines(log, logging.ERROR) == ["batch 'b' failed: all documents failed"]
