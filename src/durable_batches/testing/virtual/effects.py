"""A log of the effects of activities, outside the store, against which a history is checked after a crash.

Each mark is one line, written by one `write` to a file opened for appending, so the marks of several processes keep
their order, and a killed process loses at most the line that it was writing.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Final, Literal

from durable_batches.blocks import contextmanager
from durable_batches.clock import SystemClock
from durable_batches.options import check_instance, check_text
from durable_batches.runtime.context import current_activity

__all__ = ["Effect", "EffectsLog"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A mark: the body of an activity started, returned, or raised (or was cancelled)."""

    process: str
    """The process, by a name that is unique in the history."""
    batch_id: str
    document_id: str
    """Empty in a resolver's activity."""
    activity: str
    key: str
    """The call's idempotency key: the same for all of its attempts, in any process."""
    attempt: int
    """`current_activity().attempt`: counted from 1 in each run of the call."""
    run: str
    """The id of one execution of the body: the same in its two marks, and in no others."""
    phase: Literal["start", "end", "error"]
    at: float
    """When it did, in seconds on the boot clock, which all processes of the machine share."""


class EffectsLog:
    """Append to the log, and read it.

    Args:
        path: The file; created with the first mark.
        process: The name of this process; needed for writing only.
    """

    def __init__(self, path: str | PathLike[str], process: str = "") -> None:
        check_instance("path", path, (str, PathLike))
        check_text("process", process)
        self.path: Final = Path(path)
        self.process: Final = process
        self._clock = SystemClock()
        self._runs = itertools.count(1)
        self._file: int | None = None
        self._effects: list[Effect] = []
        self._offset = 0

    # ---- writing -------------------------------------------------------------------------------------------

    def activity(self, name: str) -> AbstractContextManager[str]:
        """Mark the start and the end of an activity's body, in a `with` block. Return the id of this run.

        If the body returns that id as part of its result, the checker knows which run was recorded.

        Raises:
            NotInActivityError: Not within an activity that an orchestrator runs.
        """
        # First of all: a process may be made to stand still between any two instructions.
        return self._marked(name, self._clock.boot())

    @contextmanager
    def _marked(self, name: str, began: float) -> Generator[str]:
        run = f"{self.process}.{next(self._runs)}"
        self._mark(name, run, "start", began)
        try:
            yield run
        except BaseException:
            self._mark(name, run, "error", self._clock.boot())
            raise
        self._mark(name, run, "end", self._clock.boot())

    def _mark(self, name: str, run: str, phase: Literal["start", "end", "error"], at: float) -> None:
        context = current_activity()
        fields = (
            self.process,
            context.batch_id,
            context.document_id,
            name,
            context.idempotency_key,
            context.attempt,
            run,
            phase,
            at,
        )
        self.write(json.dumps(fields, separators=(",", ":")))

    def write(self, line: str) -> None:
        """Append a line of any text; `read` skips lines that are not marks."""
        if self._file is None:
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        # The newline before it keeps it apart from a line that a killed process did not finish.
        os.write(self._file, f"\n{line}\n".encode())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    # ---- reading -------------------------------------------------------------------------------------------

    def read(self) -> Sequence[Effect]:
        """Read all marks so far, in their order."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return self._effects
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            effect = _parsed(line)
            if effect is not None:
                self._effects.append(effect)
        return self._effects


def _parsed(line: bytes) -> Effect | None:
    try:
        process, batch_id, document_id, activity, key, attempt, run, phase, at = json.loads(line)
    except (ValueError, TypeError):
        return None
    return Effect(
        process=process,
        batch_id=batch_id,
        document_id=document_id,
        activity=activity,
        key=key,
        attempt=attempt,
        run=run,
        phase=phase,
        at=at,
    )
