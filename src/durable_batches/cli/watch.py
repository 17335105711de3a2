"""The command `watch`."""

from __future__ import annotations

import sys
from contextlib import aclosing
from datetime import timedelta

from durable_batches.cli.as_json import batch_json
from durable_batches.cli.exits import Exit
from durable_batches.cli.output import flush, print_json, write
from durable_batches.lifecycle.progress import BatchSnapshot
from durable_batches.lifecycle.states import Cancelled, Completed, Failed, Stage
from durable_batches.reading.client import BatchClient
from durable_batches.terminal.bars import follow, stdout_console
from durable_batches.terminal.lines import follow_in_lines, is_terminal
from durable_batches.terminal.text import printable

__all__ = ["watch_batch"]


async def watch_batch(client: BatchClient, batch_id: str, *, interval: timedelta, as_json: bool) -> int:
    """Show the progress of a batch up to the end of its run; return the exit code for how it ended."""
    latest: BatchSnapshot[Stage] | None = None
    async with aclosing(client.watch(batch_id, interval=interval)) as batches:
        if as_json:
            async for latest in batches:
                print_json(batch_json(latest))
                flush()
        elif is_terminal(sys.stdout):
            latest = await follow(batches, stdout_console(), resolving=None, heading=True)
        else:
            latest = await follow_in_lines(batches, _write_line)
    assert latest is not None
    return _ended(latest, silent=as_json)


def _write_line(line: str) -> None:
    write(line)
    flush()


def _ended(batch: BatchSnapshot[Stage], *, silent: bool) -> Exit:
    match batch.state:
        case Failed(error=why):
            code = Exit.BATCH_FAILED
        case Cancelled(reason=why):
            code = Exit.BATCH_CANCELLED
        case Completed():
            return Exit.DOCUMENTS_FAILED if batch.counts.failed else Exit.DONE
        case _:
            return Exit.ERROR
    if why and not silent:
        write(f"{batch.state.tag}: {printable(why)}")
    return code
