"""`run`: files as the documents of a workflow, and what it does with what can be none."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.cli import files
from tests.cli.commands import Commands, Ran

from durable_batches import AbortAll, ContinueOnFailure, RetryFailed
from durable_batches.cli.exits import CommandError, Exit
from durable_batches.cli.policies import policy_of, policy_text

ODD = "odd \x1b]0;title\x07 [red]"
"""A name that would set a terminal's title, and is markup."""


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The current folder is the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for noted in (files.calls, files.signalled, files.clocks):
        noted.clear()


def make(contents: Mapping[str, str | bytes]) -> None:
    """Write files, by their names, which may have folders."""
    for name, content in contents.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def run(commands: Commands, workflow: str, *arguments: str) -> Ran:
    return commands("run", f"{files.MODULE}:{workflow}", *arguments)


def results(ran: Ran) -> dict[str, Any]:
    """The results that were printed, by document."""
    return {found["document_id"]: found["result"] for found in map(json.loads, ran.out.splitlines())}


# ---- documents -------------------------------------------------------------------------------------------------------


def test_texts_of_files_folders_and_patterns(on_file: Commands) -> None:
    make({"docs/b.txt": "two", "docs/a.txt": "one\r\n", "docs/more/c.md": "three", "x1.txt": "four"})
    make({"docs/binary.txt": b"\0", "docs/empty.txt": " \n", "docs/.hidden": "no", "docs/venv/d.txt": "no"})
    make({"docs/large.txt": "x" * (1024 * 1024 + 1), "latin1.txt": b"\xe4", f"docs/{ODD}.txt": "odd"})
    ran = run(on_file, "texts", "docs", "x*.txt", "latin1.txt", "--output", "-")
    assert ran.code == Exit.DONE
    expected = {"docs/a.txt": "ONE\n", "docs/b.txt": "TWO", f"docs/{ODD}.txt": "ODD", "docs/more/c.md": "THREE"}
    assert results(ran) == {**expected, "x1.txt": "FOUR", "latin1.txt": "\ufffd"}
    assert "\x1b" not in ran.out + ran.err
    assert on_file.target[1] in ran.err


def test_documents_as_json(on_file: Commands) -> None:
    make(
        {
            "a.txt": "one",
            "b.json": '{"id": "b", "text": "two", "rating": 2}',
            "c.jsonl": '{"id":"c","text":"three"}\n\n',
        }
    )
    make({"d.ndjson": '{"id":"d","text":"four","rating":4}\n{"id":"e","text":"five"}'})
    ran = run(on_file, "articles", "a.txt", "b.json", "c.jsonl", "d.ndjson", "-o", "-")
    assert (ran.code, results(ran)) == (
        Exit.DONE,
        {"a.txt": "ONE 0", "b": "TWO 2", "c": "THREE 0", "d": "FOUR 4", "e": "FIVE 0"},
    )


def test_a_workflow_that_takes_paths_gets_files_of_any_kind(on_file: Commands) -> None:
    make({"scans/a.png": b"\0" * 7, "scans/b.json": "{}"})
    ran = run(on_file, "scans", "scans", "--json")
    (batch,) = [json.loads(line) for line in ran.out.splitlines()]
    assert (ran.code, batch["counts"]["succeeded"], "resolution" in batch) == (Exit.DONE, 2, False)
    assert sorted(files.calls) == ["2", "7"]


