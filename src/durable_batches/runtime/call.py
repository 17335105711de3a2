"""A running activity call: its context for the body, and the execution of the function."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import copy_context
from functools import partial
from hashlib import blake2b
from typing import Any, Final, NamedTuple, NoReturn, Unpack

from durable_batches.blocks import contextmanager
from durable_batches.clock import Clock, Deadline
from durable_batches.errors import ActivityTimeoutError, place_of
from durable_batches.forked import end_child
from durable_batches.lifecycle.failures import line_of
from durable_batches.lifecycle.spending import Spend, encode_spends
from durable_batches.lifecycle.states import BatchId
from durable_batches.options import check_integer
from durable_batches.runtime.bound_call import BoundCall
from durable_batches.runtime.classify import ErrorClassifier, Verdict
from durable_batches.runtime.context import ExecutionContext, WorkflowScope, enter_activity, leave
from durable_batches.runtime.dependencies import Dependencies
from durable_batches.runtime.elsewhere import no_executor
from durable_batches.runtime.limited import Holding
from durable_batches.runtime.limits import Limiter, Permit, no_limiter, no_limiter_named
from durable_batches.runtime.middleware import nested
from durable_batches.runtime.resources import ActivityReport, Resources
from durable_batches.runtime.rest import LEAST_SECONDS, Loan
from durable_batches.runtime.spends import Said, Spends, spend_of

__all__ = ["Call", "RunningCall"]

_log = logging.getLogger("durable_batches")

_NOT_BEGUN: Final = object()
_SPENDING: Final = threading.Lock()


class RunningCall(NamedTuple):
    """An activity call, seen from outside."""

    task: asyncio.Task[Any]
    """The task that makes the call and runs it."""
    key: str
    attempt: int
    activity: str
    started: float
    """When this attempt began, by the boot clock; see `Resources.moment`."""
    is_bounded: bool
    """It has a timeout, or waits, and nothing of it runs."""
    thread: int | None = None
    """The thread that a sync activity runs in; None: it is async, or has not begun."""
    limiter: str | None = None
    """The limiter whose permit it waits for; None: it does not."""
    executor: str | None = None
    """The executor that it runs on (`run_on=`); None: it runs in this process."""
    waits: bool = False
    """Nothing of it runs."""


class Call:
    """A running activity call, which `current_activity()` returns to its body.

    Args:
        resources: Shared by all calls of a worker.
        bound: The activity and the arguments.
        key: The key of the checkpoint.
        scope: The execution that makes the call.
    """

    __slots__ = (
        "_refusals",
        "_resources",
        "_scope",
        "_spends",
        "_takes_spends",
        "_waiting",
        "_waits_for",
        "attempt",
        "bound",
        "cancelled_before",
        "holding",
        "key",
        "reported",
        "stage_index",
        "started",
        "task",
        "thread",
    )

    def __init__(
        self,
        resources: Resources,
        bound: BoundCall,
        key: str,
        scope: WorkflowScope,
        task: asyncio.Task[Any] | None,
    ) -> None:
        assert task is not None
        self.task: asyncio.Task[Any] = task
        self.cancelled_before: int = task.cancelling()
        """Cancellations of the task that nobody took back, of before the call."""
        self.bound: BoundCall = bound
        self.key: str = key
        self.attempt: int = 0
        self.stage_index: int = -1
        """Of the stage in which it was made; -1: in none."""
        self._scope = scope
        self._resources = resources
        self.reported: bool = False
        self.started: float = resources.moment
        """When its present attempt began."""
        self.thread: int | None = None
        """The thread that its present attempt runs in, if it runs in one of its own."""
        self.holding: Holding | None = None
        """The permit of its present attempt, if its activity has a limiter."""
        self._waiting = False
        self._waits_for: str | None = None
        self._refusals = 0
        self._spends: Spends | None = None
        self._takes_spends = True

    def seen(self) -> RunningCall:
        """Describe it for others; on any thread."""
        activity = self.bound.activity
        return RunningCall(
            self.task,
            self.key,
            self.attempt,
            activity.name,
            self.started,
            activity.timeout is not None or self._waiting,
            self.thread,
            self._waits_for,
            activity.run_on,
            self._waiting,
        )

    @property
    def context(self) -> ExecutionContext:
        """The context of the execution that makes the call."""
        return self._scope.context

    # ---- as the body sees it -----------------------------------------------------------------------------------

    @property
    def batch_id(self) -> BatchId:
        """See `ActivityContext`."""
        return self.context.batch_id

    @property
    def document_id(self) -> str:
        """See `ActivityContext`."""
        return self.context.document_id

    @property
    def clock(self) -> Clock:
        """The worker's."""
        return self._resources.clock

    @property
    def classifier(self) -> ErrorClassifier:
        """Judges its errors."""
        return self.bound.activity.classify or self._resources.classify

    @property
    def limiter(self) -> Limiter:
        """See `MiddlewareCall`."""
        activity = self.bound.activity
        own = activity.limiter
        assert own is not None
        limiter = self._resources.named_limiters.get(own) if isinstance(own, str) else own
        if limiter is None:
            raise no_limiter_named(activity.name, str(own))
        return limiter

    @property
    def crashes(self) -> int:
        """See `CallElsewhere`."""
        return self._scope.crashes

    @property
    def dependencies(self) -> Dependencies:
        """The worker's."""
        return self._resources.dependencies

    @property
    def identity(self) -> tuple[BatchId, str, str]:
        """The unique identity of the call: batch, document and key."""
        return self.batch_id, self.document_id, self.key

    @property
    def idempotency_key(self) -> str:
        """See `ActivityContext`."""
        return blake2b("\0".join(self.identity).encode(), digest_size=16).hexdigest()

    def report(self, current: int, total: int) -> None:
        """See `ActivityContext`."""
        check_integer("current", current)
        check_integer("total", total)
        self.reported = True
        self._resources.reports[self.identity] = ActivityReport(
            document_id=self.document_id, activity=self.bound.activity.name, current=current, total=total
        )

    def spend(self, **said: Unpack[Said]) -> None:
        """See `ActivityContext`."""
        self.add_spends([spend_of(**said)])

    def settle(self, *, tokens: int) -> None:
        """See `ActivityContext`."""
        self._held("settle").settle(tokens=tokens)

    def observe(self, answer: object) -> None:
        """See `ActivityContext`."""
        self._held("observe").observe(answer)

    def _held(self, method: str) -> Permit:
        holding = self.holding
        if holding is None or holding.permit is None:
            raise no_limiter(method, self.bound.activity.name)
        return holding.permit

    # ---- as the attempt runs it --------------------------------------------------------------------------------

    def add_spends(self, spends: Iterable[Spend]) -> None:
        """Add what it has spent, on any thread.

        Raises:
            NotInActivityError: It has ended.
        """
        own = self._own_spends()
        for spend in spends:
            own.add(spend._replace(activity=self.bound.activity.name, stage=self.stage_index))

    def take_spends(self) -> str | None:
        """Return what it has spent, to be recorded with it; None: nothing."""
        return None if self._spends is None else encode_spends(self._spends.take())

    def end_spends(self) -> str | None:
        """Return what it has spent and nothing has recorded, and take no more of it; None: nothing."""
        with _SPENDING:
            # Also of one that has spent nothing, as most: nothing would record what it says later.
            spends, self._takes_spends = self._spends, False
        return None if spends is None else encode_spends(spends.take(last=True))

    def _own_spends(self) -> Spends:
        with _SPENDING:
            if self._spends is None:
                self._spends = Spends(self.bound.activity.name, has_ended=not self._takes_spends)
            return self._spends

    async def once(self) -> tuple[bytes, Any]:
        """Make one attempt; return the encoded and the decoded result."""
        bound = self.bound
        self.attempt += 1
        self.started = self._resources.moment
        tokens = enter_activity(self)
        try:
            missing = bound.missing()
            kwargs = bound.kwargs
            if missing:
                with self.waiting():
                    kwargs = await self._resources.dependencies.filled(missing, bound.kwargs)
            function, is_async = bound.target()
            middleware, limited = self._resources.middleware, bound.activity.limited
            elsewhere = bound.activity.run_on is not None and bound.definition.replacement is None
            if middleware or limited is not None or elsewhere:
                run = self._run_elsewhere if elsewhere else partial(self._run, function, kwargs, is_async=is_async)
                around = middleware
                if limited is not None:
                    # Outermost: what measures attempts does not measure the wait.
                    around = (limited, *middleware)
                    self._resources.uses(self.limiter)
                result = await nested(around, self, run)()
            elif bound.activity.timeout is None and is_async:
                if not self._resources.lease.holds():
                    await self.wait_for_lease()
                result = await function(*bound.args, **kwargs)
            else:
                result = await self._run(function, kwargs, is_async=is_async)
            return bound.definition.codec.recoded(result)
        finally:
            leave(tokens)

    async def _run(self, function: Callable[..., Any], kwargs: Mapping[str, Any], *, is_async: bool) -> Any:
        """Run the function once, with the activity's timeout; a sync function in a thread."""
        await self.begin()
        activity, args = self.bound.activity, self.bound.args
        if activity.timeout is None:
            return await (function(*args, **kwargs) if is_async else self._in_thread(function, args, kwargs))
        seconds = activity.timeout.total_seconds()
        deadline = Deadline(self._resources.clock, seconds)
        try:
            if not is_async:
                return await self._in_thread(function, args, kwargs, deadline)
            async with deadline:
                return await function(*args, **kwargs)
        except TimeoutError as error:
            if deadline.expired:
                # Shows where it was at that moment.
                raise self._late(seconds) from error.__cause__
            raise

    async def _run_elsewhere(self) -> Any:
        """Run the function once on the executor that the activity names, which keeps to its timeout."""
        activity, elsewhere = self.bound.activity, self._resources.elsewhere
        if elsewhere is None:
            raise no_executor(activity.name, activity.run_on)
        try:
            return await elsewhere.run(self)
        except TimeoutError:
            assert activity.timeout is not None
            raise self._late(activity.timeout.total_seconds()) from None

    def _late(self, seconds: float) -> ActivityTimeoutError:
        return ActivityTimeoutError(
            self.bound.activity.name,
            seconds,
            attempt=self.attempt,
            batch_id=self.batch_id,
            document_id=self.document_id,
        )

    async def _in_thread(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        deadline: Deadline | None = None,
    ) -> Any:
        context = copy_context()
        lease, scope = self._resources.lease, self._scope

        def call() -> Any:
            self.thread = thread = threading.get_ident()
            try:
                if scope.is_stopping or not lease.holds():
                    # It waited for a thread meanwhile, or the process stood still.
                    return _NOT_BEGUN
                return context.run(fn, *args, **kwargs)
            except StopIteration as error:
                # A future cannot hold StopIteration; a generator converts it to this.
                raise RuntimeError("the function raised StopIteration") from error
            finally:
                if lease.is_inherited:
                    self.end_child(sys.exc_info()[1])
                if self.thread == thread:
                    # Otherwise this one was given up, and another attempt runs.
                    self.thread = None

        if self.holding is not None and self._resources.threads.are_busy:
            await self.give_way()
        self._waiting = True
        try:
            # The time runs from here on, and not while others have all threads.
            async with self._resources.threads.one(self.bound.activity.name) as run, deadline or nullcontext():
                # Before the thread looks whether it may begin: from then on, stopping would lose a result.
                self._waiting = False
                await self.begin()
                result: Any
                while (result := await run(call)) is _NOT_BEGUN:
                    await self.begin()
                return await result if inspect.isawaitable(result) else result
        finally:
            self._waiting = False

    async def wait(self, seconds: float) -> None:
        """Wait before the next attempt."""
        with self.waiting():
            if seconds < LEAST_SECONDS:
                await self._resources.clock.sleep(seconds)
            else:
                async with self._scope.rests(is_call=True, for_batch=False):
                    await self._resources.clock.sleep(seconds)

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Within the block nothing of the call runs, so stopping loses nothing: `stop_waiting` ends the wait."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    async def take_permit(self, holding: Holding) -> None:
        """See `MiddlewareCall`. After half a minute, the execution lends its slot; the permit is used with a slot."""
        loan: Loan | None = None

        def lend() -> None:
            nonlocal loan
            loan = self._scope.lends()

        timer = self.clock.call_later(LEAST_SECONDS, lend)
        self._waits_for = self.limiter.name
        self._scope.waits_for_permit(1)
        try:
            with self.waiting():
                while True:
                    await holding.take()
                    if loan is None or loan.end_if_open():
                        return
                    # Others have all slots, and a permit is for a call that begins now.
                    await holding.give_back()
                    await loan.end()
                    loan, timer = None, self.clock.call_later(LEAST_SECONDS, lend)
        finally:
            timer.cancel()
            if loan is not None:
                loan.end_at_once()
            self._waits_for = None
            self._scope.waits_for_permit(-1)
            self.started = self._resources.moment

    def waiting_for_batch(self) -> AbstractAsyncContextManager[None]:
        """See `durable_batches.runtime.context.waiting_for_batch`."""
        return self._scope.rests(is_call=True, for_batch=True)

    async def wait_for_provider(self, error: BaseException, verdict: Verdict) -> None:
        """Wait because the provider has no room now; the attempt that it refused does not count."""
        self.attempt -= 1
        self._refusals += 1
        delay = self.bound.activity.retry.wait_of(verdict, self._refusals, self.clock.jitter())
        seconds = delay.total_seconds()
        self._log(
            "activity %r in %s: provider overloaded in attempt %d of %d, which is not counted: %s; retried in %.3g s",
            self.attempt + 1,
            error,
            seconds,
        )
        await self.wait(seconds)

    async def begin(self) -> None:
        """Wait until the worker's lease holds; the body begins next.

        Raises:
            CancelledError: The attempt of the document is being stopped.
            NotBegun: It has given its permit back meanwhile, and there is none now.
        """
        if self._scope.is_stopping:
            raise asyncio.CancelledError
        if not self._resources.lease.holds():
            await self.wait_for_lease()
        if self.holding is not None:
            await self.holding.take_to_begin()

    async def give_way(self) -> None:
        """Give its permit back, if it holds one: it waits for something else now."""
        if self.holding is not None:
            await self.holding.give_way()

    def handed_over(self) -> None:
        """Note that it was handed to an executor, so that its permit is used, whatever becomes of it."""
        if self.holding is not None:
            self.holding.used()

    async def wait_for_lease(self) -> None:
        """Wait until the worker's lease holds."""
        if self.holding is not None:
            await self.holding.give_back()
        with self.waiting():
            await self._resources.lease.regained()

    def log_retry(self, error: BaseException, seconds: float) -> None:
        """Log that an attempt failed and the call is retried."""
        self._refusals = 0
        self._log("activity %r in %s: attempt %d of %d failed: %s; retried in %.3g s", self.attempt, error, seconds)

    def _log(self, message: str, attempt: int, error: BaseException, seconds: float) -> None:
        if not _log.isEnabledFor(logging.INFO):
            return
        activity = self.bound.activity
        _log.info(
            message,
            activity.name,
            place_of(self.batch_id, self.document_id),
            attempt,
            activity.retry.max_attempts,
            line_of(error),
            seconds,
            extra={
                "batch_id": self.batch_id,
                "document_id": self.document_id,
                "activity": activity.name,
                "attempt": attempt,
                "max_attempts": activity.retry.max_attempts,
                "error_type": type(error).__name__,
                "retry_seconds": seconds,
            },
        )

    def end_child(self, error: BaseException | None) -> NoReturn:
        """End this process: the activity has forked it, and returns or raises in it."""
        place = place_of(self.batch_id, self.document_id)
        end_child(f"activity {self.bound.activity.name!r} of {place}", error)

    def stop_waiting(self) -> None:
        """Stop waiting for the next attempt, or for what the call needs before its body begins."""
        if self._waiting:
            self.task.cancel()
