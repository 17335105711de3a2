"""The standard input, read as it comes: a program that writes slowly, or a person, holds up no event loop."""

from __future__ import annotations

import asyncio
import codecs
import os
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from durable_batches.cli.exits import CommandError, Exit
from durable_batches.codec.codec import MAX_PAYLOAD_BYTES
from durable_batches.tasks import wake
from durable_batches.terminal.lines import is_terminal, print_line

__all__ = ["CHUNK_BYTES", "STDIN", "Line", "Lines", "check_size", "standard_input"]

STDIN: Final = "the standard input"
"""In messages."""

CHUNK_BYTES: Final = 65_536


@dataclass(frozen=True)
class Line:
    """A line that is not blank, without its end.

    Attributes:
        content: Its bytes.
        number: From 1.
        where: Its name, in messages.
    """

    content: bytes
    number: int
    where: str


class Lines:
    """Splits what comes into lines, none of which is longer than a document can be.

    Args:
        name: Of what it comes from, in messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._number = 1
        self._parts: list[bytes] = []
        self._length = 0

    def fed(self, chunk: bytes) -> Iterator[Line]:
        """Yield the lines that a chunk completes.

        Raises:
            CommandError: A line is too long.
        """
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            self._add(line)
            yield from self._taken()
        self._add(rest)

    def last(self) -> Iterator[Line]:
        """Yield what comes after the last end of a line, if anything."""
        yield from self._taken()

    def _add(self, part: bytes) -> None:
        self._length += len(part)
        check_size(self._length, self._where)
        self._parts.append(part)

    def _taken(self) -> Iterator[Line]:
        content = b"".join(self._parts).removesuffix(b"\r")
        number, where = self._number, self._where
        if number == 1:
            content = content.removeprefix(codecs.BOM_UTF8)
        self._parts, self._length, self._number = [], 0, number + 1
        if content.strip():
            yield Line(content, number, where)

    @property
    def _where(self) -> str:
        return f"{self._name}, line {self._number}"


def check_size(length: int, where: str) -> None:
    """Refuse what is longer than a document can be, before more of it is read into memory.

    Raises:
        CommandError: It is.
    """
    if length > MAX_PAYLOAD_BYTES:
        raise CommandError(f"{where} has more than {MAX_PAYLOAD_BYTES} bytes", Exit.USAGE)


async def standard_input() -> AsyncGenerator[bytes, None]:
    """Yield the standard input in chunks, to its end.

    Raises:
        CommandError: It is closed, or cannot be read.
    """
    if sys.stdin is None:
        # Its number may be that of a database by now.
        raise CommandError(f"{STDIN} is closed", Exit.USAGE)
    if is_terminal(sys.stdin):
        print_line("reading documents from the terminal; Ctrl-D on a line of its own ends them")
    try:
        async with aclosing(_chunks_of(sys.stdin.fileno())) as chunks:
            async for chunk in chunks:
                yield chunk
    except (OSError, ValueError) as error:
        raise CommandError(
            f"{STDIN} cannot be read: {getattr(error, 'strerror', None) or error}", Exit.ERROR
        ) from error


async def _chunks_of(file: int) -> AsyncGenerator[bytes, None]:
    while True:
        await _readable(file)
        try:
            chunk = os.read(file, CHUNK_BYTES)
        except BlockingIOError:
            # Another process has read it first.
            continue
        if not chunk:
            return
        yield chunk


async def _readable(file: int) -> None:
    """Wait until there is something to read; no thread is left behind in a read when a signal comes."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    try:
        loop.add_reader(file, wake, readable)
    except (PermissionError, NotImplementedError):
        # A file, which no selector takes, and which has nobody wait; or a system where no selector takes any.
        return
    try:
        await readable
    finally:
        # Not left there meanwhile: it would call at each turn of the loop until somebody reads.
        loop.remove_reader(file)
