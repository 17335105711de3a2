"""The commands that change batches: `cancel`, `pause`, `resume`, `update`."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Final, NamedTuple

import typer

from durable_batches.cli.batches import Filters, config_fields, filtered
from durable_batches.cli.exits import CommandError, Exit
from durable_batches.cli.output import flush, print_json, write
from durable_batches.errors import BatchEndedError
from durable_batches.lifecycle.config import ConfigChanges
from durable_batches.lifecycle.events import PauseScope
from durable_batches.printable import printable
from durable_batches.reading.client import BatchClient
from durable_batches.terminal.lines import counts_text, is_terminal, print_line

__all__ = ["Choice", "Verb", "cancel_batch", "cancel_batches", "pause_batches", "resume_batches", "update_batches"]

_SHOWN: Final = 20
"""Batches that are named before it is asked whether to do it."""


class Verb(NamedTuple):
    """What a command does with batches."""

    infinitive: str
    participle: str


class Choice:
    """The unfinished batches that a filter names, to be confirmed.

    Args:
        filters: The filter.
        verb: What is to be done with them.
    """

    def __init__(self, filters: Filters, verb: Verb) -> None:
        self._filters = filters
        self._verb = verb
        self.batch_ids: Sequence[str] = ()

    async def look(self, client: BatchClient) -> int:
        """Find the batches, and print the first of them on stderr."""
        found: list[str] = []
        async with aclosing(filtered(client, self._filters)) as batches:
            async for batch in batches:
                found.append(batch.batch_id)
                if len(found) <= _SHOWN:
                    print_line(f"  {batch.batch_id}  {batch.workflow}, {batch.state.tag}: {counts_text(batch.counts)}")
        if len(found) > _SHOWN:
            print_line(f"  and {len(found) - _SHOWN} more")
        self.batch_ids = found
        if not found:
            print_line("there are no such batches that have not ended")
        return Exit.DONE if found else Exit.NO_BATCH

    def confirm(self) -> None:
        """Ask on the terminal whether to do it.

        Raises:
            CommandError: The answer is no, or there is nobody to ask.
        """
        number = len(self.batch_ids)
        batches = "this batch" if number == 1 else f"these {number} batches"
        do = self._verb.infinitive
        if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
            raise CommandError(f"say --yes to {do} {batches}: there is no terminal to ask on", Exit.USAGE)
        if not typer.confirm(f"{do.capitalize()} {batches}?", err=True):
            raise CommandError(f"nothing was {self._verb.participle}", Exit.ERROR)


async def cancel_batches(client: BatchClient, batch_ids: Sequence[str], *, reason: str, as_json: bool) -> int:
    """Cancel these batches, one after the other; return `ENDED_BEFORE` where none was cancelled."""
    codes: set[int] = set()
    for batch_id in dict.fromkeys(batch_ids):
        codes.add(await cancel_batch(client, batch_id, reason=reason, as_json=as_json))
    return Exit.DONE if Exit.DONE in codes else Exit.ENDED_BEFORE


async def cancel_batch(client: BatchClient, batch_id: str, *, reason: str, as_json: bool) -> int:
    """Cancel a batch, and print what had finished and what was running."""
    running = (await client.snapshot(batch_id)).counts.running
    cancelled = await client.cancel(batch_id, reason=reason)
    batch = await client.snapshot(batch_id)
    counts = batch.counts
    if as_json:
        print_json({"batch_id": batch.batch_id, "cancelled": cancelled, "state": batch.state.tag, "counts": counts})
    elif cancelled:
        finished = counts.succeeded + counts.failed
        write(
            f"cancelled {printable(batch_id)}: {finished} of {counts.total} documents had finished"
            + (f", {running} were running" if running else "")
        )
    else:
        write(f"{printable(batch_id)} had ended before: {batch.state.tag}")
    # Said before the next one is cancelled.
    flush()
    return Exit.DONE if cancelled else Exit.ENDED_BEFORE


async def pause_batches(
    client: BatchClient, batch_ids: Sequence[str], *, note: str, running: PauseScope, as_json: bool
) -> int:
    """Pause these batches, one after the other; return `ENDED_BEFORE` where all had ended."""

    async def pause(batch_id: str) -> tuple[str, Mapping[str, object]]:
        paused = await client.pause(batch_id, note=note, running=running)
        number = (await client.snapshot(batch_id)).counts.running
        if not paused:
            return f"{printable(batch_id)} was paused before", {"paused": paused}
        ends = "finish" if running == "documents" else "finish their calls"
        return f"paused {printable(batch_id)}" + (f": {number} running, which {ends}" if number else ""), {
            "paused": paused
        }

    return await _each(client, batch_ids, pause, as_json=as_json)


async def resume_batches(client: BatchClient, batch_ids: Sequence[str], *, as_json: bool) -> int:
    """Resume these batches, one after the other; return `ENDED_BEFORE` where all had ended."""

    async def resume(batch_id: str) -> tuple[str, Mapping[str, object]]:
        left = await client.resume(batch_id)
        still = "; ".join(f"still paused ({pause.reason}): {printable(pause.note)}" for pause in left)
        return f"resumed {printable(batch_id)}" + (f"; {still}" if still else ""), {"pauses": left}

    return await _each(client, batch_ids, resume, as_json=as_json)


async def update_batches(
    client: BatchClient, batch_ids: Sequence[str], changes: ConfigChanges, *, as_json: bool
) -> int:
    """Change options of these batches, one after the other; return `ENDED_BEFORE` where all had ended."""

    async def update(batch_id: str) -> tuple[str, Mapping[str, object]]:
        config = await client.update(batch_id, **changes)
        now = ", ".join(f"{name} {value}" for name, value in config_fields(config))
        return f"updated {printable(batch_id)}: {now}", {"config": config.model_dump(mode="json")}

    return await _each(client, batch_ids, update, as_json=as_json)


async def _each(
    client: BatchClient,
    batch_ids: Sequence[str],
    do: Callable[[str], Awaitable[tuple[str, Mapping[str, object]]]],
    *,
    as_json: bool,
) -> int:
    """Do something with each batch, and print what came of it, as a line or as an object's fields."""
    codes: set[int] = set()
    for batch_id in dict.fromkeys(batch_ids):
        fields: Mapping[str, object] = {}
        code = Exit.DONE
        try:
            line, fields = await do(batch_id)
        except BatchEndedError as error:
            code, line = Exit.ENDED_BEFORE, f"{printable(batch_id)} had ended before: {error.state}"
        codes.add(code)
        if as_json:
            batch = await client.snapshot(batch_id)
            print_json({"batch_id": batch.batch_id, **fields, "state": batch.state.tag, "counts": batch.counts})
        else:
            write(line)
        # Said before the next one.
        flush()
    return Exit.DONE if Exit.DONE in codes else Exit.ENDED_BEFORE
