"""`durable-batches demo` as a user runs it: in its own process, stopped in every way."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from durable_batches import (
    BatchId,
    BatchOrchestrator,
    BatchSnapshot,
    BatchState,
    Chunking,
    Completed,
    Counts,
    ExtractionStage,
    NonRetryableError,
    Resolving,
    SQLiteStore,
    StageCount,
)
from durable_batches.cli.demo.demo import RESOLVING, Demo
from durable_batches.extraction import (
    DocumentRef,
    Entity,
    Mention,
    MergedGraph,
    RuleExtractor,
    Vocabulary,
    extraction_workflow,
)
from durable_batches.terminal.bars import follow, panel
from durable_batches.terminal.lines import status_line

DOCUMENTS = 12


installed = cache(Vocabulary.installed)


@pytest.fixture(autouse=True)
def _vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata of all installed packages is read once for all demonstrations that are run in this process."""
    monkeypatch.setattr(Vocabulary, "installed", staticmethod(installed))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a few texts."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(DOCUMENTS):
        (texts / f"note-{number:02}.md").write_text(
            f"# Note {number}\n\nBird{number} depends on pydantic and `sqlalchemy`.\n\npip install pytest\n\n"
            "Written by Ada Quill. It is licensed under the MIT license. See https://quill.dev/birds.\n",
            encoding="utf-8",
        )
    return tmp_path


def command(*arguments: str) -> list[str]:
    # The entry point's own script may not be on the PATH; this is what it holds.
    return [sys.executable, "-c", "from durable_batches.cli import main; main()", *arguments]


def demo(*arguments: str) -> list[str]:
    return command("demo", "--path", "texts", *arguments)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        demo(*arguments),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(),
    )


def environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}


def numbers(pattern: str, output: str) -> list[int]:
    match = re.search(pattern, output)
    assert match, output
    return [int(number.replace(",", "")) for number in match.groups()]


@pytest.mark.usefixtures("warm_interpreters")
@pytest.mark.processes
async def test_the_demonstration_runs_to_its_end_and_a_second_run_repeats_nothing(folder: Path) -> None:
    first = run(folder, "--pace", "0", "--out", "graph.json", "--fresh")
    assert first.returncode == 0, first.stderr
    assert f"reading the text files in texts: {DOCUMENTS} documents" in first.stdout
    assert "its page, from another terminal: durable-batches serve --store demo.db" in first.stdout
    assert "licences" in first.stdout
    assert "pydantic" in first.stdout
    recorded, now, earlier = numbers(r"(\d+) activities: (\d+) run now, (\d+) recorded earlier", first.stdout)
    assert (now, earlier) == (recorded, 0)
    graph = MergedGraph.model_validate_json((folder / "graph.json").read_text(encoding="utf-8"))
    assert {node.id for node in graph.nodes} >= {
        "package:pydantic",
        "person:ada quill",
        "license:mit",
        "url:quill.dev/birds",
    }
    assert len(graph.documents) == DOCUMENTS

    (folder / "graph.json").unlink()
    again = run(folder, "--pace", "0", "--db", "demo.db")
    assert again.returncode == 0, again.stderr
    assert f"has ended already: {DOCUMENTS} documents, {recorded} recorded activities" in again.stdout
    assert f"{recorded} activities: 0 run now, {recorded} recorded earlier and not repeated" in again.stdout
    assert MergedGraph.model_validate_json((folder / "graph.json").read_text(encoding="utf-8")) == graph


async def recorded_activities(database: Path) -> int:
    """Count the checkpoints of the batch, as another process does."""
    workflow = extraction_workflow(RuleExtractor(Vocabulary()))
    async with BatchOrchestrator(workflow, store=SQLiteStore(database), max_in_flight=0) as batches:
        found = [snapshot async for snapshot in batches.list_batches()]
        return await batches.count_checkpoints(found[0].batch_id) if found else 0


