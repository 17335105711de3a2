"""Reads and commands batches of any workflow, without its code: documents as they are stored, states by their tags."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Literal

from durable_batches.clock import Clock
from durable_batches.errors import ConfigurationError
from durable_batches.lifecycle.commands import Command
from durable_batches.lifecycle.events import BatchEvent
from durable_batches.lifecycle.progress import BatchSnapshot, RecordedStages
from durable_batches.lifecycle.records import RESOLVER_POSITION, Committed, ExecutionStatus
from durable_batches.lifecycle.states import BatchId, Stage
from durable_batches.options import check_flag, check_integer
from durable_batches.reading.access import BatchAccess, check_status, check_text
from durable_batches.reading.documents import RawDocument, raw_document
from durable_batches.reading.notes import WorkerNotes
from durable_batches.reading.reader import BatchReader
from durable_batches.reading.results import PAGE

__all__ = ["RawAccess"]


class RawAccess(BatchAccess[Stage]):
    """Reads and commands the batches of any workflow: what `BatchClient` and a worker's own access have in common.

    Args:
        reader: Reads the batches.
        clock: The source of time.
        command: Gives a command to a batch; None: nothing is commanded.
    """

    def __init__(
        self,
        reader: BatchReader,
        clock: Clock,
        command: Callable[[BatchId, Command], Awaitable[Committed]] | None,
    ) -> None:
        super().__init__(reader, RecordedStages(), clock, command)

    @property
    def clock(self) -> Clock:
        """The source of time."""
        return self._clock

    def list_batches(
        self,
        *,
        workflow: str | None = None,
        states: Collection[str] = (),
        metadata: Mapping[str, str] | None = None,
        created_before: datetime | None = None,
        after: str | None = None,
    ) -> AsyncGenerator[BatchSnapshot[Stage], None]:
        """Yield batches, newest first, one page in memory at a time.

        Args:
            workflow: Only batches of the workflow with this name.
            states: Only batches in one of these states (tags).
            metadata: Only batches with all of these labels.
            created_before: Only batches created before this moment; an aware datetime.
            after: Only batches behind the one with this id; where that is gone, none.

        Raises:
            ConfigurationError: A text has a NUL or a lone surrogate, which no workflow, state or id has; labels may.
        """
        return self._snapshots(
            workflow=workflow, states=states, metadata=metadata, created_before=created_before, after=after
        )

    def documents(
        self,
        batch_id: str,
        *,
        status: Literal["pending", "running", "waiting", "succeeded", "failed", "cancelled"] | None = None,
        fingerprint: str | None = None,
        payloads: bool = True,
        after: int | None = None,
    ) -> AsyncGenerator[RawDocument, None]:
        """Yield the documents as they are stored, in submission order, one page in memory at a time.

        Args:
            batch_id: The batch.
            status: Only documents with this status.
            fingerprint: Only failed documents of this group of `errors`.
            payloads: Read the documents and their results, too.
            after: Only documents behind this position.

        Raises:
            BatchNotFoundError: There is no such batch.
            ConfigurationError: A fingerprint is given, and another status than "failed"; or one of them cannot be one.
        """
        return self.documents_in_pages(
            batch_id, status=status, fingerprint=fingerprint, payloads=payloads, after=after, size=PAGE
        )

    async def documents_in_pages(
        self,
        batch_id: str,
        *,
        status: Literal["pending", "running", "waiting", "succeeded", "failed", "cancelled"] | None,
        fingerprint: str | None,
        payloads: bool,
        after: int | None,
        size: int,
    ) -> AsyncGenerator[RawDocument, None]:
        """Yield `documents`, read in pages of `size` documents: their payloads may be large."""
        check_status(status)
        check_text("fingerprint", fingerprint, optional=True)
        check_flag("payloads", payloads)
        if fingerprint is not None and status not in (None, "failed"):
            raise ConfigurationError('only failed documents have a fingerprint; leave out status=, or give "failed"')
        check_integer("after", after, optional=True)
        record = await self._reader.awaited_record(batch_id)
        # No store is asked for a position that its numbers do not reach.
        behind = RESOLVER_POSITION if after is None else min(max(after, RESOLVER_POSITION), record.counts.total)
        statuses: Collection[ExecutionStatus] = () if status is None else (status,)
        notes, fresh = WorkerNotes(), 0
        found = (
            self._reader.documents(record, statuses, inputs=payloads, after=behind, size=size)
            if fingerprint is None
            else self._reader.documents_of_group(record, fingerprint, inputs=payloads, after=behind, size=size)
        )
        async with aclosing(found) as documents:
            async for document in documents:
                if document.execution.owner is not None and fresh <= 0:
                    notes, fresh = await self._reader.notes(batch_id), PAGE
                fresh -= 1
                yield raw_document(record, document, payloads=payloads, notes=notes)

    def event_blocks(self, batch_id: str, after: int) -> AsyncGenerator[Sequence[BatchEvent], None]:
        """Yield the events of `progress` in blocks, as they come; all who are at one event get the same block."""
        return self._reader.events(batch_id, after)
