"""`run_batch`: the batch that it runs, its result and output, and the arguments that it refuses."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support import STAGES, Reading, everything, turns, within

from durable_batches import (
    AbortAll,
    BatchConfig,
    BatchExistsError,
    BatchOrchestrator,
    BatchResult,
    BatchSnapshot,
    Completed,
    ConfigurationError,
    Counts,
    DocumentsFailedError,
    DuplicateDocumentError,
    MemoryStore,
    PayloadError,
    Results,
    SQLiteStore,
    Workflow,
    WorkflowMismatchError,
    durable_activity,
    run_batch,
    workflow,
)
from durable_batches.script.resume import LABEL
from durable_batches.script.signals import StopSignals
from durable_batches.stores import Capabilities

ONE_BY_ONE = BatchConfig(concurrency=1)


@dataclass
class Desk:
    """A workflow that runs one document after the other, and can be stopped at one."""

    store: Path
    calls: list[str] = field(default_factory=list[str])
    stop_at: str | None = None

    def workflow(self, *, name: str = "desk", version: str = "1") -> Workflow[str, str, Any, list[str]]:
        @durable_activity(stage=Reading)
        async def handle(document: str) -> str:
            self.calls.append(document)
            if document == self.stop_at:
                signal.raise_signal(signal.SIGTERM)
                # The call is finished and recorded; there is none after it.
                await turns(50)
            return document.upper()

        async def gather(results: Results[str]) -> list[str]:
            return [result.value async for result in results]

        @workflow(STAGES, name=name, version=version, resolver=gather)
        async def run(document: str) -> str:
            if document.startswith("bad"):
                raise ValueError(f"{document} cannot be handled")
            return await handle(document)

        return run

    def run(self, documents: Iterable[str] | AsyncIterator[str], **options: Any) -> BatchResult[list[str]]:
        defaults: dict[str, Any] = {"store": self.store, "config": ONE_BY_ONE, "progress": False}
        return run_batch(self.workflow(), documents, **{**defaults, **options})

    def interrupted(self, documents: Iterable[str] | AsyncIterator[str], at: str, **options: Any) -> None:
        self.stop_at = at
        with pytest.raises(SystemExit) as ended:
            self.run(documents, **options)
        assert ended.value.code == 143
        self.stop_at = None

    def batches(self) -> list[BatchSnapshot[Any]]:
        """Those of the store, newest first."""

        async def read() -> list[BatchSnapshot[Any]]:
            async with BatchOrchestrator(self.workflow(), store=SQLiteStore(self.store), max_in_flight=0) as batches:
                return await everything(batches.list_batches())

        return asyncio.run(read())


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "desk.db")


# ---- to the end ----------------------------------------------------------------------------------------------------


def test_it_runs_a_batch_to_its_end(desk: Desk) -> None:
    result = desk.run(["a", "b", "c"])
    assert isinstance(result.state, Completed)
    assert result.raise_for_failures().value == ["A", "B", "C"]
    assert result.exit_code == 0


@pytest.mark.parametrize("kind", ["path", "text", "store", "memory"])
def test_it_takes_a_path_or_a_store(kind: str, desk: Desk) -> None:
    stores = {
        "path": desk.store,
        "text": str(desk.store),
        "store": SQLiteStore(desk.store),
        "memory": MemoryStore(),
    }
    assert desk.run(["a"], store=stores[kind]).value == ["A"]
    assert desk.store.exists() == (kind != "memory")


async def streamed(documents: Iterable[str]) -> AsyncIterator[str]:
    for document in documents:
        yield document


@pytest.mark.parametrize("form", [list, tuple, iter, streamed])
def test_it_takes_documents_in_any_form(form: Callable[[list[str]], Any], desk: Desk) -> None:
    assert desk.run(form(["a", "b"]), document_id=str).value == ["A", "B"]


def test_it_is_configured_as_other_batches_are(desk: Desk) -> None:
    config = BatchConfig(concurrency=1, failure_policy=AbortAll(), metadata={"of": "me"})
    result = desk.run(["bad", "b"], config=config)
    assert (result.state.tag, result.counts, result.exit_code) == ("failed", Counts(total=2, failed=1, cancelled=1), 4)
    (snapshot,) = desk.batches()
    assert snapshot.metadata == {"of": "me", LABEL: "run_batch"}


def test_failed_documents_are_reported(desk: Desk) -> None:
    result = desk.run(["a", "bad news", "c"])
    assert (result.value, result.exit_code) == (["A", "C"], 3)
    with pytest.raises(DocumentsFailedError) as caught:
        result.raise_for_failures()
    assert str(caught.value).splitlines()[1:] == ["  1: bad news cannot be handled"]


def test_it_runs_in_another_thread(desk: Desk) -> None:
    """A thread other than the main thread cannot have signal handlers."""
    results: list[BatchResult[list[str]]] = []
    thread = threading.Thread(target=lambda: results.append(desk.run(["a"])))
    thread.start()
    thread.join()
    assert results[0].value == ["A"]


# ---- again ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [list, iter, streamed])
def test_a_second_run_resumes_the_batch(form: Callable[[list[str]], Any], desk: Desk) -> None:
    desk.interrupted(form(["a", "b", "c"]), "b")
    assert desk.calls == ["a", "b"]
    assert desk.run(form(["a", "b", "c"])).value == ["A", "B", "C"]
    assert desk.calls == ["a", "b", "c"]
    assert len(desk.batches()) == 1


def test_a_run_after_the_end_begins_a_new_batch(desk: Desk) -> None:
    first, second = desk.run(["a"]), desk.run(["a"])
    assert first.batch_id != second.batch_id
    assert desk.calls == ["a", "a"]


@pytest.mark.parametrize(
    "documents",
    [["a", "b", "c", "d"], ["a", "b"], ["a", "x", "c"], ["x", "b", "c"], ["c", "b", "a"], []],
    ids=["more", "fewer", "another one", "another first", "another order", "none"],
)
@pytest.mark.parametrize("form", [list, iter])
def test_other_documents_are_another_batch(form: Callable[[list[str]], Any], documents: list[str], desk: Desk) -> None:
    """No document is lost or submitted twice, although those of both batches were compared."""
    desk.interrupted(["a", "b", "c"], "a")
    assert desk.run(form(documents)).value == [document.upper() for document in documents]
    assert len(desk.batches()) == 2


def test_documents_with_other_ids_are_other_documents(desk: Desk) -> None:
    desk.interrupted(["a", "b"], "a")
    assert desk.run(["a", "b"], document_id=str).value == ["A", "B"]
    assert len(desk.batches()) == 2


@dataclass(frozen=True)
class Page:
    id: str
    text: str


def test_documents_are_compared_by_ids_of_their_own(tmp_path: Path) -> None:
    stops = iter([True])

    @workflow(STAGES)
    async def run(page: Page) -> str:
        if next(stops, False):
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(10)
        return page.text

    def attempt(*pages: Page) -> BatchResult[None]:
        return run_batch(run, pages, store=tmp_path / "pages.db", progress=False, config=ONE_BY_ONE)

    async def batches() -> list[str]:
        async with BatchOrchestrator(run, store=SQLiteStore(tmp_path / "pages.db"), max_in_flight=0) as reader:
            return [snapshot.batch_id for snapshot in await everything(reader.list_batches())]

    with pytest.raises(SystemExit):
        attempt(Page("a", "text"), Page("b", "text"))
    resumed = attempt(Page("a", "text"), Page("b", "text"))
    assert resumed.counts == Counts(total=2, succeeded=2)
    assert asyncio.run(batches()) == [resumed.batch_id]


def test_of_several_unfinished_batches_the_right_one_is_resumed(desk: Desk) -> None:
    """Batches of more documents than one page, which differ at their ends only."""
    many = [f"{number}" for number in range(250)]
    for last in ("x", "y", "z"):
        desk.interrupted([*many, last], "0" if last == "x" else last)
    numbers = {snapshot.batch_id: snapshot.counts.total for snapshot in desk.batches()}
    assert list(numbers.values()) == [251] * len(numbers)
    before = len(desk.batches())
    assert desk.run(iter([*many, "w"])).value[-2:] == ["249", "W"]
    assert len(desk.batches()) == before + 1


def test_batches_that_were_submitted_otherwise_are_not_resumed(desk: Desk) -> None:
    """A service's batch of the same documents, and one with a name."""
    desk.interrupted(["a", "b"], "a", batch_id="named")
    assert desk.run(["a", "b"]).batch_id != "named"


