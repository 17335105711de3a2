"""What waits for a batch shows its progress where it runs; and what notebooks show of batches is harmless HTML."""

from __future__ import annotations

import asyncio
import collections.abc
import sys
import types
import typing
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from types import ModuleType, SimpleNamespace
from typing import Any, Final, Literal, cast, get_args, get_origin, get_type_hints

import pytest
from tests.extraction.test_cli import HALF
from tests.script.test_run_batch import Terminal
from tests.support import STAGES, within

from durable_batches import (
    BatchOrchestrator,
    BatchResult,
    BatchSnapshot,
    Completed,
    Counts,
    DocumentFailure,
    ErrorDigest,
    ErrorGroup,
    Explanation,
    Failed,
    MemoryStore,
    Pause,
    Stage,
    workflow,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.printable import printable
from durable_batches.reading.reasons import Reason
from durable_batches.terminal.show import show
from durable_batches.worker.health import WorkerHealth

HOSTILE: Final = "</td><script>alert(1)</script><img src=x onerror=\"a\" style='color: red'> & \x1b[31m\r\n\0\u202e"
SHOWN: Final = (
    "</td><script>alert(1)</script><img src=x onerror=\"a\" style='color: red'> & \\x1b[31m\\r\\n\\x00\\u202e"
)
AT: Final = datetime(2031, 1, 1, tzinfo=UTC)
HALFWAY: Final = cast("BatchSnapshot[Stage]", HALF)


class Document(HTMLParser):
    """HTML that was parsed: its tags with their attributes, and its texts. Each tag is closed where it has to be."""

    def __init__(self, shown: object) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.texts: list[str] = []
        self._open: list[str] = []
        represent: Any = getattr(shown, "_repr_html_")  # noqa: B009  (for notebooks, which ask for it by this name)
        self.feed(represent())
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= set(attrs)
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


FAILURE: Final = DocumentFailure(
    document_id=HOSTILE, error=HOSTILE, error_type=HOSTILE, activity=HOSTILE, attempts=2, tag="failed"
)
HOSTILES: Final[list[object]] = [
    replace(
        HALFWAY,
        batch_id=BatchId(HOSTILE),
        workflow=HOSTILE,
        paused=True,
        pauses=[Pause(reason="quota", since=AT, note=HOSTILE)],
    ),
    BatchResult(
        batch_id=BatchId(HOSTILE),
        state=Failed(counts=Counts(total=1, failed=1), error=HOSTILE),
        counts=Counts(total=1, failed=1),
        resolution=None,
        failures=[FAILURE],
    ),
    ErrorDigest(
        batch_id=BatchId(HOSTILE),
        run=1,
        failed=4,
        groups=[
            ErrorGroup(
                fingerprint=HOSTILE,
                error_type=HOSTILE,
                activity=HOSTILE,
                stage=HOSTILE,
                count=3,
                message=HOSTILE,
                examples=[FAILURE],
                first_at=AT,
                last_at=AT,
            )
        ],
        others=1,
    ),
]


def of_type(hint: Any) -> object:
    """A value of a reason's field, with texts of others where it has any."""
    origin, arguments = get_origin(hint), get_args(hint)
    match origin:
        case _ if origin is Literal:
            return arguments[0]
        case types.UnionType | typing.Union:
            return of_type(arguments[0])
        case collections.abc.Mapping:
            return {of_type(arguments[0]): of_type(arguments[1])}
        case collections.abc.Sequence:
            return [of_type(arguments[0])]
        case _ if origin is tuple:
            return tuple(of_type(each) for each in arguments)
        case _:
            values: dict[object, object] = {str: HOSTILE, int: 3, datetime: AT, Counts: Counts(total=3, failed=3)}
            return values[hint]


def reason_of(kind: type[Any]) -> Reason:
    reason: Reason = kind(**{name: of_type(hint) for name, hint in get_type_hints(kind).items() if name != "tag"})
    return reason


@pytest.mark.parametrize("kind", get_args(Reason), ids=lambda kind: kind.__name__)
def test_every_explanation_is_shown_with_what_others_wrote_as_text(kind: type[Any]) -> None:
    explanation = Explanation[Stage](
        batch_id=BatchId(HOSTILE),
        state=Stage(tag="reading", done=0, total=1),
        headline=HOSTILE,
        reasons=[reason_of(kind)],
    )
    document = Document(explanation)
    assert document.tags == {"div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td"}
    text = "".join(document.texts)
    assert f"{SHOWN}: {SHOWN}" in text
    assert text.isprintable()
    # The sentence is whole, as the command `why` prints it.
    assert printable(str(explanation.reasons[0])) in document.texts


def test_the_health_of_a_worker_is_shown() -> None:
    health = WorkerHealth(
        ready=False,
        not_ready="lease-lost",
        lease_left=timedelta(),
        last_commit=AT,
        loop_lag=timedelta(seconds=7),
        in_flight=3,
        store_away_since=None,
    )
    texts = Document(health).texts
    assert texts[0] == "the worker is not ready: lease-lost"
    assert texts[texts.index("loop lag") + 1] == "0:00:07"
    assert "store away since" not in texts


@pytest.mark.parametrize("shown", HOSTILES, ids=lambda shown: type(shown).__name__)
def test_what_others_wrote_is_text(shown: object) -> None:
    document = Document(shown)
    assert document.tags <= {"div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "progress"}
    # No colours: they are the notebook's, by day and by night.
    styles = {("style", "overflow-x: auto"), ("style", "text-align: left")}
    assert {(name, value) for name, value in document.attributes if name not in ("max", "value")} == styles
    text = "".join(document.texts)
    assert SHOWN in text
    assert text.isprintable()


def test_numbers_are_shown_and_payloads_are_not() -> None:
    document = Document(HALFWAY)
    counts = HALFWAY.counts
    assert f"{counts.ended}/{counts.total} documents" in document.texts
    for stage in HALFWAY.stages:
        assert f"{stage.done}/{stage.total}" in document.texts
        assert ("value", f"{stage.done:g}") in document.attributes
    counts = Counts(total=2, succeeded=2)
    result = BatchResult(batch_id=BatchId("b"), state=Completed(counts=counts), counts=counts, resolution="a secret")
    assert "batch b completed: 2 of 2 documents succeeded" in Document(result).texts
    assert "a secret" not in "".join(Document(result).texts)


# ---- result(progress=True) -------------------------------------------------------------------------------------------


@workflow(STAGES, name="echo")
async def echo(document: str) -> str:
    return document


class Kernel:
    """Stands for IPython in the kernel of a notebook: has what is displayed."""

    def __init__(self) -> None:
        self.outputs: list[list[object]] = []

    def display(self, shown: object, *, display_id: bool) -> SimpleNamespace:
        assert display_id
        output = [shown]
        self.outputs.append(output)
        return SimpleNamespace(update=output.append)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    vars(ipython)["get_ipython"] = lambda: SimpleNamespace(kernel=kernel)
    vars(display)["display"] = kernel.display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return kernel


async def test_a_notebook_has_one_output_that_changes(kernel: Kernel, capsys: pytest.CaptureFixture[str]) -> None:
    async with BatchOrchestrator(echo, store=MemoryStore()) as batches:
        batch_id = await batches.submit(["a", "b"])
        result = await within(batches.result(batch_id, progress=True))
        await within(batches.result(batch_id))
    assert result.counts.succeeded == 2
    (output,) = kernel.outputs
    last = cast("BatchSnapshot[Stage]", output[-1])
    assert last.state == result.state
    assert capsys.readouterr() == ("", "")


async def test_elsewhere_there_are_lines_and_without_progress_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # IPython in a terminal is no notebook.
    ipython = ModuleType("IPython")
    vars(ipython)["get_ipython"] = lambda: SimpleNamespace()
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    async with BatchOrchestrator(echo, store=MemoryStore()) as batches:
        await within(batches.run(["a"], batch_id="quiet"))
        assert capsys.readouterr() == ("", "")
        await within(batches.run(["a", "b"], progress=True))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "2/2 documents  2 succeeded" in printed.err


async def test_a_terminal_has_bars_of_one_batch_and_lines_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm-256color")
    both_are_shown = asyncio.Barrier(2)

    async def snapshots(name: str) -> AsyncGenerator[BatchSnapshot[Stage]]:
        yield replace(HALFWAY, batch_id=BatchId(name))
        if name != "c":
            await both_are_shown.wait()

    await within(asyncio.gather(*(show(snapshots(name), resolver=False) for name in ("a", "b"))))
    assert terminal.text.count("durable-batches: ") == 1
    assert "━" in terminal.text
    terminal.text = ""
    await within(show(snapshots("c"), resolver=False))
    assert "━" in terminal.text
