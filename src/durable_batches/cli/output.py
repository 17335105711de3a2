"""What commands print: lines and tables for people, JSON for programs, and nothing that drives a terminal."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, TypeVar

from rich.cells import cell_len
from rich.text import Text

from durable_batches.cli.exits import CommandError, Exit, ReaderLeftError
from durable_batches.errors import shortened, with_type
from durable_batches.lifecycle.amounts import text_of
from durable_batches.printable import printable
from durable_batches.terminal.bars import stdout_console
from durable_batches.terminal.lines import is_terminal

__all__ = [
    "RawJson",
    "error_text",
    "first",
    "flush",
    "json_of",
    "leave_stdout",
    "moment",
    "print_fields",
    "print_json",
    "print_table",
    "write",
]

T = TypeVar("T")

_ROWS_AT_ONCE: Final = 200
_WIDEST_COLUMN: Final = 48
"""Cells; longer values stand out, and do not widen the column for all others."""

_NOT_ASCII: Final = re.compile(r"[^ -~]")

_STYLES: Final = {
    "completed": "green",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "waiting": "yellow",
    "pending": "dim",
}


# ---- writing -------------------------------------------------------------------------------------------------------


def write(line: str) -> None:
    """Write a line on stdout, as it is.

    Raises:
        ReaderLeftError: Nobody reads it any more.
        CommandError: It cannot be written: a full disk, for example.
    """
    if sys.stdout is None:
        raise ReaderLeftError
    try:
        sys.stdout.write(f"{line}\n")
    except OSError as error:
        raise _failed(error) from error


def flush() -> None:
    """Write out what is buffered. See `write`."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        raise _failed(error) from error


def leave_stdout() -> None:
    """Have the interpreter, which flushes stdout when it ends, not fail then."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _failed(error: OSError) -> Exception:
    if isinstance(error, BrokenPipeError):
        return ReaderLeftError()
    leave_stdout()
    return CommandError(f"the output cannot be written: {error.strerror}", Exit.ERROR)


# ---- JSON ----------------------------------------------------------------------------------------------------------


class RawJson(str):
    """A value that is JSON already."""

    __slots__ = ()


def print_json(value: Mapping[str, object]) -> None:
    """Print an object as JSON, on a line of its own."""
    write(json_of(value))


def json_of(value: Mapping[str, object], *, ascii_only: bool | None = None) -> str:
    """Encode an object on one line. Characters that are not printable are escaped; so is all but ASCII if need be.

    Args:
        value: The object; values that are `RawJson` are taken over as they are.
        ascii_only: Whether to escape all but ASCII; None: if the encoding of stdout is not Unicode.
    """
    if ascii_only is None:
        ascii_only = not (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    encoded = ",".join(
        f"{_encoded(name)}:{field if isinstance(field, RawJson) else _encoded(field)}" for name, field in value.items()
    )
    text = f"{{{encoded}}}"
    if ascii_only:
        return _NOT_ASCII.sub(lambda found: _escape(found[0]), text)
    if text.isprintable():
        return text
    return _NOT_ASCII.sub(lambda found: found[0] if found[0].isprintable() else _escape(found[0]), text)


def _encoded(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain)


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _plain(value: object) -> object:
    """Return what JSON has for a value of the library."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    if isinstance(value, Mapping):
        # Its own type is not known; JSON refuses keys that are no strings.
        return dict(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(value, Decimal):
        # A number of JSON is a float for most who read it, and not exact.
        return text_of(value)
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    raise TypeError(f"{type(value).__name__} is not JSON")


# ---- rows ----------------------------------------------------------------------------------------------------------


async def first(items: AsyncIterable[T], limit: int) -> AsyncGenerator[T, None]:
    """Yield the first of these; 0: all. The rest is not asked for."""
    number = 0
    async for item in items:
        yield item
        number += 1
        if number == limit:
            return


# ---- text ----------------------------------------------------------------------------------------------------------


def moment(at: datetime, *, exact: bool = False) -> str:
    """Return a moment as text, in UTC; exact: with milliseconds."""
    at = at.astimezone(UTC).replace(tzinfo=None)
    return f"{at.isoformat(sep=' ', timespec='milliseconds' if exact else 'seconds')}Z"


def error_text(error_type: str, message: str) -> str:
    """Return an error on one line, not too long, with the name of its class unless the message says it."""
    return with_type(error_type, shortened(message))


def print_fields(rows: Sequence[tuple[str, str]]) -> None:
    """Print names with their values, one a line."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        _print([(f"{name:{width}}", "bold"), ("  ", ""), (printable(value), _STYLES.get(value, ""))])


async def print_table(columns: Sequence[str], rows: AsyncIterable[Sequence[str]]) -> int:
    """Print rows in columns, some at a time; return their number. Where there is none, nothing is printed."""
    buffered: list[Sequence[str]] = []
    widths: list[int] | None = None
    count = 0
    async for row in rows:
        buffered.append([printable(cell) for cell in row])
        count += 1
        if len(buffered) == _ROWS_AT_ONCE:
            widths = _print_rows(columns, buffered, widths)
            buffered = []
    if buffered:
        _print_rows(columns, buffered, widths)
    return count


def _print_rows(columns: Sequence[str], rows: Sequence[Sequence[str]], widths: list[int] | None) -> list[int]:
    if widths is None:
        widths = [min(max(map(cell_len, column)), _WIDEST_COLUMN) for column in zip(columns, *rows, strict=True)]
        _print_row([(name, "bold") for name in columns], widths)
    for row in rows:
        _print_row([(cell, _STYLES.get(cell, "")) for cell in row], widths)
    flush()
    return widths


def _print_row(cells: Sequence[tuple[str, str]], widths: Sequence[int]) -> None:
    last = max((number for number, (text, _) in enumerate(cells) if text), default=0)
    padded = [
        (text if number == last else text + " " * (max(width - cell_len(text), 0) + 2), style)
        for number, ((text, style), width) in enumerate(zip(cells, widths, strict=True))
    ]
    _print(list(itertools.islice(padded, last + 1)))


def _print(parts: Sequence[tuple[str, str]]) -> None:
    """Print parts of a line, with their styles on a terminal."""
    if is_terminal(sys.stdout):
        flush()
        stdout_console().print(Text.assemble(*parts), soft_wrap=True, highlight=False)
    else:
        write("".join(text for text, _ in parts))
