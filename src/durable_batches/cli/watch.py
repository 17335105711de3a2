"""The command `watch`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import Final, TypeAlias

from durable_batches.cli.as_json import batch_json
from durable_batches.cli.batches import Filters, filtered
from durable_batches.cli.exits import Exit
from durable_batches.cli.output import flush, print_json, write
from durable_batches.lifecycle.progress import BatchSnapshot
from durable_batches.lifecycle.states import BatchId, Cancelled, Completed, Failed, Stage
from durable_batches.printable import printable
from durable_batches.reading.client import BatchClient
from durable_batches.terminal.bars import SeveralBars, follow, stdout_console
from durable_batches.terminal.lines import follow_in_lines, is_terminal, print_line

__all__ = ["unfinished_batches", "watch_batch", "watch_batches"]

Batch: TypeAlias = BatchSnapshot[Stage]

MOST_WATCHED: Final = 100
"""Batches at most that are followed without being named."""

_WORST_FIRST: Final = (Exit.ERROR, Exit.BATCH_FAILED, Exit.BATCH_CANCELLED, Exit.DOCUMENTS_FAILED, Exit.DONE)


async def watch_batch(client: BatchClient, batch_id: str, *, interval: timedelta, as_json: bool) -> int:
    """Show the progress of a batch up to the end of its run; return the exit code for how it ended."""
    latest: Batch | None = None
    async with aclosing(client.watch(batch_id, interval=interval)) as batches:
        if as_json:
            latest = await _follow_as_json(batches)
        elif is_terminal(sys.stdout):
            latest = await follow(batches, stdout_console(), resolving=None, heading=True)
        else:
            latest = await follow_in_lines(batches, _write_line)
    return _ended(latest, silent=as_json)


# ---- several ---------------------------------------------------------------------------------------------------------


async def unfinished_batches(client: BatchClient, filters: Filters) -> Sequence[BatchId]:
    """Find the newest batches that have not ended; where there are too many, say so."""
    found: list[BatchId] = []
    async with aclosing(filtered(client, filters)) as batches:
        async for batch in batches:
            if len(found) == MOST_WATCHED:
                print_line(f"there are more than these {MOST_WATCHED}: name those to watch, or choose by --label")
                break
            found.append(batch.batch_id)
    if not found:
        print_line("there are no such batches that have not ended")
    return found


async def watch_batches(client: BatchClient, batch_ids: Sequence[str], *, interval: timedelta, as_json: bool) -> int:
    """Show the progress of several batches until all of them have ended; return the exit code of the worst end."""
    if not batch_ids:
        return Exit.DONE
    if as_json:
        return await _all_ended(client, batch_ids, interval, lambda _, batches: _follow_as_json(batches), silent=True)
    if is_terminal(sys.stdout):
        with SeveralBars(stdout_console(), batch_ids) as bars:
            return await _all_ended(client, batch_ids, interval, lambda _, batches: bars.follow(batches), silent=False)
    width = max(len(printable(batch_id)) for batch_id in batch_ids)

    def in_lines(batch_id: str, batches: AsyncIterable[Batch]) -> Awaitable[Batch | None]:
        return follow_in_lines(batches, lambda line: _write_line(f"{printable(batch_id):{width}}  {line}"))

    return await _all_ended(client, batch_ids, interval, in_lines, silent=False)


async def _all_ended(
    client: BatchClient,
    batch_ids: Sequence[str],
    interval: timedelta,
    show: Callable[[str, AsyncIterable[Batch]], Awaitable[Batch | None]],
    *,
    silent: bool,
) -> Exit:
    async def one(batch_id: str) -> Exit:
        async with aclosing(client.watch(batch_id, interval=interval)) as batches:
            return _ended(await show(batch_id, batches), silent=silent, named=True)

    tasks = [asyncio.create_task(one(batch_id)) for batch_id in dict.fromkeys(batch_ids)]
    try:
        codes = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return next(code for code in _WORST_FIRST if code in codes)


async def _follow_as_json(batches: AsyncIterable[Batch]) -> Batch | None:
    latest: Batch | None = None
    async for latest in batches:
        print_json(batch_json(latest))
        flush()
    return latest


def _write_line(line: str) -> None:
    write(line)
    flush()


def _ended(batch: Batch | None, *, silent: bool, named: bool = False) -> Exit:
    """Return the exit code of a batch's end, and print why, where that is known."""
    assert batch is not None
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
        name = f"{printable(batch.batch_id)} " if named else ""
        _write_line(f"{name}{batch.state.tag}: {printable(why)}")
    return code
