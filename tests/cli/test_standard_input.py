"""`run -`: documents from a pipe or a file on the standard input, and what is refused of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli import files
from tests.cli.commands import Commands, Ran
from tests.support import within

from durable_batches.cli.exits import Exit
from durable_batches.cli.standard_input import CHUNK_BYTES, standard_input


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The current folder is the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for noted in (files.calls, files.signalled):
        noted.clear()


class Piped:
    """Runs `run` with a pipe as its standard input, into which another thread writes."""

    def __init__(self, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
        self._commands = commands
        self._monkeypatch = monkeypatch

    def __call__(self, content: bytes, workflow: str, *arguments: str) -> Ran:
        reading, writing = os.pipe()

        def write() -> None:
            with open(writing, "wb") as pipe:
                try:
                    pipe.write(content)
                    pipe.flush()
                except BrokenPipeError:
                    pass  # the command has read enough to refuse it

        thread = threading.Thread(target=write)
        with open(reading) as stdin:
            self._monkeypatch.setattr(sys, "stdin", stdin)
            thread.start()
            ran = self._commands("run", f"{files.MODULE}:{workflow}", *arguments, "--no-progress", "-o", "-")
        thread.join()
        return ran


@pytest.fixture
def piped(on_file: Commands, monkeypatch: pytest.MonkeyPatch) -> Piped:
    return Piped(on_file, monkeypatch)


def results(ran: Ran) -> dict[str, Any]:
    """The results that were printed, by document."""
    assert (ran.code, ran.err) == (Exit.DONE, "")
    return {found["document_id"]: found["result"] for found in map(json.loads, ran.out.splitlines())}


def test_documents_as_json_lines(piped: Piped) -> None:
    content = b'\xef\xbb\xbf{"id":"a","text":"one"}\r\n\n  \n{"id":"b","text":"two","rating":2}'
    assert results(piped(content, "articles", "-")) == {"a": "ONE 0", "b": "TWO 2"}


def test_a_text_in_each_line(piped: Piped) -> None:
    Path("c.txt").write_text("three")
    content = b"\xef\xbb\xbfone\r\n\n\xe4nd\n" + b"x" * 3 * CHUNK_BYTES + b"\n\xc2\xa0\n\xef\xbb\xbf\n"
    found = results(piped(content, "texts", "c.txt", "-", "--stdin", "lines"))
    expected = {"c.txt": "THREE", "stdin:1": "ONE", "stdin:3": "\ufffdND", "stdin:4": "X" * 3 * CHUNK_BYTES}
    assert found == expected


def test_a_path_in_each_line(piped: Piped) -> None:
    for name, length in (("a b.png", 7), ("c.png", 3)):
        Path(name).write_bytes(b"\0" * length)
    assert len(results(piped(b"a b.png\n./c.png\n", "scans", "-", "--stdin", "lines"))) == 2
    assert sorted(files.calls) == ["3", "7"]


def test_one_text(piped: Piped) -> None:
    assert results(piped(b"one\r\n\ntwo\n", "texts", "-", "--stdin", "text")) == {"stdin": "ONE\n\nTWO\n"}


def test_a_file_on_the_standard_input(on_file: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("texts.jsonl").write_text('"one"\n"two"\n')
    with open("texts.jsonl") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        ran = on_file("run", f"{files.MODULE}:texts", "-", "--no-progress")
    assert (ran.code, ran.err, files.calls) == (Exit.DONE, "", ["one", "two"])


def test_what_the_standard_input_cannot_be(piped: Piped, on_file: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said in one line, and no batch is submitted, also where lines before it are fine."""
    monkeypatch.setattr("durable_batches.cli.standard_input.MAX_PAYLOAD_BYTES", 2 * CHUNK_BYTES)
    endless = b'"one"\n' + b"x" * 8 * CHUNK_BYTES
    lines, text = ("--stdin", "lines"), ("--stdin", "text")
    for content, workflow, options, says in (
        (b"", "texts", (), "there are no documents in the standard input\n"),
        (b"\n \n", "texts", lines, "there are no documents in the standard input\n"),
        (b"", "texts", text, "the standard input is empty"),
        (b'"one"\ntwo\n', "texts", (), "the standard input, line 2: no document of the workflow 'texts': at $: "),
        (b'"one"\ntwo\n', "texts", (), "--stdin lines reads each line as a text\n"),
        (b'{"id":"a","text":"one"}\n{"id":"b","te', "articles", (), "the standard input, line 2: no document"),
        (b"one\nt\0wo\n", "texts", lines, "the standard input, line 2 is binary, no text"),
        (b"1\n", "numbers", lines, "takes neither the text nor the path of the standard input"),
        (endless, "texts", (), "the standard input, line 2 has more than 131072 bytes"),
        (endless, "texts", lines, "the standard input, line 2 has more than 131072 bytes"),
        (endless, "texts", text, "the standard input has more than 131072 bytes"),
    ):
        ran = piped(content, workflow, "-", *options)
        assert (ran.code, ran.out, len(ran.err.splitlines())) == (Exit.USAGE, "", 1), says
        assert says in ran.err, ran.err
    Path("endless.jsonl").write_bytes(endless)
    ran = on_file("run", f"{files.MODULE}:texts", "endless.jsonl")
    assert (ran.code, "endless.jsonl, line 2 has more than 131072 bytes" in ran.err) == (Exit.USAGE, True)
    ran = on_file("run", f"{files.MODULE}:texts", "-", "-")
    assert (ran.code, "- is given twice" in ran.err) == (Exit.USAGE, True)
    monkeypatch.setattr(sys, "stdin", None)
    ran = on_file("run", f"{files.MODULE}:texts", "-")
    assert (ran.code, "the standard input is closed" in ran.err) == (Exit.USAGE, True)
    assert files.calls == []
    assert on_file("list", "--json").out == ""


def test_a_run_that_was_stopped_is_resumed_by_the_same_input(piped: Piped) -> None:
    files.signalled.append(signal.SIGTERM)
    content = b"one\ntwo\nthree\n"
    ran = piped(content, "texts", "-", "--stdin", "lines", "--concurrency", "1")
    assert (ran.code, files.calls) == (143, ["one"])
    found = results(piped(content, "texts", "-", "--stdin", "lines"))
    assert (found, files.calls) == (
        {"stdin:1": "ONE", "stdin:2": "TWO", "stdin:3": "THREE"},
        ["one", "two", "three"],
    )


async def test_nothing_is_listened_to_while_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop would turn for nothing until the documents that were read are recorded."""
    reading, writing = os.pipe()
    with open(reading) as stdin, open(writing, "wb", buffering=0) as pipe:
        monkeypatch.setattr(sys, "stdin", stdin)
        chunks = standard_input()
        for text in (b"one\n", b"two\n"):
            pipe.write(text)
            assert await within(anext(chunks)) == text
            pipe.write(text)
            assert not asyncio.get_running_loop().remove_reader(reading)
            assert await within(anext(chunks)) == text
        await chunks.aclose()
