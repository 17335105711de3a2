"""The command `events`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import fields
from datetime import datetime

from durable_batches.cli.as_json import event_json
from durable_batches.cli.exits import Exit
from durable_batches.cli.output import first, flush, json_of, moment, print_json, write
from durable_batches.lifecycle.events import BatchEvent
from durable_batches.lifecycle.states import Counts
from durable_batches.printable import printable
from durable_batches.reading.client import BatchClient
from durable_batches.terminal.lines import counts_text, print_line

__all__ = ["show_events"]


async def show_events(
    client: BatchClient, batch_id: str, *, after: int, follow: bool, limit: int, as_json: bool
) -> int:
    """Print the events of a batch after one; follow: also those to come, up to the end of its run."""
    found = client.progress(batch_id, after=after) if follow else client.events(batch_id, after=after)
    number = 0
    async with aclosing(found) as events:
        async for event in first(events, limit):
            number += 1
            if as_json:
                print_json(event_json(event))
            else:
                write(_event_line(event))
            if follow:
                flush()
    if not number:
        print_line(f"the last event of the batch has the number {(await client.snapshot(batch_id)).seq}")
    return Exit.DONE


def _event_line(event: BatchEvent) -> str:
    # A field that was added later has a default, which says nothing.
    parts = [
        f"{field.name}={_value_text(value)}"
        for field in fields(event)
        if field.name not in ("batch_id", "seq", "at", "tag") and (value := getattr(event, field.name)) != field.default
    ]
    return "  ".join([f"{event.seq:>6}", moment(event.at, exact=True), f"{event.tag:20}", " ".join(parts)]).rstrip()


def _value_text(value: object) -> str:
    match value:
        case str():
            # As JSON has it, where it would not be told from what follows.
            plain = value.isprintable() and value and not any(character in value for character in ' "=')
            return value if plain else printable(json.dumps(value, ensure_ascii=False))
        case datetime():
            return moment(value)
        case float():
            return f"{value:.1f}"
        case Counts():
            return json.dumps(counts_text(value))
        case Mapping():
            return json_of(value)  # pyright: ignore[reportUnknownArgumentType]
        case None:
            return "none"
        case list() | tuple():
            return printable(json.dumps(value, ensure_ascii=False))
        case _:
            return str(value)
