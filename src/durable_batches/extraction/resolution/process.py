"""A process of its own for the steps: what compares a million pairs neither holds up the event loop nor its memory."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from durable_batches import DurableBatchesError, NonRetryableError
from durable_batches.executors import process_pool
from durable_batches.extraction.resolution.engine import Engine
from durable_batches.extraction.resolution.keys import PlainRecord
from durable_batches.extraction.resolution.links import Decision
from durable_batches.extraction.resolution.settings import Settings

__all__ = ["Job", "ResolutionProcess", "StepError"]

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """What a process needs to know of a resolution.

    Attributes:
        folder: Where its pages are.
        settings: What it is computed with.
        version: The version of the steps.
        decisions: What people have decided.
    """

    folder: Path
    settings: Settings
    version: str
    decisions: tuple[Decision, ...] = ()


class StepError(RuntimeError):
    """A step has failed in its process: the error of a library, as text."""


class ResolutionProcess:
    """Runs the steps of one resolution, one at a time, in a process that ends with this one.

    Args:
        job: The resolution.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._pool: ProcessPoolExecutor | None = None

    async def page(self, step: str, number: int) -> bytes:
        """Compute a page.

        Raises:
            NonRetryableError: The records cannot be resolved.
            StepError: The step has failed, or its process was killed.
        """
        return await self._run(step, number, None)

    async def records(self, number: int, records: Sequence[PlainRecord]) -> bytes:
        """Compute a page of records.

        Raises:
            StepError: The step has failed, or its process was killed.
        """
        return await self._run("records", number, records)

    async def close(self) -> None:
        """End the process, when the step that it runs has ended."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await asyncio.to_thread(pool.shutdown, wait=True, cancel_futures=True)

    async def _run(self, step: str, number: int, records: Sequence[PlainRecord] | None) -> bytes:
        if self._pool is None:
            self._pool = process_pool(1)()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, run_step, self.job, step, number, records)
        except BrokenProcessPool as error:
            # Another attempt gets another process, which finds all earlier pages in the folder.
            self._pool = None
            raise StepError(f"the process that computed page {number} of {step} was killed") from error


_engine: tuple[Job, Engine] | None = None
"""In the process: what it works on."""


def run_step(job: Job, step: str, number: int, records: Sequence[PlainRecord] | None) -> bytes:
    """Compute a page, in the process.

    Raises:
        NonRetryableError: The records cannot be resolved.
        StepError: The step has failed.
    """
    global _engine
    try:
        if _engine is None or _engine[0] != job:
            close_engine()
            _engine = job, Engine(job.folder, job.settings, job.version, job.decisions)
        engine = _engine[1]
        return engine.page(step, number) if records is None else engine.records(number, records)
    except (DurableBatchesError, NonRetryableError):
        raise
    except Exception as error:  # noqa: BLE001  (sent as another one)
        # Errors of databases cannot always be sent. The engine may be in any state, and is made anew.
        close_engine()
        said = "".join(traceback.format_exception(error))
        raise StepError(f"page {number} of {step}: {type(error).__name__}: {error}\n{said}") from None


def close_engine() -> None:
    """Close the database of what the process works on."""
    global _engine
    if _engine is not None:
        engine, _engine = _engine[1], None
        engine.close()
