"""What a client and an orchestrator have in common: reading and commanding batches, typed by their stages alone."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Generic, Unpack, get_args
from uuid import uuid4

from pydantic_core import to_json
from typing_extensions import TypeVar

from durable_batches.clock import Clock
from durable_batches.codec.codec import Codec, payload_of
from durable_batches.errors import BatchEndedError, ConfigurationError, ReadOnlyClientError
from durable_batches.lifecycle.amounts import Amount
from durable_batches.lifecycle.batch_core import decode_core, definition_of
from durable_batches.lifecycle.commands import Cancel, Command, PauseBatch, ResumeBatch, UpdateBatch
from durable_batches.lifecycle.config import BatchConfig, ConfigChanges, changes_of
from durable_batches.lifecycle.events import BatchEvent, PauseScope, decode_event
from durable_batches.lifecycle.primitives import problem_with_text, to_micros
from durable_batches.lifecycle.progress import BatchSnapshot, Pause, Stages, snapshot_of, state_of
from durable_batches.lifecycle.records import RESOLVER_POSITION, BatchRecord, Committed, ExecutionStatus
from durable_batches.lifecycle.spending import NOTHING_SPENT, Spending, amount_of, decode_spends, spending_of
from durable_batches.lifecycle.states import BatchId, BatchState, Stage
from durable_batches.options import (
    check_duration,
    check_instance,
    check_integer,
    check_labels,
    check_moment,
)
from durable_batches.reading.explain import explanation_of
from durable_batches.reading.failures import ErrorDigest, FailureGroups, counted_digest
from durable_batches.reading.reader import BatchReader
from durable_batches.reading.reasons import Explanation
from durable_batches.stores.protocol import BatchQuery

__all__ = ["BatchAccess", "check_status", "check_text"]

T = TypeVar("T")
S_co = TypeVar("S_co", bound=Stage, default=Stage, covariant=True)


def check_text(name: str, value: object, *, optional: bool = False) -> None:
    """Refuse a filter that not every database could be asked for, so that all answer alike."""
    problem = None if optional and value is None else problem_with_text(value)
    if problem is not None:
        raise ConfigurationError(f"{name} {problem}")


def check_status(status: object) -> None:
    """Refuse what is no status of a document."""
    statuses = get_args(ExecutionStatus)
    if status is not None and status not in statuses:
        raise ConfigurationError(f"status must be one of {', '.join(statuses)}, not {status!r}")


class BatchAccess(Generic[S_co]):
    """Reads and commands batches: what `BatchClient` and `BatchOrchestrator` have in common.

    Methods that follow a batch, or yield one page after another, wait while the store is away, and log it once; those
    that return at once raise `StoreUnavailableError`.

    Args:
        reader: Reads the batches.
        stages: Makes the states of their stages.
        clock: The source of time.
        command: Gives a command to a batch; None: nothing is commanded.
    """

    def __init__(
        self,
        reader: BatchReader,
        stages: Stages[S_co],
        clock: Clock,
        command: Callable[[BatchId, Command], Awaitable[Committed]] | None,
    ) -> None:
        self._reader = reader
        self._stages = stages
        self._clock = clock
        self._command = command

    # ---- commands --------------------------------------------------------------------------------------------

    async def cancel(self, batch_id: str, *, reason: str = "") -> bool:
        """Cancel a batch: first commit the cancellation, then cancel what runs.

        Exactly one call returns True, and only if it cancelled the batch. After it returns, this process starts no
        activity of the batch, and other processes stop starting them within half a second.

        Raises:
            BatchNotFoundError: There is no such batch.
            ReadOnlyClientError: This client only reads.
        """
        check_instance("reason", reason, str)
        give = self._commands("cancel")
        record = await self._reader.record(batch_id)
        return (await give(record.batch_id, Cancel(request_id=uuid4().hex, reason=reason))).applied

    async def pause(self, batch_id: str, *, note: str = "", running: PauseScope = "calls") -> bool:
        """Pause a batch until it is resumed: from the commit on, no worker starts a document of it, or its resolver.

        Workers notice within half a second. Then no activity of the batch is started either: calls that are running
        finish and are recorded, and their documents are released. The batch stays in its state, and its deadline runs
        on. Workers of 0.2.0 finish the documents that they run.

        Args:
            batch_id: The batch.
            note: The reason, for `snapshot` and `explain`.
            running: "documents" lets whole documents finish that are running; so does the resolver.

        Returns:
            Whether this call did it. False: an operator's pause is in force already; of one that lets whole documents
            finish, `running="calls"` makes one that does not.

        Raises:
            BatchEndedError: The batch has ended.
            BatchNotFoundError: There is no such batch.
            ReadOnlyClientError: This client only reads.
        """
        check_instance("note", note, str)
        if running not in get_args(PauseScope):
            raise ConfigurationError(f"running must be one of {', '.join(get_args(PauseScope))}, not {running!r}")
        return await self._request("pause", batch_id, lambda request_id: PauseBatch(request_id, note, running))

    async def resume(self, batch_id: str) -> Sequence[Pause]:
        """End an operator's pause. Where a provider refuses the batch's calls for its account, it is asked again now.

        Returns:
            The pauses that stay in force; empty: the batch goes on. That for a quota stays until a call has succeeded;
            that for a spent budget, until `update(budget=)`.

        Raises:
            BatchEndedError: The batch has ended.
            BatchNotFoundError: There is no such batch.
            ReadOnlyClientError: This client only reads.
        """
        await self._request("resume", batch_id, ResumeBatch)
        record = await self._reader.record(batch_id)
        return self._snapshot(record).pauses

    async def update(self, batch_id: str, **changes: Unpack[ConfigChanges]) -> BatchConfig:
        """Change options of a batch's configuration while it runs, with the commit that records it.

        With more documents running than a new `concurrency`, none is stopped, and none is started. A new
        `failure_policy` judges the failures that are there at once; a new `deadline` counts from the submission, like
        the first. A new `document_timeout` is that of attempts that begin from now on. A new `budget` has to exceed
        what is spent; a batch that was paused because its budget was spent goes on with it, or with None.

        Args:
            batch_id: The batch.
            **changes: The new values: `concurrency`, `failure_policy`, `document_timeout`, `deadline`, `budget`.

        Returns:
            The configuration that is in force.

        Raises:
            ConfigurationError: There is nothing to change, or an option cannot be changed; or `min_failures` is given
                while documents are running, which workers of 0.2.0 would not know: pause the batch before; or the
                budget is spent already.
            pydantic.ValidationError: A value is out of range or of a wrong type.
            BatchEndedError: The batch has ended.
            BatchNotFoundError: There is no such batch.
            ReadOnlyClientError: This client only reads.
        """
        text = to_json(changes_of(changes)).decode()
        if not await self._request("update", batch_id, lambda request_id: UpdateBatch(request_id, text)):
            budget, spent = changes.get("budget"), self._snapshot(await self._reader.record(batch_id)).spent
            if budget is not None and budget.is_reached(spent):
                raise ConfigurationError(f"the budget of batch {batch_id!r} must exceed what is spent: {spent}")
            raise ConfigurationError(
                f"min_failures of batch {batch_id!r} cannot be changed while documents of it are running, since "
                "workers of version 0.2.0 do not know it; pause the batch before"
            )
        return await self.config(batch_id)

    async def _request(self, name: str, batch_id: str, command: Callable[[str], Command]) -> bool:
        """Give a command that a run which has not ended can obey; return whether it was applied."""
        give = self._commands(name)
        record = await self._reader.record(batch_id)
        applied = (await give(record.batch_id, command(uuid4().hex))).applied
        if not applied:
            record = await self._reader.record(batch_id)
            if record.ended:
                raise BatchEndedError(record.batch_id, record.state, name)
        return applied

    # ---- reading ---------------------------------------------------------------------------------------------

    async def state(self, batch_id: str) -> BatchState[S_co]:
        """Return the batch's state, as a closed union: a `match` that omits one is a type error.

        Raises:
            BatchNotFoundError: There is no such batch.
        """
        return state_of(await self._reader.record(batch_id), self._stages)

    async def config(self, batch_id: str) -> BatchConfig:
        """Return the batch's configuration, with what `update` has changed.

        Raises:
            BatchNotFoundError: There is no such batch.
        """
        return definition_of(await self._reader.record(batch_id)).config

    async def snapshot(self, batch_id: str) -> BatchSnapshot[S_co]:
        """Return a snapshot of the batch: state, counts, stages, percentage, rate, calls that may never end.

        Raises:
            BatchNotFoundError: There is no such batch.
        """
        record = await self._reader.record(batch_id)
        return snapshot_of(record, self._stages, self._clock.now(), await self._reader.long_calls(record))

    async def progress(self, batch_id: str, *, after: int = 0) -> AsyncGenerator[BatchEvent, None]:
        """Yield every event of the batch once, in order, from any point, live or long after.

        Ends with the batch's last event. To resume after a pause, pass the last `seq` as `after`.

        Raises:
            BatchNotFoundError: There is no such batch.
        """
        check_integer("after", after)
        async with aclosing(self._reader.events(batch_id, after)) as blocks:
            async for block in blocks:
                for event in block:
                    yield event

    async def events(self, batch_id: str, *, after: int = 0) -> AsyncGenerator[BatchEvent, None]:
        """Yield the events that are recorded by now, in order, and end; `progress` goes on to the end of the batch.

        Args:
            batch_id: The batch.
            after: Only events with a greater `seq`.

        Raises:
            BatchNotFoundError: There is no such batch.
        """
        check_integer("after", after)
        async with aclosing(self._reader.recorded_events(batch_id, after)) as records:
            async for record in records:
                yield decode_event(record)

    async def watch(
        self, batch_id: str, *, interval: timedelta = timedelta(milliseconds=250)
    ) -> AsyncGenerator[BatchSnapshot[S_co], None]:
        """Yield the latest snapshot when it has changed, at most one per `interval`; the last one is of the end.

        Raises:
            BatchNotFoundError: There is no such batch.
        """
        check_duration("interval", interval)
        if interval < timedelta(0):
            raise ConfigurationError("interval must not be negative")
        async with aclosing(self._reader.changes(batch_id, interval)) as records:
            async for record in records:
                yield self._snapshot(record)

    async def explain(self, batch_id: str) -> Explanation[S_co]:
        """Explain why the batch is where it is: what runs, what waits for what, and whether workers are there for it.

        `str()` of the explanation gives it in sentences.

        Raises:
            BatchNotFoundError: There is no such batch.
        """
        return explanation_of(*await self._reader.inspected(batch_id), self._stages)

    async def errors(self, batch_id: str, *, examples: int = 3) -> ErrorDigest:
        """Group the documents that have failed for good by what failed, the largest group first.

        A group has one class of errors, one activity, and messages that differ only in numbers, ids, quotations and
        addresses. They are counted as documents fail. Where they are not (documents that failed under 0.1.0, a
        store that counts no failures), or more examples are asked for than are kept (5), the failures of all failed
        documents are read, one page in memory at a time. While the store is away, it waits.

        Args:
            batch_id: The batch.
            examples: How many failures each group shows.

        Raises:
            BatchNotFoundError: There is no such batch.
        """
        check_integer("examples", examples)
        if examples < 0:
            raise ConfigurationError("examples must be 0 or more")
        record = await self._reader.awaited_record(batch_id)
        counted = await self._reader.counted_failures(record)
        digest = None if counted is None else counted_digest(record, counted, examples)
        if digest is not None:
            return digest
        groups = FailureGroups(record, examples)
        async with aclosing(self._reader.documents(record, ["failed"], inputs=False)) as documents:
            async for document in documents:
                groups.add(document)
        return groups.digest()

    async def spent(self, batch_id: str) -> Spending:
        """Return what the batch's calls have spent so far, over all of its runs: in all, by stage, activity and model.

        It is summed as calls are recorded, and read with the batch. What calls have spent that are running now, or were
        when their process died, is not in it.

        Raises:
            BatchNotFoundError: There is no such batch.
        """
        record = await self._reader.record(batch_id)
        return spending_of(decode_core(record.core).get("spent"))

    async def document_spent(self, batch_id: str, position: int) -> Amount:
        """Return what the recorded calls of one document have cost: it reads these, one page in memory at a time.

        It is less than the document's part of `spent` where calls ended without a record, or where their failures were
        forgotten because the document was retried. While the store is away, it waits.

        Args:
            batch_id: The batch.
            position: The document's ordinal in the submission, from 0; -1: the resolver. Where there is no such
                document, nothing was spent.

        Raises:
            BatchNotFoundError: There is no such batch.
        """
        check_integer("position", position)
        record = await self._reader.awaited_record(batch_id)
        total = NOTHING_SPENT
        async with aclosing(self._reader.checkpoints(record, position)) as checkpoints:
            async for checkpoint in checkpoints:
                if checkpoint.spent is not None:
                    total += amount_of(decode_spends(checkpoint.spent))
        return total

    async def count_checkpoints(self, batch_id: str) -> int:
        """Count the batch's recorded results of activities, which will not run again.

        Raises:
            BatchNotFoundError: There is no such batch.
        """
        return await self._reader.count_checkpoints(batch_id)

    async def resolver_results(self, batch_id: str, activity: str, returns: type[T]) -> AsyncGenerator[T, None]:
        """Yield what the calls of an activity have recorded for the batch's resolver, one in memory at a time.

        In the order of their checkpoint keys, which is no order of the calls, and is the same each time.

        Args:
            batch_id: The batch.
            activity: The activity's name.
            returns: The type of its results.

        Raises:
            BatchNotFoundError: There is no such batch.
            PayloadError: A result is of another type.
        """
        check_text("activity", activity)
        codec = Codec[T](returns, f"result of activity {activity!r}")
        checkpoints = self._reader.checkpoints(
            await self._reader.record(batch_id), RESOLVER_POSITION, prefix=f"{activity}:", at_once=1
        )
        async with aclosing(checkpoints) as found:
            async for checkpoint in found:
                if checkpoint.kind == "succeeded":
                    with payload_of(batch_id, ""):
                        value = codec.decode(checkpoint.payload)
                    yield value

    # ---- for subclasses --------------------------------------------------------------------------------------

    def _commands(self, name: str) -> Callable[[BatchId, Command], Awaitable[Committed]]:
        """Return what gives commands.

        Raises:
            ReadOnlyClientError: This client only reads.
        """
        if self._command is None:
            raise ReadOnlyClientError(name)
        return self._command

    def _snapshot(self, record: BatchRecord) -> BatchSnapshot[S_co]:
        return snapshot_of(record, self._stages, self._clock.now())

    async def _snapshots(
        self,
        *,
        workflow: str | None,
        states: Collection[str],
        metadata: Mapping[str, str] | None,
        created_before: datetime | None,
        after: str | None = None,
    ) -> AsyncGenerator[BatchSnapshot[S_co], None]:
        """Yield batches, newest first, one page in memory at a time."""
        if isinstance(states, str):
            raise ConfigurationError(f"states must be a collection of tags, not a str; give a tuple: ({states!r},)")
        check_text("workflow", workflow, optional=True)
        check_text("after", after, optional=True)
        check_instance("states", states, Collection)
        for state in states:
            check_text("each of states", state)
        check_labels("metadata", metadata, optional=True)
        check_moment("created_before", created_before, optional=True)
        query = BatchQuery(
            workflow=workflow,
            states=states,
            metadata=metadata or {},
            created_before=None if created_before is None else to_micros(created_before),
        )
        behind = None if after is None else BatchId(after)
        async with aclosing(self._reader.records(query, behind)) as records:
            async for record in records:
                yield self._snapshot(record)
