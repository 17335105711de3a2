"""The commands `list` and `show`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import typer

from durable_batches.cli.as_json import batch_json
from durable_batches.cli.exits import Exit
from durable_batches.cli.output import first, flush, moment, print_fields, print_json, print_table, write
from durable_batches.cli.policies import policy_text
from durable_batches.lifecycle.config import BatchConfig
from durable_batches.lifecycle.progress import BatchSnapshot, LongCalls, Pause
from durable_batches.lifecycle.spending import NOTHING_SPENT
from durable_batches.lifecycle.states import ENDED_TAGS, RESERVED_TAGS, Cancelled, Counts, Failed, Stage
from durable_batches.reading.client import BatchClient
from durable_batches.terminal.lines import counts_text, duration_text, print_line

__all__ = ["Filters", "filtered", "list_batches", "show_batches"]

Batch = BatchSnapshot[Stage]

_SKEW: Final = timedelta(days=1)
"""Batches are listed in the order in which they came; the clocks that date them differ by less than this."""

_SEEN_FOR_STAGES: Final = 1_000
"""Batches that are looked through for the stages that there are."""


# ---- list ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which batches to list. A field with its default value does not filter."""

    workflow: str | None = None
    states: Collection[str] = ()
    unfinished: bool = False
    labels: Mapping[str, str]
    since: datetime | None = None


async def list_batches(client: BatchClient, filters: Filters, *, limit: int, as_json: bool) -> int:
    """Print the batches, newest first."""
    for state in filters.states:
        await _check_state(client, state, filters.workflow)
    async with aclosing(filtered(client, filters)) as batches:
        shown = first(batches, limit)
        if as_json:
            async for batch in shown:
                print_json(batch_json(batch))
        else:
            columns = ("BATCH", "WORKFLOW", "STATE", "DONE", "FAILED", "CREATED")
            if not await print_table(columns, (_row(batch) async for batch in shown)):
                print_line("there are no such batches")
        flush()
        if limit and await anext(batches, None) is not None:
            print_line(f"there are more than these {limit}: --limit 0 lists all")
    return Exit.DONE


async def filtered(client: BatchClient, filters: Filters) -> AsyncGenerator[Batch, None]:
    """Yield the batches that a filter names, newest first."""
    found = client.list_batches(workflow=filters.workflow, states=filters.states, metadata=filters.labels)
    since = filters.since
    async with aclosing(found) as batches:
        async for batch in batches:
            if since is not None and batch.created_at < since - _SKEW:
                return
            if since is not None and batch.created_at < since:
                continue
            if filters.unfinished and batch.state.tag in ENDED_TAGS:
                continue
            yield batch


async def _check_state(client: BatchClient, state: str, workflow: str | None) -> None:
    """Refuse a state that no batch can be in, as far as the batches of the store tell.

    Raises:
        typer.BadParameter: It is misspelt.
    """
    if state in RESERVED_TAGS:
        return
    stages: dict[str, None] = {}
    seen = 0
    async with aclosing(client.list_batches(workflow=workflow)) as batches:
        async for batch in batches:
            stages.update((stage.stage, None) for stage in batch.stages)
            seen += 1
            if state in stages or seen == _SEEN_FOR_STAGES:
                return
    states = ", ".join(["pending", *stages, "resolving", "completed", "failed", "cancelled"])
    raise typer.BadParameter(
        f"no batch can be in the state {state!r}; the states here are {states}", param_hint="--state"
    )


def _row(batch: Batch) -> Sequence[str]:
    counts = batch.counts
    return (
        batch.batch_id,
        batch.workflow,
        _state_text(batch),
        f"{counts.ended}/{counts.total}",
        str(counts.failed),
        moment(batch.created_at),
    )


def _state_text(batch: Batch) -> str:
    return f"{batch.state.tag} (paused)" if batch.paused else batch.state.tag


def _pause_text(pause: Pause) -> str:
    until = "" if pause.until is None else f", until {moment(pause.until)}"
    return f"{pause.reason} since {moment(pause.since)}{until}: {pause.note}"


# ---- show ----------------------------------------------------------------------------------------------------------


async def show_batches(client: BatchClient, batch_ids: Sequence[str], *, as_json: bool) -> int:
    """Print all about each of these batches."""
    for number, batch_id in enumerate(batch_ids):
        batch = await client.snapshot(batch_id)
        recorded = await client.count_checkpoints(batch_id)
        config = await client.config(batch_id)
        if as_json:
            print_json({**batch_json(batch), "config": config.model_dump(mode="json"), "checkpoints": recorded})
            continue
        if number:
            write("")
        print_fields([row for row in _fields(batch, config, recorded) if row[1]])
    return Exit.DONE


def _fields(batch: Batch, config: BatchConfig, recorded: int) -> Sequence[tuple[str, str]]:
    state, counts = batch.state, batch.counts
    rate = batch.documents_per_second
    return [
        ("batch", batch.batch_id),
        ("workflow", f"{batch.workflow}, version {batch.version}"),
        ("state", _state_text(batch)),
        *(("pause", _pause_text(pause)) for pause in batch.pauses),
        ("error", state.error if isinstance(state, Failed) else ""),
        ("reason", state.reason if isinstance(state, Cancelled) else ""),
        ("progress", f"{batch.percentage:.0f} %"),
        ("documents", _documents_text(counts)),
        *(
            (f"  {stage.stage}", f"{stage.done}/{stage.total}{_inside(stage.current - stage.done)}")
            for stage in batch.stages
        ),
        ("rate", f"{rate:.1f} documents/s" if rate else ""),
        ("expected", moment(batch.eta) if batch.eta and state.tag not in ENDED_TAGS else ""),
        ("activities", f"{recorded} recorded"),
        ("spent", str(batch.spent) if batch.spent != NOTHING_SPENT else ""),
        *(("no timeout", _long_text(calls)) for calls in batch.long_calls),
        *config_fields(config),
        ("labels", ", ".join(f"{name}={value}" for name, value in batch.metadata.items())),
        ("run", str(batch.run) if batch.run > 1 else ""),
        ("created", moment(batch.created_at)),
        ("started", moment(batch.started_at) if batch.started_at else "not yet"),
        ("ended", _ended_text(batch)),
        ("last event", str(batch.seq)),
    ]


def config_fields(config: BatchConfig) -> Sequence[tuple[str, str]]:
    """Return the names and values of the options that `update` can change; those that are not set are left out."""
    durations = [("timeout", config.document_timeout), ("deadline", config.deadline)]
    return [
        ("concurrency", str(config.concurrency)),
        ("policy", policy_text(config.failure_policy)),
        *((name, duration_text(value.total_seconds())) for name, value in durations if value is not None),
        *([] if config.budget is None else [("budget", f"{config.budget}, then {config.budget.then}")]),
    ]


def _documents_text(counts: Counts) -> str:
    parts = counts_text(counts)
    return f"{counts.total}: {parts}" if parts else str(counts.total)


def _inside(number: int) -> str:
    return f", {number} in it" if number > 0 else ""


def _long_text(calls: LongCalls) -> str:
    one = "call" if calls.calls == 1 else "calls"
    return f"{calls.activity}, {calls.calls} {one} since {moment(calls.since)}"


def _ended_text(batch: Batch) -> str:
    if batch.ended_at is None:
        return ""
    took = batch.ended_at - (batch.started_at or batch.created_at)
    return f"{moment(batch.ended_at)}, after {duration_text(took.total_seconds())}"
