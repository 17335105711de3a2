"""The documents that `run` submits: files, folders and the standard input, as the workflow's documents."""

from __future__ import annotations

import glob
import shlex
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, suppress
from pathlib import Path, PurePath
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar, cast

from pydantic_core import to_json

from durable_batches.cli.exits import CommandError, Exit
from durable_batches.cli.standard_input import CHUNK_BYTES, STDIN, Line, Lines, check_size, standard_input
from durable_batches.codec.codec import Codec
from durable_batches.errors import PayloadError
from durable_batches.files import NoTextError, files_below, name_of, read_text, text_of
from durable_batches.runtime.workflow import Workflow

__all__ = ["Inputs", "StdinFormat"]

StdinFormat: TypeAlias = Literal["jsonl", "lines", "text"]
"""What the standard input holds: a document as JSON in each line, a text in each line, or one text."""

D = TypeVar("D")

_LINES: Final = (".jsonl", ".ndjson")
_JSON: Final = ".json"
_STDIN: Final = "-"
_STDIN_ID: Final = "stdin"
"""The id of a text, and the beginning of those of its lines."""


class _Text(str):
    """The text of a file, as a document with the file's name as its id."""

    id: str


class Inputs(Generic[D]):
    """Makes a workflow's documents of files, one after another.

    A file is one document: its path, its text, or an object with an id, a title and the text, whichever of these the
    workflow takes. Others are read as JSON: a document in a `.json` file, and one a line in `.jsonl` and `.ndjson`.
    The standard input can be read once only.

    Args:
        workflow: The workflow.
        files: Files, folders and patterns, as the user names them; "-": the standard input.
        stdin: What the standard input holds.

    Raises:
        CommandError: There is no such file, or the standard input is named twice.
    """

    def __init__(
        self, workflow: Workflow[D, Any, Any, Any], files: Sequence[str], stdin: StdinFormat = "jsonl"
    ) -> None:
        self._codec: Codec[D] = workflow.document_codec
        self._name = workflow.name
        self._files = files
        self._stdin: StdinFormat = stdin
        if files.count(_STDIN) > 1:
            raise CommandError("- is given twice, and the standard input can be read once only", Exit.USAGE)
        self._paths = [path for named in files for path in ([None] if named == _STDIN else _paths_of(named))]
        """None: the standard input."""

    async def __aiter__(self) -> AsyncIterator[D]:
        """Yield the documents.

        Raises:
            CommandError: There is none; or a file that is named, or a line of it, cannot be a document.
        """
        none = True
        for path in self._paths:
            if path is None:
                async with aclosing(self._of_stdin()) as documents:
                    async for document in documents:
                        none = False
                        yield document
                continue
            for document in self._below(path) if path.is_dir() else self._of(path):
                none = False
                yield document
        if none:
            named = " ".join(STDIN if each == _STDIN else shlex.quote(each) for each in self._files)
            where = f"in {named}" if named else "to run: name files or folders"
            raise CommandError(f"there are no documents {where}", Exit.USAGE)

    def named(self, document: D, document_id: str) -> D:
        """Give a document that was recorded the id that it has, where only its text is recorded."""
        return self._with_id(document, document_id) if isinstance(document, str) else document

    def _below(self, folder: Path) -> Iterator[D]:
        for path in files_below(folder):
            # What has no text is left out, unless it is named.
            with suppress(_NoDocumentError):
                yield from self._of(path)

    def _of(self, path: Path) -> Iterator[D]:
        """Yield the documents of a file.

        Raises:
            CommandError: It has none.
        """
        if path.suffix in _LINES:
            yield from self._lines_of(path)
            return
        name = name_of(path)
        as_path = self._decoded(str(path))
        if isinstance(as_path, PurePath):
            yield as_path
            return
        try:
            text = read_text(path)
        except NoTextError as error:
            raise _NoDocumentError(f"the file {name} {error}", Exit.USAGE) from None
        except OSError as error:
            raise _unreadable(name, error) from error
        yield self._of_text(name, text, is_json=path.suffix == _JSON)

    def _of_text(self, name: str, text: str, *, is_json: bool) -> D:
        as_text = self._decoded(text)
        if isinstance(as_text, str):
            return self._with_id(as_text, name)
        if is_json:
            return self._parsed(text.encode(), name)
        for form in ({"id": name, "title": name, "text": text}, {"id": name, "text": text}):
            found = self._decoded(form)
            if found is not None:
                return found
        raise CommandError(
            f"the workflow {self._name!r} takes neither the text nor the path of {_called(name)}; its documents can be "
            "given as JSON: one in a .json file, and one a line in a .jsonl file or on the standard input",
            Exit.USAGE,
        )

    def _with_id(self, text: str, document_id: str) -> D:
        document = _Text(text)
        document.id = document_id
        # Of the annotated type, which is str.
        return cast("D", document)

    def _lines_of(self, path: Path) -> Iterator[D]:
        name = name_of(path)
        lines = Lines(name)
        try:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield from self._of_lines(lines.fed(chunk))
            yield from self._of_lines(lines.last())
        except OSError as error:
            raise _unreadable(name, error) from error

    def _of_lines(self, lines: Iterator[Line]) -> Iterator[D]:
        for line in lines:
            yield self._parsed(line.content, line.where)

    async def _of_stdin(self) -> AsyncGenerator[D, None]:
        """Yield the documents of the standard input.

        Raises:
            CommandError: It has none, is closed, or a line of it cannot be a document.
        """
        lines = Lines(STDIN)
        of_lines = self._of_lines if self._stdin == "jsonl" else self._of_text_lines
        whole = bytearray()
        async with aclosing(standard_input()) as chunks:
            async for chunk in chunks:
                if self._stdin == "text":
                    whole += chunk
                    check_size(len(whole), STDIN)
                    continue
                for document in of_lines(lines.fed(chunk)):
                    yield document
        if self._stdin == "text":
            yield self._of_text(_STDIN_ID, _text(bytes(whole), STDIN), is_json=False)
            return
        for document in of_lines(lines.last()):
            yield document

    def _of_text_lines(self, lines: Iterator[Line]) -> Iterator[D]:
        for line in lines:
            if not line.content.decode("utf-8-sig", errors="replace").strip():
                # Blank as well: of spaces that are no ASCII.
                continue
            text = _text(line.content, line.where)
            # A path, where the workflow takes one: `find` prints these.
            as_path = self._decoded(text)
            yield (
                as_path
                if isinstance(as_path, PurePath)
                else self._of_text(f"{_STDIN_ID}:{line.number}", text, is_json=False)
            )

    def _parsed(self, payload: bytes, where: str) -> D:
        try:
            return self._codec.decode(payload)
        except PayloadError as error:
            hint = "; --stdin lines reads each line as a text" if where.startswith(STDIN) else ""
            raise CommandError(
                f"{where}: no document of the workflow {self._name!r}: at {error.path}: {error.reason}{hint}",
                Exit.USAGE,
            ) from None

    def _decoded(self, value: object) -> D | None:
        try:
            return self._codec.decode(to_json(value, inf_nan_mode="strings"))
        except (PayloadError, ValueError):
            return None


class _NoDocumentError(CommandError):
    """A file has no text."""


def _paths_of(named: str) -> Sequence[Path]:
    """Find what an argument names; a pattern is expanded, which not every shell does.

    Raises:
        CommandError: There is nothing.
    """
    path = Path(named)
    if path.exists():
        return [path]
    if not glob.has_magic(named):
        raise CommandError(f"there is no file or folder {named!r}", Exit.USAGE)
    found = sorted(glob.glob(named, recursive=True))
    if not found:
        raise CommandError(f"the pattern {named!r} matches no file", Exit.USAGE)
    return [Path(each) for each in found]


def _text(content: bytes, where: str) -> str:
    try:
        return text_of(content)
    except NoTextError as error:
        raise CommandError(f"{where} {error}", Exit.USAGE) from None


def _called(name: str) -> str:
    return STDIN if name == _STDIN_ID or name.startswith(f"{_STDIN_ID}:") else f"the file {name}"


def _unreadable(name: str, error: OSError) -> CommandError:
    return CommandError(f"the file {name} cannot be read: {error.strerror or type(error).__name__}", Exit.ERROR)