def test_a_batch_id_is_one_batch(desk: Desk) -> None:
    desk.interrupted(["a", "b", "c"], "b", batch_id="nightly")
    # Whatever the documents are now: their source may have changed since.
    result = desk.run(["x"], batch_id="nightly")
    assert (result.batch_id, result.value) == ("nightly", ["A", "B", "C"])
    assert desk.run(["a", "b", "c"], batch_id="nightly") == result
    assert desk.calls == ["a", "b", "c"]


@pytest.mark.parametrize("documents", [["x"], ["a", "b"], ["a"], []], ids=["other", "more", "fewer", "none"])
def test_a_finished_batch_of_other_documents_is_refused(documents: list[str], desk: Desk) -> None:
    finished = ["a", "x", "y"] if documents == ["a"] else ["a"]
    desk.run(finished, batch_id="nightly")
    with pytest.raises(BatchExistsError, match="'nightly' exists already; it has ended, and is not of these documents"):
        desk.run(documents, batch_id="nightly")
    assert len(desk.batches()) == 1


def test_a_generated_id_can_be_given_later(desk: Desk) -> None:
    desk.interrupted(["a", "b"], "a")
    (snapshot,) = desk.batches()
    assert desk.run([], batch_id=snapshot.batch_id).value == ["A", "B"]


