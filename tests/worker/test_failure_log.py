"""What documents and providers bring into messages does not drive the terminal on which a log is read."""

from __future__ import annotations

import logging

import pytest
from tests.support import ONCE, STAGES, within

from durable_batches import BatchOrchestrator, Store, durable_activity, workflow
from durable_batches.worker.failure_log import escaped_traceback

ODD = "\x1b]0;title\x07 \x9b31m \x7f\u202e end"
ESCAPED = r"\x1b]0;title\x07 \x9b31m \x7f\u202e end"


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    # As a handler writes it, the traceback included.
    return [logging.Formatter().format(record) for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("where", ["activity", "workflow", "note", "cause"])
async def test_escape_sequences_are_harmless_in_the_log(
    where: str, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    @durable_activity(retry=ONCE)
    async def act() -> None:
        if where == "activity":
            raise ValueError(ODD)

    @workflow(STAGES)
    async def run(document: str) -> None:
        await act()
        error = ValueError(ODD if where == "workflow" else "plain")
        if where == "note":
            error.add_note(ODD)
        raise error from (KeyError("x", ODD) if where == "cause" else None)

    async with BatchOrchestrator(run, store=store) as batches:
        assert (await within(batches.run(["x"]))).counts.failed == 1
    (line,) = logged(caplog)
    assert "Traceback (most recent call last)" in line
    assert all(part.isprintable() for part in line.split("\n"))
    assert ESCAPED in line


def test_a_plain_traceback_is_left_to_the_handler() -> None:
    assert escaped_traceback(ValueError("plain\nof two lines, ä中")) is None
    assert escaped_traceback(ValueError("a\tb")) is None
    assert escaped_traceback(ValueError("\ud800")) == "ValueError: \\ud800\n"
