"""One command's session with a store: opened, asked, closed; ended early by Ctrl-C, which is prompt."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import typer

from durable_batches.cli.exits import CommandError, ReaderLeftError
from durable_batches.cli.output import flush
from durable_batches.cli.target import store_at
from durable_batches.reading.client import BatchClient
from durable_batches.script.signals import StopSignals
from durable_batches.stores.protocol import Attachable, Store

__all__ = ["perform", "run_command"]

_CLOSING_SECONDS: Final = 1.0
"""How long an interrupted reader has to close the store."""

Work = Callable[[BatchClient], Awaitable[int]]


def run_command(target: str | None, schema: str, work: Work, *, reads: bool = True) -> None:
    """Run a command with a client of the store, and exit with its code; see `perform`.

    Raises:
        typer.Exit: Always, unless an error is raised.
    """
    raise typer.Exit(perform(target, schema, work, reads=reads))


def perform(target: str | None, schema: str, work: Work, *, reads: bool = True) -> int:
    """Run a command with a client of the store; return its exit code, or that of the signal that ended it.

    Args:
        target: The store; see `store_at`.
        schema: The schema of the tables, in Postgres.
        work: The command; returns the exit code.
        reads: Whether it only reads.
    """
    store = store_at(target, schema)
    with StopSignals() as signals:
        return asyncio.run(_run(store, work, signals, reads=reads))


async def _run(store: Store, work: Work, signals: StopSignals, *, reads: bool) -> int:
    task = asyncio.create_task(_work(store, work, reads=reads))
    received = asyncio.create_task(signals.received())
    again = asyncio.create_task(signals.received(2))
    try:
        await asyncio.wait([task, received], return_when=asyncio.FIRST_COMPLETED)
        task.cancel()
        # A command that is to be applied has its answer awaited, but for who asks a second time.
        patience = _CLOSING_SECONDS if reads else None
        await asyncio.wait([task, again], timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            _leave(signals.exit_code)
    finally:
        for each in (task, received, again):
            each.cancel()
        await asyncio.wait([task, received, again])
    return signals.exit_code if task.cancelled() else task.result()


def _leave(code: int) -> None:
    """End the process. What it had open only to read may be left open, where a network does not answer."""
    with suppress(CommandError, ReaderLeftError):
        flush()
    os._exit(code)


async def _work(store: Store, work: Work, *, reads: bool) -> int:
    # A store of one's own may have no attach(), and is then opened as workers open it.
    async with BatchClient(store, read_only=reads and isinstance(store, Attachable)) as client:
        code = await work(client)
        flush()
        return code