def test_what_can_be_no_document(on_file: Commands, tmp_path: Path) -> None:
    """It is named in one line, and no batch is submitted, also where files before it are fine."""
    make(
        {
            "a.txt": "one",
            "binary.txt": b"a\0",
            "empty.txt": "",
            "large.txt": "x" * (1024 * 1024 + 1),
            "broken.json": '{"id":',
        }
    )
    make({"lines.jsonl": '{"id":"c","text":"three"}\n{"id":3}', "mixed.jsonl": '"a"\n3\n', "nothing/.hidden": "x"})
    make({f"{ODD}.txt": b"\0"})
    for workflow, named, says in (
        ("texts", "missing.txt", "there is no file or folder 'missing.txt'"),
        ("texts", "missing/*.txt", "the pattern 'missing/*.txt' matches no file"),
        ("texts", "binary.txt", "the file binary.txt is binary, no text"),
        ("texts", "empty.txt", "the file empty.txt is empty"),
        ("texts", "large.txt", "the file large.txt has more than 1048576 bytes"),
        ("texts", "mixed.jsonl", "mixed.jsonl, line 2: no document of the workflow 'texts': at $: "),
        ("texts", f"{ODD}.txt", "\\x1b]0;title\\x07 [red].txt is binary"),
        ("short_texts", "lines.jsonl", "lines.jsonl, line 1: "),
        ("articles", "broken.json", "broken.json: no document of the workflow 'articles': at $: "),
        ("articles", "lines.jsonl", "lines.jsonl, line 2: "),
        ("numbers", "a.txt", "takes neither the text nor the path of the file a.txt"),
    ):
        first = "a.txt" if workflow == "texts" else named
        ran = run(on_file, workflow, first, named)
        assert (ran.code, ran.out, len(ran.err.splitlines())) == (Exit.USAGE, "", 1), named
        assert says in ran.err
    make({"same.jsonl": '{"id":"c","text":"one"}\n{"id":"c","text":"two"}'})
    same = run(on_file, "articles", "same.jsonl")
    assert (same.code, same.out) == (Exit.ERROR, "")
    assert (
        same.err
        == "durable-batches: two documents have the id 'c'; nothing was submitted. Give each an id of its own\n"
    )
    assert "there are no documents in nothing\n" in run(on_file, "texts", "nothing").err
    assert "name files or folders to run" in run(on_file, "texts").err
    assert "there are no documents to run" in run(on_file, "texts", "--batch-id", "no such").err
    assert files.calls == []
    assert on_file("list", "--json").out == ""