def test_a_batch_of_a_version_that_cannot_be_run_is_not_waited_for(desk: Desk) -> None:
    for batch_id in (None, "nightly"):
        desk.interrupted(["a", "b"], "a", batch_id=batch_id)
    newer = desk.workflow(version="2")
    assert run_batch(newer, ["a", "b"], store=desk.store, progress=False).value == ["A", "B"]
    with pytest.raises(ConfigurationError, match=r"of version '1' of workflow 'desk'; .*accepts=\('1',\)"):
        run_batch(newer, ["a", "b"], store=desk.store, batch_id="nightly", progress=False)


def test_a_batch_that_ends_during_the_drain_has_a_result(tmp_path: Path) -> None:
    """It cannot be resumed any more, so its result is returned."""

    @workflow(STAGES)
    async def run(document: str) -> str:
        signal.raise_signal(signal.SIGINT)
        return document

    result = run_batch(run, ["a"], store=tmp_path / "x.db", progress=False)
    assert result.counts == Counts(total=1, succeeded=1)


# ---- what it refuses -----------------------------------------------------------------------------------------------


async def test_inside_an_event_loop_it_names_the_alternative(desk: Desk) -> None:
    with pytest.raises(ConfigurationError, match=r"await batches\.run\(documents\)"):
        desk.run(["a"])
    assert not desk.store.exists()


def test_arguments_that_cannot_work_are_refused(desk: Desk) -> None:
    with pytest.raises(ConfigurationError, match="is no workflow"):
        run_batch(str, ["a"], store=desk.store)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError, match="is no store"):
        desk.run(["a"], store=3)
    with pytest.raises(ConfigurationError, match="max_in_flight must be 1 or more"):
        desk.run(["a"], max_in_flight=0)
    assert not desk.store.exists()
    for again in range(2):
        # Also where there is something to compare with.
        with pytest.raises(ConfigurationError, match="submit\\(\\) takes a collection of documents"):
            desk.run("one text")
        with pytest.raises(PayloadError):
            desk.run(["a", 3])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
        with pytest.raises(DuplicateDocumentError):
            desk.run(["a", "a"], document_id=str)
        if not again:
            desk.interrupted(["a", "a"], "a")
    desk.run(["a"], batch_id="nightly")
    with pytest.raises(WorkflowMismatchError):
        run_batch(desk.workflow(name="other"), ["a"], store=desk.store, batch_id="nightly", progress=False)


def test_documents_that_cannot_be_read_are_the_script_s_own_error(desk: Desk) -> None:
    def read() -> Iterator[str]:
        yield "a"
        raise FileNotFoundError("b.txt")

    for again in range(2):
        with pytest.raises(FileNotFoundError, match=r"b\.txt"):
            desk.run(read())
        if not again:
            desk.interrupted(["a", "b"], "a")
    assert len(desk.batches()) == 1


# ---- signals -------------------------------------------------------------------------------------------------------


def test_handlers_are_restored(desk: Desk) -> None:
    def mine(number: int, frame: object) -> None: ...

    before = [signal.signal(signal.SIGTERM, mine), signal.signal(signal.SIGINT, signal.SIG_IGN)]
    try:
        desk.run(["a"])
        desk.interrupted(["a", "b"], "a")
        with pytest.raises(FileNotFoundError):
            desk.run(Path(name).read_text() for name in ["no such file"])
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


