"""Nothing of others drives a terminal: what is printed has escapes for it."""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tests.extraction.test_cli import HALF

from durable_batches import BatchSnapshot, Pause, Stage
from durable_batches.printable import printable, printable_lines
from durable_batches.terminal.bars import follow
from durable_batches.terminal.lines import numbers_of, print_line, title_of

ODD = "\x1b]0;title\x07 \x9b31m \x7f\u202e [red]"


@given(st.text())
def test_what_is_printable_is_left_and_the_rest_is_escaped(text: str) -> None:
    assert printable(text).isprintable()
    assert all(line.isprintable() for line in printable_lines(text).split("\n"))
    if text.isprintable():
        assert printable(text) == printable_lines(text) == text
    else:
        assert printable(text) != text


def test_escapes_tell_what_was_there() -> None:
    assert printable(ODD) == r"\x1b]0;title\x07 \x9b31m \x7f\u202e [red]"
    assert printable("ä中 🙂") == "ä中 🙂"
    assert printable_lines("a\n\tb") == "a\n\\tb"
    assert title_of(f"a_b{ODD}").isprintable()


def test_lines_on_stderr_are_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    print_line(f"batch {ODD}\n  of two lines")
    assert capsys.readouterr().err == f"durable-batches: batch {printable(ODD)}\n  of two lines\n"


async def test_a_stage_is_no_markup() -> None:
    stage = Stage(tag="[red]failed[/red]", done=0, total=1)

    async def snapshots() -> AsyncGenerator[BatchSnapshot[Stage], None]:
        yield replace(cast("BatchSnapshot[Stage]", HALF), state=stage)

    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    await follow(snapshots(), console, resolving=None)
    assert isinstance(console.file, io.StringIO)
    assert "[red]failed[/red]" in console.file.getvalue()


def test_numbers_say_why_a_batch_is_paused_and_until_when() -> None:
    snapshot = cast("BatchSnapshot[Stage]", HALF)
    assert "paused" not in numbers_of(snapshot)
    since = datetime(2031, 5, 1, 12, tzinfo=UTC)
    until = since + timedelta(seconds=30)
    pause = Pause(reason="quota", since=since, until=until, note="no credit")
    assert f"paused (quota, until {until.astimezone():%H:%M:%S})" in numbers_of(
        replace(snapshot, paused=True, pauses=[pause])
    )
    assert "  paused" in numbers_of(replace(snapshot, paused=True))