async def run_until_half(folder: Path, number: signal.Signals) -> tuple[int, int, str]:
    """Start the demonstration, and send it the signal half-way."""
    process = await asyncio.create_subprocess_exec(
        *demo("--pace", "0.2", "--concurrency", "2"),
        cwd=folder,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readuntil(b"is kept in"), 30)
    async with asyncio.timeout(30):
        while (seen := await recorded_activities(folder / "demo.db")) < 8:  # noqa: ASYNC110  (in another process)
            await asyncio.sleep(0.1)
    process.send_signal(number)
    async with asyncio.timeout(30):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, seen, output.decode()


# The signals that stop it are those that stop a script, whose tests tell them apart.
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)], ids=["kill", "int"])
@pytest.mark.usefixtures("warm_interpreters")
@pytest.mark.processes
async def test_a_stopped_demonstration_is_resumed(folder: Path, number: signal.Signals, code: int) -> None:
    returncode, seen, output = await run_until_half(folder, number)
    assert returncode == code
    assert ("run the same command again" in output) == (number is not signal.SIGKILL)
    assert not (folder / "graph.json").exists()

    rest = run(folder, "--pace", "0")

    assert rest.returncode == 0, rest.stderr
    finished, kept = numbers(
        rf"resuming .*: (\d+) of {DOCUMENTS} documents already finished, "
        r"(\d+) recorded activities will not be repeated",
        rest.stdout,
    )
    assert 0 <= finished < DOCUMENTS
    assert kept >= seen
    total, now, earlier = numbers(
        r"(\d+) activities: (\d+) run now, (\d+) recorded earlier and not repeated", rest.stdout
    )
    assert earlier == kept
    assert now == total - kept
    assert len(json.loads((folder / "graph.json").read_text(encoding="utf-8"))["documents"]) == DOCUMENTS


@pytest.mark.usefixtures("warm_interpreters")
@pytest.mark.processes
def test_it_runs_on_when_its_reader_leaves(folder: Path) -> None:
    with subprocess.Popen(demo("--pace", "0"), cwd=folder, env=environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=60) == 0
    assert (folder / "graph.json").exists()


async def within(folder: Path, *, path: str = "texts", out: str = "graph.json", fresh: bool = False) -> tuple[int, str]:
    """Run the demonstration in this process; return its exit code and output."""
    console = Console(file=io.StringIO(), width=120)
    code = await Demo(
        path=folder / path, db=folder / "demo.db", out=folder / out, concurrency=4, pace=0, fresh=fresh, console=console
    ).run()
    assert isinstance(console.file, io.StringIO)
    return code, console.file.getvalue()


async def test_a_fresh_batch_repeats_everything(folder: Path) -> None:
    (folder / "texts" / "package").mkdir()
    (folder / "texts" / "package" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: parrot\nAuthor: Ada Quill\nAuthor-email: ada@quill.dev\n", encoding="utf-8"
    )
    _, first = await within(folder)
    (recorded,) = numbers(r"(\d+) activities", first)
    assert "1 person is named in several ways" in first
    assert "Ada Quill: ada@quill.dev (same name)" in first
    code, fresh = await within(folder, fresh=True)
    assert code == 0
    assert f"{recorded} activities: {recorded} run now, 0 recorded earlier" in fresh
    code, again = await within(folder)
    assert re.search(r"the batch demo-files-\w+-2 in .* has ended already", again)


async def test_a_folder_without_texts_is_reported(folder: Path) -> None:
    (folder / "empty").mkdir()
    code, output = await within(folder, path="empty")
    assert code == 1
    assert "there is nothing to read" in output


async def test_a_graph_that_cannot_be_written_is_reported(folder: Path) -> None:
    code, output = await within(folder, out="missing/graph.json")
    assert code == 1
    assert "cannot be written" in output
    assert "Knowledge graph of 12 documents" in output


