"""Where the calls of one executor run, and what becomes of those that it loses.

Which rules hold
----------------

1. No more calls are submitted than the executor has places, so that a pool that breaks costs no more than it ran.
2. A call that the executor loses has not failed: it is placed again, in the same attempt. From its second loss on it
   runs in a pool of its own, so that it can only be its own fault. Lost there, it counts as a crash of its document.
3. A future that is cancelled, and not by its caller, is a lost call.
4. A pool that has broken is made anew by the first call that notices; so is one whose places are all held by calls that
   were given up and run on.
5. A pool that calls run alone in is not the one that others hang in: neither waits for the other.
6. A cluster replaces its processes by itself, and is not made anew for a call. Where it is away, calls wait until it is
   back; calls that were lost with it are placed again, however often, since none of them is to blame.
7. A call that still runs is not lost, and is not placed again: it ends in the executor that it began in, also where
   that is used no more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from functools import partial
from typing import Final, NamedTuple

from durable_batches.clock import Clock
from durable_batches.errors import ConfigurationError, ExecutorError
from durable_batches.executors.availability import Availability
from durable_batches.executors.beginning import Beginning, Probing, Timeout
from durable_batches.executors.cluster import ClusterAwayError, ClusterExecutor
from durable_batches.executors.kept_executor import ExecutorOrFactory, KeptExecutor
from durable_batches.executors.remote import PROBE, run_call
from durable_batches.lifecycle.failures import line_of
from durable_batches.outage import Backoff
from durable_batches.runtime.elsewhere import CallLostError
from durable_batches.runtime.threads import Threads
from durable_batches.tasks import tell_loop, wake

__all__ = ["Placement"]

_log = logging.getLogger("durable_batches")

_ALONE_FROM: Final = 2
"""Losses after which a call runs alone. Of the first nobody can know whose fault it was."""
_MOST_LOSSES: Final = 3
_PROBE_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 2.0
"""For which a call that was given up may run on in a cluster, before its process is ended."""
_MOST_REFUSALS: Final = 10
"""Executors in a row that are made, and take no call."""

_LOST: Final = frozenset(
    """BrokenExecutor CancelledError KilledWorker CommClosedError FutureCancelledError WorkerCrashedError ActorDiedError
    ActorUnavailableError NodeDiedError LocalRayletDiedError ObjectLostError OwnerDiedError OutOfMemoryError""".split()
)
"""Classes of the errors of pools, Dask and Ray with which a call is lost. All errors of functions come as answers."""


class _Loss(NamedTuple):
    """The executor has lost a call."""

    reason: str
    was_away: bool = False
    """Whether it was lost with all of its cluster."""


class Placement:
    """Runs calls on one executor; belongs to the event loop between `open` and `close`.

    Args:
        name: The executor's name.
        given: The executor, or what makes it.
        clock: The worker's.
    """

    def __init__(self, name: str, given: ExecutorOrFactory, clock: Clock) -> None:
        self.name: Final = name
        self._clock = clock
        self._kept = KeptExecutor(name, given, clock, retired=self._free_all, ended=self._end_calls)
        self._has_answered = False
        self._places = asyncio.Semaphore(0)
        self._slots = 0
        self._alone = asyncio.Lock()
        self._given_up: dict[Future[bytes], int] = {}
        self._live: dict[asyncio.Future[None], tuple[int, Future[bytes]]] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._is_cluster = False
        self._availability = Availability(name, clock, self._kept.connect_again)

    async def open(self, threads: Threads) -> None:
        """Make the executor.

        Raises:
            ConfigurationError: Options of a cluster do not fit.
            ExecutorError: It cannot be made, or not be used.
        """
        self._alone = asyncio.Lock()
        self._availability = Availability(self.name, self._clock, self._kept.connect_again)
        self._slots = await self._kept.open(threads)
        self._is_cluster = self._kept.cluster is not None
        self._places = asyncio.Semaphore(self._slots)

    async def close(self) -> None:
        """End the executor, with all that it runs, unless it was given as it is."""
        while self._stopping:
            for task in self._stopping:
                task.cancel()
            await asyncio.wait(self._stopping)
        await self._kept.close()
        self._given_up.clear()

    async def run(
        self,
        message: bytes,
        *,
        activity: str,
        timeout: Timeout,
        beginning: Beginning,
        suspect: bool,
    ) -> bytes:
        """Run a call, and return its answer.

        Args:
            message: The call.
            activity: The activity's name, for the log.
            timeout: Its timeout.
            beginning: What is done before it begins.
            suspect: Whether it may have ended processes before, and runs alone from the beginning.

        Raises:
            CallLostError: It was lost too often, the last time running alone.
            ExecutorError: The executor takes no calls, or not this one.
            TimeoutError: The time is up; the executor was told.
        """
        losses, pauses = 0, Backoff(0.1)
        can_isolate = self._kept.can_be_made and not self._is_cluster
        while True:
            alone = (suspect or losses >= _ALONE_FROM) and can_isolate
            connections = self._availability.connections
            if alone:
                answer = await self._run_alone(message, timeout, beginning)
            else:
                answer = await self._run_beside_others(message, timeout, beginning)
            if not isinstance(answer, _Loss):
                self._availability.answers()
                return answer
            if answer.was_away:
                # What has come back may be another cluster, whose options are looked at.
                await self._availability.reconnect(beginning, connections, answer.reason)
                with beginning.waiting():
                    await self._clock.sleep(pauses.pause())
                continue
            losses += 1
            is_last = alone or losses >= _MOST_LOSSES
            _log.warning(
                "executor %r lost a call of activity %r (loss %d of it%s): %s; %s",
                self.name,
                activity,
                losses,
                ", with no other call beside it" if alone else "",
                answer.reason,
                "it counts as a crash of its document" if is_last else "it is placed again, in the same attempt",
                extra={"executor": self.name, "activity": activity, "losses": losses, "alone": alone},
            )
            if is_last:
                if not self._has_answered and can_isolate:
                    await self._probe()
                raise CallLostError(self.name, losses, answer.reason)

    async def _probe(self) -> None:
        """Find out whether the executor, which has lost all calls, can run anything: a call that does nothing.

        Raises:
            ExecutorError: It cannot; no document is to blame.
        """
        try:
            answer = await self._run_alone(PROBE, Timeout(_PROBE_SECONDS), Probing())
        except TimeoutError:
            answer = _Loss(f"no answer within {_PROBE_SECONDS:g} s")
        if isinstance(answer, _Loss):
            raise ExecutorError(
                self.name,
                "its processes end before they have answered any call; what starts the program may stand outside of "
                f'`if __name__ == "__main__":`, where each of them runs it again: {answer.reason}',
            )

    # ---- one call --------------------------------------------------------------------------------------------

    async def _run_beside_others(self, message: bytes, timeout: Timeout, beginning: Beginning) -> bytes | _Loss:
        if self._places.locked():
            await beginning.give_way()
        with beginning.waiting():
            await self._places.acquire()
        keeps_place = False

        def give_up(generation: int, future: Future[bytes]) -> None:
            nonlocal keeps_place
            keeps_place = self._give_up(future, generation)

        def leave(generation: int, submitting: asyncio.Task[Future[bytes]]) -> None:
            nonlocal keeps_place
            keeps_place = True
            submitting.add_done_callback(partial(self._was_submitted, generation))

        try:
            generation, future = await self._submitted(message, timeout, beginning, give_up, leave)
            beginning.handed_over()
            ended = _ended(future)
            self._live[ended] = (generation, future)
            try:
                await self._wait(ended, future, timeout)
            except BaseException:
                give_up(generation, future)
                raise
            finally:
                del self._live[ended]
        finally:
            if not keeps_place:
                self._places.release()
        answer = self._answer_of(future)
        if isinstance(answer, _Loss) and not self._is_cluster:
            self._kept.retire(generation)
        return answer

    async def _run_alone(self, message: bytes, timeout: Timeout, beginning: Beginning) -> bytes | _Loss:
        """Run it in a pool of its own, and end that pool."""
        await beginning.give_way()
        with beginning.waiting():
            await self._alone.acquire()
        try:
            executor = await self._kept.make()
            try:
                await beginning.begin()
                try:
                    future = await self._kept.submit(executor, run_call, message)
                except Exception as error:
                    raise ExecutorError(self.name, line_of(error)) from error
                beginning.handed_over()
                await self._wait(_ended(future), future, timeout)
            finally:
                self._kept.end_later(executor)
            return self._answer_of(future)
        finally:
            self._alone.release()

    async def _submitted(
        self,
        message: bytes,
        timeout: Timeout,
        beginning: Beginning,
        give_up: Callable[[int, Future[bytes]], None],
        leave: Callable[[int, asyncio.Task[Future[bytes]]], None],
    ) -> tuple[int, Future[bytes]]:
        """Submit a call; to a new executor where the present one takes no calls any more."""
        refusals = 0
        while True:
            if not self._kept.is_there:
                await beginning.give_way()
            connections = self._availability.connections
            try:
                generation, executor = await self._kept.current()
            except (ConfigurationError, ExecutorError) as error:
                if not self._is_cluster:
                    raise
                await self._availability.reconnect(beginning, connections, str(error))
                continue
            await beginning.begin()
            try:
                future = await self._kept.submit(
                    executor,
                    run_call,
                    message,
                    given_up=partial(give_up, generation),
                    left=partial(leave, generation),
                )
            except ClusterAwayError as error:
                await self._availability.reconnect(beginning, connections, str(error))
            except Exception as error:
                refusals += 1
                if not self._kept.can_be_made:
                    hint = "; it was given as it is, and cannot be made again: give a function that makes it"
                    raise ExecutorError(self.name, f"{line_of(error)}{hint}") from error
                self._kept.retire(generation)
                if not _took_nothing(error):
                    # A pool queues a call before it starts a thread or a process for it. Where only that failed, those
                    # that it has may run the call, and nobody holds its future.
                    beginning.handed_over()
                    await self._kept.end_of(executor, timeout.seconds)
                if refusals >= _MOST_REFUSALS:
                    raise ExecutorError(self.name, line_of(error)) from error
            else:
                return generation, future

    async def _wait(self, ended: asyncio.Future[None], future: Future[bytes], timeout: Timeout) -> None:
        """Wait for a call's end.

        Not for `wrap_future`: a future that the executor has cancelled would look like a cancelled task.
        """
        try:
            async with timeout.running(self._clock, may_start=self._kept.has_processes):
                await ended
        except TimeoutError:
            # An answer that comes at the very moment is one: its call would be paid for again.
            if not future.done() or future.cancelled():
                raise

    def _answer_of(self, future: Future[bytes]) -> bytes | _Loss:
        cluster = self._kept.cluster
        if not future.done() or future.cancelled():
            return _Loss("cancelled by the executor", was_away=cluster is not None and cluster.was_away(None))
        error = future.exception()
        if error is None:
            self._has_answered = True
            return future.result()
        if cluster is not None and cluster.was_away(error):
            return _Loss(line_of(error), was_away=True)
        if _is_loss(error):
            return _Loss(line_of(error))
        raise ExecutorError(self.name, line_of(error)) from error

    def _give_up(self, future: Future[bytes], generation: int) -> bool:
        """Tell the executor that nobody waits for a call; return whether the call keeps its place, since it runs on."""
        cluster = self._kept.cluster
        if cluster is not None:
            if generation != self._kept.generation or future.done():
                return False
            self._given_up[future] = generation
            stopping = asyncio.create_task(self._stop(cluster, future), name=f"durable-batches executor {self.name}")
            self._stopping.add(stopping)
            stopping.add_done_callback(self._stopping.discard)
            return True
        if generation != self._kept.generation or future.cancel() or future.done():
            return False
        self._given_up[future] = generation
        loop = asyncio.get_running_loop()

        def has_ended(_: Future[bytes]) -> None:
            tell_loop(loop, self._free, future)

        future.add_done_callback(has_ended)
        if len(self._given_up) >= self._slots:
            _log.warning(
                "executor %r: all of its %d places are held by calls that were given up and run on; %s",
                self.name,
                self._slots,
                "it is made anew"
                if self._kept.can_be_made
                else "it was given as it is, and takes no calls until they end",
                extra={"executor": self.name, "places": self._slots},
            )
            self._kept.retire(generation)
        # Where it was made anew, all places are free by now, this one included.
        return True

    def _was_submitted(self, generation: int, submitting: asyncio.Task[Future[bytes]]) -> None:
        """Give a call up that a cluster has taken, or has refused, after nobody waited for it any more."""
        if submitting.cancelled() or submitting.exception() or not self._give_up(submitting.result(), generation):
            self._places.release()

    async def _stop(self, cluster: ClusterExecutor, future: Future[bytes]) -> None:
        """Have a cluster stop a call that was given up; its place is free when nothing runs there any more."""
        pauses, began = Backoff(0.1, 5.0), self._clock.boot()
        while not await self._kept.stop(cluster, future, forced=self._clock.boot() - began >= _STOP_SECONDS):
            await self._clock.sleep(pauses.pause())
        self._free(future)

    def _free(self, future: Future[bytes]) -> None:
        """Release the place of a call that was given up."""
        if self._given_up.pop(future, None) is not None:
            self._places.release()

    # ---- the executor ------------------------------------------------------------------------------------------

    def _free_all(self, generation: int) -> None:
        """Release the places of calls that were given up: their executor is used no more."""
        for future in [future for future, of in self._given_up.items() if of == generation]:
            self._free(future)

    def _end_calls(self, generation: int, runs_nothing: bool) -> None:
        """End the calls of an executor that has been ended, as far as they do not run.

        Some executors forget the futures of what they ran. Calls that still run end as if nothing had happened.
        """
        for ended, (of, future) in list(self._live.items()):
            if of == generation:
                if runs_nothing:
                    wake(ended)
                else:
                    future.cancel()


def _is_loss(error: BaseException) -> bool:
    return isinstance(error, BrokenExecutor) or any(kind.__name__ in _LOST for kind in type(error).__mro__)


def _took_nothing(error: Exception) -> bool:
    """Whether an executor that raised this has not even queued the call: it has broken, or was shut down."""
    return isinstance(error, BrokenExecutor) or (isinstance(error, RuntimeError) and "shutdown" in str(error))


def _ended(future: Future[bytes]) -> asyncio.Future[None]:
    """Return what is set when a call has ended, in whatever thread that happens."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda _: wake(ended))
    return ended