def test_a_stop_during_submission_leaves_nothing(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    async def slow() -> AsyncIterator[str]:
        yield "a"
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(60)

    with pytest.raises(SystemExit) as ended:
        desk.run(slow())
    assert ended.value.code == 130
    assert "stopped by SIGINT before all documents were submitted; nothing was run" in capsys.readouterr().err
    assert desk.batches() == []
    assert desk.calls == []


def test_how_to_resume_is_always_printed(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.interrupted(["a", "b"], "a")
    (snapshot,) = desk.batches()
    assert capsys.readouterr().err.splitlines() == [
        "durable-batches: SIGTERM: running activities finish and are recorded first, for 30 s at most "
        "(again: stop at once)",
        "durable-batches: stopped by SIGTERM: 1 of 2 documents finished, 1 recorded activities will not be repeated",
        "durable-batches: to resume it, run the same again; or, with any documents, with "
        f"batch_id={snapshot.batch_id!r}",
    ]
    desk.interrupted(["a", "b"], "a", store=MemoryStore(), drain=timedelta(seconds=5))
    errors = capsys.readouterr().err
    assert "for 5 s at most" in errors
    assert "the store is lost with this process" in errors


# ---- progress ------------------------------------------------------------------------------------------------------


def test_progress_is_printed_in_lines(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    result = desk.run(["a", "bad news"], progress=True)
    output, errors = capsys.readouterr()
    assert output == ""
    begin, *between, last, failure, advice = errors.splitlines()
    assert begin == f"durable-batches: batch {result.batch_id!r} in {desk.store}: 2 documents"
    assert "completed" in between[-1]
    assert "100 %  2/2 documents  1 succeeded, 1 failed" in between[-1]
    assert last == f"durable-batches: batch {result.batch_id!r} completed: 1 of 2 documents succeeded, 1 failed:"
    assert failure == "  1: ValueError: bad news cannot be handled"
    assert advice.startswith(f"durable-batches: results({result.batch_id!r}) has the results of 1 of its 2 documents")


def test_a_batch_that_ended_without_documents_names_the_way(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """Also where nothing is printed, and again whenever the same is run; but not after a success."""
    assert desk.run(["a", "b"], batch_id="good").exit_code == 0
    assert [record for record in caplog.records if "no other batch uses them" in record.message] == []
    for _ in range(2):
        assert desk.run(["a", "bad news", "c"], batch_id="night").counts.succeeded == 2
    assert desk.calls == ["a", "b", "a", "c"]
    told = [record.message for record in caplog.records if "no other batch uses them" in record.message]
    advice = (
        "batch 'night' has ended; results('night') has the results of 2 of its 3 documents, and no other batch uses "
        "them: to pay for none of them again, submit only the others under another id; activities that are recorded "
        "for those run again"
    )
    assert told == [advice, advice]


async def test_nothing_begins_after_a_signal_though_the_work_takes_its_time_to_end() -> None:
    order: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            order.append("cancelled")

    with StopSignals() as signals:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        signal.raise_signal(signal.SIGTERM)
        await within(signals.wait_for(task, stop=lambda: order.append("stopped")))
    assert order == ["stopped", "cancelled"]


def test_the_resumed_batch_is_printed(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.interrupted(["a", "b"], "a")
    (unfinished,) = desk.batches()
    capsys.readouterr()
    desk.interrupted(["x", "y"], "x", progress=True)
    assert (
        f"batch {unfinished.batch_id!r} of other documents is unfinished, and is not run now" in capsys.readouterr().err
    )
    (named, *_) = desk.batches()
    desk.run(["x", "y"], progress=True)
    assert f"resuming batch {named.batch_id!r} in {desk.store}: 1 of 2 documents" in capsys.readouterr().err
    desk.run(["x", "y"], progress=True, batch_id=named.batch_id)
    assert "has already ended; nothing is run" in capsys.readouterr().err


def test_it_leaves_unfinished_batches_of_other_documents_alone(desk: Desk) -> None:
    desk.interrupted(["a", "b"], "a")
    (unfinished,) = desk.batches()
    desk.calls.clear()
    desk.run(["x", "y"])
    assert desk.calls == ["x", "y"]
    desk.run([], batch_id=unfinished.batch_id)
    assert desk.calls == ["x", "y", "b"]


class OlderStore(MemoryStore):
    """An adapter of level 1, which cannot be told which batches to take from."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(several_processes=False, durable=False, pushes=True)


def test_an_adapter_of_level_1_runs_what_there_is(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    store = OlderStore()
    desk.interrupted(["a", "b"], "a", store=store)
    desk.calls.clear()
    desk.run(["x"], store=store, progress=True)
    assert "of other documents runs beside this one" in capsys.readouterr().err
    assert "x" in desk.calls


def test_without_progress_nothing_is_printed(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.run(["a", "bad"])
    assert capsys.readouterr() == ("", "")


class Terminal:
    """A stderr that is a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...


def test_without_rich_a_terminal_shows_lines(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    # As if nobody had imported it before.
    monkeypatch.delitem(sys.modules, "durable_batches.terminal.bars", raising=False)
    monkeypatch.delattr("durable_batches.terminal.bars", raising=False)
    desk.run(["a"], progress=True)
    assert "1/1 documents  1 succeeded" in terminal.text
    assert "\x1b" not in terminal.text


@pytest.mark.parametrize("closed", [False, True])
def test_it_runs_without_a_stderr(closed: bool, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = (tmp_path / "errors").open("w") if closed else None
    if nobody is not None:
        nobody.close()
    monkeypatch.setattr(sys, "stderr", nobody)
    assert desk.run(["a"], progress=True).value == ["A"]
