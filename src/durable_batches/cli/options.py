"""Options and arguments that several commands have."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Final

import typer

from durable_batches.clock import SystemClock
from durable_batches.lifecycle.policies import LONGEST_DELAY
from durable_batches.lifecycle.primitives import from_micros

__all__ = [
    "BatchArgument",
    "BatchesArgument",
    "JsonOption",
    "LabelOption",
    "PolicyOption",
    "Running",
    "SchemaOption",
    "Status",
    "Stdin",
    "StoreOption",
    "WorkflowOption",
    "YesOption",
    "duration_of",
    "given_of",
    "label_of",
    "moment_of",
    "seconds_of",
]


class Status(StrEnum):
    """A document's `ExecutionStatus`. Versions of typer that are allowed know no `Literal`."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Running(StrEnum):
    """A `PauseScope`."""

    CALLS = "calls"
    DOCUMENTS = "documents"


class Stdin(StrEnum):
    """A `StdinFormat`."""

    JSONL = "jsonl"
    LINES = "lines"
    TEXT = "text"


StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="The store: the path of a SQLite file, a DSN of Postgres (better given in the environment, where no list "
        "of processes shows it), or module:name of a store of your own.",
        envvar=["DURABLE_BATCHES_STORE", "DURABLE_BATCHES_DSN"],
        metavar="STORE",
    ),
]
SchemaOption = Annotated[
    str,
    typer.Option(
        "--schema", help="The schema of the tables, in Postgres.", envvar="DURABLE_BATCHES_SCHEMA", metavar="NAME"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
BatchArgument = Annotated[str, typer.Argument(metavar="BATCH", help="The id of the batch.", show_default=False)]

BatchesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[BATCH]...", help="The ids of batches.", show_default=False)
]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        metavar="POLICY",
        help="What a failed document means: continue (the default), continue:N (the batch fails after more than N "
        "failures), abort, retry, or retry:N (attempts of a document).",
    ),
]
WorkflowOption = Annotated[str | None, typer.Option(metavar="NAME", help="Only batches of this workflow.")]
LabelOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Only batches with this label; may be given several times."),
]

YesOption = Annotated[
    bool, typer.Option("--yes", "-y", help="Do not ask before batches that --workflow or --label choose.")
]

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_AGO: Final = re.compile(r"(\d{1,6})\s*([smhdw])")


def moment_of(text: str) -> datetime:
    """Parse a moment: `2h` (ago), a date or an ISO 8601 time; UTC, unless it says otherwise.

    Raises:
        typer.BadParameter: It is none.
    """
    ago = _AGO.fullmatch(text.strip())
    try:
        if ago is not None:
            return from_micros(SystemClock().now()) - timedelta(seconds=int(ago[1]) * _UNITS[ago[2]])
        at = datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is no moment; give 30m, 2h or 7d (ago), or 2031-01-31, or 2031-01-31T12:00",
            param_hint="--since",
        ) from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def duration_of(text: str, option: str) -> timedelta | None:
    """Parse a duration: `30s`, `5m`, `2h` or `7d`; None for `none`.

    Raises:
        typer.BadParameter: It is none.
    """
    given = text.strip()
    if given == "none":
        return None
    duration = _AGO.fullmatch(given)
    seconds = 0 if duration is None else int(duration[1]) * _UNITS[duration[2]]
    if not 0 < seconds <= LONGEST_DELAY.total_seconds():
        raise typer.BadParameter(
            f"{text!r} is no duration of a batch; give 30s, 5m, 2h, 7d, or none", param_hint=option
        )
    return timedelta(seconds=seconds)


def label_of(text: str) -> tuple[str, str]:
    """Split a label, `name=value`.

    Raises:
        typer.BadParameter: It is none.
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise typer.BadParameter(f"{text!r} is no label; give name=value", param_hint="--label")
    return name, value


def seconds_of(number: float) -> timedelta:
    """Make a duration of a number of seconds.

    Raises:
        typer.BadParameter: It is none.
    """
    try:
        return timedelta(seconds=number)
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{number:g} is no number of seconds", param_hint="--drain") from None


def given_of(context: typer.Context, *names: str) -> list[str]:
    """List which of these options stand on the command line itself, and not in the environment."""
    # Its class is click's, or typer's own copy of it.
    sources = {name: context.get_parameter_source(name) for name in names}
    return [
        f"--{name.replace('_', '-')}"
        for name, source in sources.items()
        if source is not None and source.name == "COMMANDLINE"
    ]