def test_what_is_no_workflow_or_option(on_file: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(
        {
            "a.txt": "one",
            "ending.py": "import sys\nsys.exit('usage: ...')",
            "broken_module.py": "raise RuntimeError('\\x1b')",
        }
    )
    for target, says in (
        ("texts", "'texts' names no workflow; give module:name"),
        ("no_such_module_here:texts", "there is no module 'no_such_module_here' for the workflow"),
        (f"{files.MODULE}:nothing", f"the module '{files.MODULE}' has no 'nothing'"),
        (f"{files.MODULE}:read", "is no workflow, but of type DurableActivity"),
        ("ending:texts", "cannot be imported: it ends the process (usage: ...)"),
        ("broken_module:texts", "cannot be imported: RuntimeError: \\x1b"),
    ):
        ran = on_file("run", target, "a.txt")
        assert (ran.code, ran.out, len(ran.err.splitlines())) == (Exit.USAGE, "", 1), target
        assert says in ran.err
    for option, value, says in (
        ("--policy", "sometimes", "'sometimes' is no failure policy"),
        ("--policy", "retry:0", "max_attempts must be 1 or more"),
        ("--concurrency", "0", "--concurrency"),
        ("--label", "tenant", "'tenant' is no label"),
        ("--batch-id", "\ud800", "batch_id"),
        ("--drain", "1e99", "no number of seconds"),
    ):
        ran = run(on_file, "texts", "a.txt", option, value)
        assert (ran.code, ran.out, len(ran.err.splitlines())) == (Exit.USAGE, "", 1), option
        assert says in ran.err
    ran = on_file.bare("run", f"{files.MODULE}:texts", "a.txt")
    assert (ran.code, "say which store" in ran.err) == (Exit.USAGE, True)
    assert not Path(on_file.target[1]).exists()


def test_policies() -> None:
    for text, policy in (
        ("continue", ContinueOnFailure()),
        ("continue:3", ContinueOnFailure(max_failures=3)),
        ("abort", AbortAll()),
        ("retry", RetryFailed()),
        ("retry:5", RetryFailed(max_attempts=5)),
    ):
        assert policy_of(text) == policy
    for text in ("", "abort:1", "retry:", "retry:-1", "retry:x", "continue:1.5", "continue:" + "9" * 5_000):
        with pytest.raises(CommandError, match="no failure policy"):
            policy_of(text)


def test_a_policy_is_shown_as_it_is_named() -> None:
    for name in ("continue", "continue:3", "abort", "retry:5"):
        assert policy_text(policy_of(name)) == name
    share = ContinueOnFailure(max_failure_ratio=0.05)
    assert policy_text(share) == "continue, fails with more than 5 % failed"
    assert policy_text(RetryFailed(then=AbortAll())) == "retry:3, then abort"


# ---- a run, and the next one -----------------------------------------------------------------------------------------


def test_a_run_is_labelled_and_its_end_is_told(commands: Commands, tmp_path: Path) -> None:
    make({"a.txt": "one", "b.txt": "bad two", "c.txt": "three"})
    options = ("--policy", "continue:1", "--label", "tenant=north", "--concurrency", "2", "-o", "out.jsonl", "--json")
    ran = run(commands, "texts", "a.txt", "b.txt", "c.txt", "--batch-id", "monday", *options)
    assert ran.code == Exit.DOCUMENTS_FAILED
    batch = json.loads(ran.out)
    assert (batch["batch_id"], batch["counts"]["failed"], batch["resolution"]) == ("monday", 1, 2)
    assert batch["metadata"] == {"tenant": "north"}
    assert [json.loads(line)["document_id"] for line in Path("out.jsonl").read_text().splitlines()] == [
        "a.txt",
        "c.txt",
    ]
    assert "b.txt: activity 'read' failed after 1 attempt: ValueError: cannot read bad two" in ran.err
    # It has ended: its result is told again, and nothing is paid for.
    again = run(commands, "texts", "a.txt", "b.txt", "c.txt", "--batch-id", "monday", "--no-progress", "-o", "-")
    assert (again.code, results(again)) == (ran.code, {"a.txt": "ONE", "c.txt": "THREE"})
    assert len(files.calls) == 3
    other = run(commands, "texts", "a.txt", "--batch-id", "monday")
    assert (other.code, "is not of these documents" in other.err) == (Exit.ERROR, True)
    aborted = run(commands, "texts", "b.txt", "--policy", "abort")
    assert aborted.code == Exit.BATCH_FAILED


@pytest.mark.parametrize("by_id", [False, True])
def test_a_run_that_a_signal_has_stopped_is_resumed(on_file: Commands, by_id: bool) -> None:
    make({"a.txt": "one", "b.txt": "two", "c.txt": "three"})
    files.signalled.append(signal.SIGTERM)
    named = ("a.txt", "b.txt", "c.txt")
    ran = run(on_file, "texts", *named, "--concurrency", "1", "-o", "out.jsonl")
    assert (ran.code, files.calls) == (143, ["one"])
    (batch,) = on_file("list", "--json").json
    assert "SIGTERM: running activities finish and are recorded first, for 30 s at most" in ran.err
    assert f"run the same again; or, with any documents, with --batch-id {batch['batch_id']}\n" in ran.err
    assert not Path("out.jsonl").exists()
    # A batch of other documents with the same beginning is another one, and keeps their names.
    make({"d.txt": "four"})
    other = run(on_file, "texts", "a.txt", "d.txt", "-o", "-")
    assert results(other) == {"a.txt": "ONE", "d.txt": "FOUR"}
    assert f"is not run now; --batch-id {batch['batch_id']} resumes it" in other.err
    files.calls.clear()
    resumed = run(on_file, "texts", *(("--batch-id", batch["batch_id"]) if by_id else named), "-o", "out.jsonl")
    assert (resumed.code, files.calls) == (Exit.DONE, ["two", "three"])
    assert "resuming batch" in resumed.err
    assert len(Path("out.jsonl").read_text().splitlines()) == 3


def test_results_that_cannot_be_written(on_file: Commands) -> None:
    make({"a.txt": "one"})
    ran = run(on_file, "texts", "a.txt", "--batch-id", "monday", "-o", "no/such/folder.jsonl", "--no-progress")
    assert (ran.code, ran.err) == (
        Exit.ERROR,
        "durable-batches: the file no/such/folder.jsonl cannot be written: No such file or directory\n",
    )
    again = run(on_file, "texts", "a.txt", "--batch-id", "monday", "-o", "out.jsonl", "--no-progress")
    assert (again.code, files.calls) == (Exit.DONE, ["one"])