@pytest.mark.parametrize("failing", [3, DOCUMENTS])
async def test_failed_documents_are_reported(folder: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    class Refusing(RuleExtractor):
        async def make_entities(self, document: DocumentRef, mentions: list[Mention]) -> list[Entity]:
            if document.id < f"note-{failing:02}":
                raise NonRetryableError("the service refuses")
            return await super().make_entities(document, mentions)

    monkeypatch.setattr("durable_batches.cli.demo.demo.RuleExtractor", Refusing)
    code, output = await within(folder)
    assert code == 1
    if failing == DOCUMENTS:
        assert "has failed: " in output
        assert "has failed already" in (await within(folder))[1]
    else:
        assert "failed: note-00.md: " in output
        assert f"{failing} failed" in output


async def test_names_of_files_drive_no_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(RuleExtractor):
        async def make_entities(self, document: DocumentRef, mentions: list[Mention]) -> list[Entity]:
            if "odd" in document.id:
                raise NonRetryableError("refused \x1b[31m")
            return await super().make_entities(document, mentions)

    monkeypatch.setattr("durable_batches.cli.demo.demo.RuleExtractor", Refusing)
    (folder / "texts" / "odd\x1b]0;title\x07.md").write_text("pip install pytest", encoding="utf-8")
    code, output = await within(folder)
    assert code == 1
    assert r"failed: odd\x1b]0;title\x07.md: " in output
    assert all(line.isprintable() for line in output.splitlines())


@pytest.mark.parametrize(("package", "extra"), [("typer", "cli"), ("rich", "cli"), ("rapidfuzz", "extraction")])
@pytest.mark.processes
def test_a_missing_package_is_reported_with_its_extra(folder: Path, package: str, extra: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from durable_batches.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "--path", "texts"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"durable-batches[{extra}]" in line
    assert package in line


# ---- the live view ---------------------------------------------------------------------------------------


def snapshot(state: BatchState[ExtractionStage], counts: Counts, done: Sequence[int]) -> BatchSnapshot[ExtractionStage]:
    tags = ["chunking", "extracting_mentions", "extracting_entities", "extracting_relations", "assembling"]
    return BatchSnapshot(
        batch_id=BatchId("b"),
        workflow="extraction",
        version="1",
        state=state,
        paused=False,
        counts=counts,
        stages=[
            StageCount(stage=tag, current=min(number + 1, counts.total), done=number, total=counts.total)
            for tag, number in zip(tags, done, strict=True)
        ],
        percentage=40.0,
        documents_per_second=0.5,
        eta=None,
        seq=1,
        run=1,
        created_at=datetime(2031, 1, 1, tzinfo=UTC),
        started_at=None,
        ended_at=None,
        metadata={},
    )


HALF = snapshot(
    Chunking(done=5, total=100),
    Counts(total=100, succeeded=4, failed=1, running=2, pending=93),
    [8, 7, 6, 5, 5],
)
IN_RESOLVER = snapshot(Resolving(counts=Counts(total=2, succeeded=2)), Counts(total=2, succeeded=2), [2] * 5)
ENDED = snapshot(Completed(counts=Counts(total=2, succeeded=2)), Counts(total=2, succeeded=2), [2] * 5)


def rendered(renderable: Any) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_line_shows_state_and_numbers() -> None:
    assert status_line(HALF).split("  ")[-1] == "ETA 3:10"
    assert " ".join(status_line(HALF).split()) == (
        "chunking 40 % 5/100 documents 4 succeeded, 1 failed, 2 running, 93 pending 0.5/s ETA 3:10"
    )


def test_the_panel_has_a_bar_for_each_stage() -> None:
    text = rendered(panel(HALF, resolving=RESOLVING))
    assert [line.split("  ")[0] for line in text.splitlines()][:6] == [
        "Chunking",
        "Extracting mentions",
        "Extracting entities",
        "Extracting relations",
        "Assembling",
        "Resolving",
    ]
    assert "8/100" in text
    assert "1 in it" in text
    assert "linking across documents" in rendered(panel(IN_RESOLVER, resolving=RESOLVING))
    assert "done" in rendered(panel(ENDED, resolving=RESOLVING))


@pytest.mark.parametrize("terminal", [True, False])
async def test_a_batch_is_followed_to_its_end(terminal: bool) -> None:
    async def snapshots() -> AsyncIterator[BatchSnapshot[ExtractionStage]]:
        for each in (HALF, IN_RESOLVER, ENDED):
            yield each

    console = Console(file=io.StringIO(), width=100, force_terminal=terminal)
    assert await follow(snapshots(), console, resolving=RESOLVING) is ENDED
    assert isinstance(console.file, io.StringIO)
    output = console.file.getvalue()
    assert "2/2 documents" in output
    assert ("━" in output) == terminal
