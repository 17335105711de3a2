"""What an editor shows: hover, completion and parameters, asked of a real language server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

import durable_batches
import durable_batches.testing

ROOT = Path(__file__).parents[2]

NAMES = sorted({*durable_batches.__all__} - {"__version__"})
NAMES_FOR_TESTS = [f"durable_batches.testing.{name}" for name in durable_batches.testing.__all__]

PROGRAM = '''\
from durable_batches import *
from durable_batches import __version__
import durable_batches.testing


@durable_activity(stage=Chunking)
async def split(text: str, size: int = 3) -> list[str]:
    """Cut the text into pieces."""
    return [text] * size


class Service:
    @durable_activity
    async def ask(self, question: str, loud: bool = False) -> float:
        """Ask the service."""
        return 1.0


@workflow(EXTRACTION)
async def extract(document: str) -> dict[str, int]:
    """Take one document through."""
    return {}


async def main(service: Service) -> None:
    async with BatchOrchestrator(extract, store=SQLiteStore("b.db")) as batches:
        result = await batches.run(["a"])
        state = await batches.state("b")
        result
        state
        batches.run
        split
        service.ask
        extract
        split()
        service.ask()
        batches.
        split.

''' + "\n".join([*NAMES, *NAMES_FOR_TESTS, ""])


class LanguageServer:
    """Speaks the Language Server Protocol with pyright's server, over its standard streams."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pyright.langserver", "--stdio"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._number = 0
        self._uri = (folder / "program.py").as_uri()
        self.ask(
            "initialize",
            processId=None,
            rootUri=folder.as_uri(),
            capabilities={"textDocument": {"hover": {"contentFormat": ["markdown"]}}},
            workspaceFolders=[{"uri": folder.as_uri(), "name": "user"}],
        )
        self.tell("initialized")
        self.tell(
            "textDocument/didOpen",
            textDocument={"uri": self._uri, "languageId": "python", "version": 1, "text": PROGRAM},
        )

    def close(self) -> None:
        self.ask("shutdown")
        self.tell("exit")
        self._process.communicate(timeout=30)

    def hover(self, line: str, word: str) -> str:
        """What is shown where the pointer is on a word of the program's line."""
        answer = self.ask("textDocument/hover", **self._at(line, line.index(word) + 1))
        return "" if answer is None else str(answer["contents"]["value"])

    def parameters(self, line: str) -> str:
        """What is shown within the parentheses at the end of a line."""
        answer = self.ask("textDocument/signatureHelp", **self._at(line, len(line) - 1))
        return str(answer["signatures"][answer.get("activeSignature") or 0]["label"])

    def completions(self, line: str) -> set[str]:
        """What is offered at the end of a line."""
        answer = self.ask("textDocument/completion", **self._at(line, len(line)))
        return {str(item["label"]) for item in answer["items"]}

    def _at(self, line: str, column: int) -> dict[str, Any]:
        position = {"line": PROGRAM.splitlines().index(line), "character": column}
        return {"textDocument": {"uri": self._uri}, "position": position}

    def ask(self, method: str, **asked: Any) -> Any:
        self._number += 1
        self._write({"id": self._number, "method": method, "params": asked})
        while True:
            message = self._read()
            if message.get("id") != self._number:
                if "id" in message and "method" in message:
                    # It asks for its configuration: there is none.
                    parameters: dict[str, list[object]] = message.get("params") or {}
                    items = parameters.get("items", [])
                    self._write({"id": message["id"], "result": [None] * len(items) or None})
                continue
            assert "error" not in message, message
            return message["result"]

    def tell(self, method: str, **parameters: Any) -> None:
        self._write({"method": method, "params": parameters})

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        content = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n%b" % (len(content), content))
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        length = 0
        while header := self._process.stdout.readline().strip():
            name, _, value = header.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        assert length, "the language server has ended"
        message: dict[str, Any] = json.loads(self._process.stdout.read(length))
        return message


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Generator[LanguageServer]:
    folder = tmp_path_factory.mktemp("user")
    (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
    (folder / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT / "src")]}), encoding="utf-8")
    server = LanguageServer(folder)
    yield server
    server.close()


def test_a_decorated_function_shows_its_parameters_its_result_and_its_docstring(editor: LanguageServer) -> None:
    shown = editor.hover("        split", "split")
    assert "text: str" in shown
    assert "size: int = 3" in shown
    assert "list[str]" in shown
    of_method = editor.hover("        service.ask", "ask")
    assert "question: str" in of_method
    assert "loud: bool = False" in of_method
    assert "self" not in of_method
    assert "float" in of_method
    assert "Workflow[str, dict[str, int]" in editor.hover("        extract", "extract")


def test_a_call_shows_the_parameters_of_the_function_that_was_decorated(editor: LanguageServer) -> None:
    assert editor.parameters("        split()") == "(text: str, size: int = 3) -> Coroutine[Any, Any, list[str]]"
    assert editor.parameters("        service.ask()").startswith("(question: str, loud: bool = False) -> ")


def test_what_is_inferred_is_shown(editor: LanguageServer) -> None:
    assert "BatchResult[None]" in editor.hover("        result", "result")
    assert "BatchState[ExtractionStage]" in editor.hover("        state", "state")


def test_members_are_offered(editor: LanguageServer) -> None:
    offered = editor.completions("        batches.")
    assert {"submit", "run", "state", "snapshot", "progress", "watch", "result", "results", "cancel"} <= offered
    assert {"with_options", "replaced", "name", "stage", "retry", "timeout"} <= editor.completions("        split.")


@pytest.mark.parametrize("name", NAMES)
def test_each_public_name_shows_its_docstring(name: str, editor: LanguageServer) -> None:
    shown, _, documentation = editor.hover(name, name).partition("---")
    assert name in shown
    assert documentation
    assert first_line_of(getattr(durable_batches, name)) in plain(documentation)


@pytest.mark.parametrize("name", durable_batches.testing.__all__)
def test_each_name_for_tests_shows_its_docstring(name: str, editor: LanguageServer) -> None:
    shown, _, documentation = editor.hover(f"durable_batches.testing.{name}", name).partition("---")
    assert name in shown
    assert first_line_of(getattr(durable_batches.testing, name)) in plain(documentation)


def first_line_of(value: object) -> str:
    """Of a class's or function's own docstring. Other values have theirs where editors alone read it."""
    documented = value.__doc__ if isinstance(value, type | FunctionType) else None
    return plain(documented.strip().splitlines()[0]) if documented else ""


def plain(text: str) -> str:
    """Without what Markdown needs."""
    return text.replace("\\", "").replace("&nbsp;", " ").replace("`", "")
