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
6. A call that still runs is not lost, and is not placed again: it ends in the executor that it began in, also where
   that is used no more.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Final, NamedTuple, TypeAlias, cast

from durable_batches.clock import Clock, Deadline
from durable_batches.errors import ExecutorError
from durable_batches.executors.remote import PROBE, run_call
from durable_batches.lifecycle.failures import line_of
from durable_batches.runtime.elsewhere import CallLostError
from durable_batches.runtime.threads import Threads
from durable_batches.tasks import wake

__all__ = ["ExecutorOrFactory", "Placement"]

_log = logging.getLogger("durable_batches")

ExecutorOrFactory: TypeAlias = Executor | Callable[[], Executor]
"""An executor, or what makes one: only then can one that has broken be replaced."""

_Waiting: TypeAlias = Callable[[], AbstractContextManager[object]]
_Begins: TypeAlias = Callable[[], Awaitable[object]]

_ALONE_FROM: Final = 2
"""Losses after which a call runs alone. Of the first nobody can know whose fault it was."""
_MOST_LOSSES: Final = 3
_PROBE_SECONDS: Final = 60.0
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


class Placement:
    """Runs calls on one executor; belongs to the event loop between `open` and `close`.

    Args:
        name: The executor's name.
        given: The executor, or what makes it.
        clock: The worker's.
    """

    def __init__(self, name: str, given: ExecutorOrFactory, clock: Clock) -> None:
        self.name: Final = name
        self._given = given
        self._clock = clock
        self._threads: Threads | None = None
        self._executor: Executor | None = None
        self._generation = 0
        self._has_answered = False
        self._places = asyncio.Semaphore(0)
        self._slots = 0
        self._making = asyncio.Lock()
        self._alone = asyncio.Lock()
        self._given_up: dict[Future[bytes], int] = {}
        self._live: dict[asyncio.Future[None], tuple[int, Future[bytes]]] = {}
        self._ending: dict[asyncio.Task[None], Executor] = {}

    async def open(self, threads: Threads) -> None:
        """Make the executor.

        Raises:
            ExecutorError: It cannot be made, or not be used.
        """
        self._threads = threads
        self._making, self._alone = asyncio.Lock(), asyncio.Lock()
        _, executor = await self._current()
        self._slots = _slots_of(executor)
        self._places = asyncio.Semaphore(self._slots)

    async def close(self) -> None:
        """End the executor, with all that it runs, unless it was given as it is."""
        self._retire(self._generation)
        while self._ending:
            await asyncio.wait(self._ending)
        self._given_up.clear()

    async def run(
        self,
        message: bytes,
        *,
        activity: str,
        seconds: float | None,
        waiting: _Waiting,
        begins: _Begins,
        suspect: bool,
    ) -> bytes:
        """Run a call, and return its answer.

        Args:
            message: The call.
            activity: The activity's name, for the log.
            seconds: The timeout, from when it is submitted.
            waiting: Entered while it waits for a place, where it may be cancelled and nothing is lost.
            begins: Awaited just before it is submitted.
            suspect: Whether it may have ended processes before, and runs alone from the beginning.

        Raises:
            CallLostError: It was lost too often, the last time running alone.
            ExecutorError: The executor takes no calls, or not this one.
            TimeoutError: The time is up; the executor was told.
        """
        losses = 0
        while True:
            alone = (suspect or losses >= _ALONE_FROM) and self._can_be_made
            if alone:
                answer = await self._run_alone(message, seconds, waiting, begins)
            else:
                answer = await self._run_beside_others(message, seconds, waiting, begins)
            if not isinstance(answer, _Loss):
                return answer
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
                if not self._has_answered and self._can_be_made:
                    await self._probe()
                raise CallLostError(self.name, losses, answer.reason)

    async def _probe(self) -> None:
        """Find out whether the executor, which has lost all calls, can run anything: a call that does nothing.

        Raises:
            ExecutorError: It cannot; no document is to blame.
        """
        try:
            answer = await self._run_alone(PROBE, _PROBE_SECONDS, nullcontext, _at_once)
        except TimeoutError:
            answer = _Loss(f"no answer within {_PROBE_SECONDS:g} s")
        if isinstance(answer, _Loss):
            raise ExecutorError(
                self.name,
                "its processes end before they have answered any call; what starts the program may stand outside of "
                f'`if __name__ == "__main__":`, where each of them runs it again: {answer.reason}',
            )

    # ---- one call --------------------------------------------------------------------------------------------

    async def _run_beside_others(
        self, message: bytes, seconds: float | None, waiting: _Waiting, begins: _Begins
    ) -> bytes | _Loss:
        with waiting():
            await self._places.acquire()
        keeps_place = False
        try:
            generation, future = await self._submitted(message, begins, seconds)
            ended = _ended(future)
            self._live[ended] = (generation, future)
            try:
                await self._wait(ended, future, seconds)
            except BaseException:
                keeps_place = self._give_up(future, generation)
                raise
            finally:
                del self._live[ended]
        finally:
            if not keeps_place:
                self._places.release()
        answer = self._answer_of(future)
        if isinstance(answer, _Loss):
            self._retire(generation)
        return answer

    async def _run_alone(
        self, message: bytes, seconds: float | None, waiting: _Waiting, begins: _Begins
    ) -> bytes | _Loss:
        """Run it in a pool of its own, and end that pool."""
        with waiting():
            await self._alone.acquire()
        try:
            executor = await self._make()
            try:
                await begins()
                try:
                    future = executor.submit(run_call, message)
                except Exception as error:
                    raise ExecutorError(self.name, line_of(error)) from error
                await self._wait(_ended(future), future, seconds)
            finally:
                self._end_later(executor)
            return self._answer_of(future)
        finally:
            self._alone.release()

    async def _submitted(self, message: bytes, begins: _Begins, seconds: float | None) -> tuple[int, Future[bytes]]:
        """Submit a call; to a new executor where the present one takes no calls any more."""
        refusals = 0
        while True:
            generation, executor = await self._current()
            await begins()
            try:
                return generation, executor.submit(run_call, message)
            except Exception as error:
                refusals += 1
                if not self._can_be_made:
                    hint = "; it was given as it is, and cannot be made again: give a function that makes it"
                    raise ExecutorError(self.name, f"{line_of(error)}{hint}") from error
                self._retire(generation)
                if not _took_nothing(error):
                    # A pool queues a call before it starts a thread or a process for it. Where only that failed, those
                    # that it has may run the call, and nobody holds its future.
                    await self._end_of(executor, seconds)
                if refusals >= _MOST_REFUSALS:
                    raise ExecutorError(self.name, line_of(error)) from error

    async def _wait(self, ended: asyncio.Future[None], future: Future[bytes], seconds: float | None) -> None:
        """Wait for a call's end.

        Not for `wrap_future`: a future that the executor has cancelled would look like a cancelled task.
        """
        try:
            async with nullcontext() if seconds is None else Deadline(self._clock, seconds):
                await ended
        except TimeoutError:
            # An answer that comes at the very moment is one: its call would be paid for again.
            if not future.done() or future.cancelled():
                raise

    def _answer_of(self, future: Future[bytes]) -> bytes | _Loss:
        if not future.done() or future.cancelled():
            return _Loss("cancelled by the executor")
        error = future.exception()
        if error is None:
            self._has_answered = True
            return future.result()
        if _is_loss(error):
            return _Loss(line_of(error))
        raise ExecutorError(self.name, line_of(error)) from error

    def _give_up(self, future: Future[bytes], generation: int) -> bool:
        """Tell the executor that nobody waits for a call; return whether the call keeps its place, since it runs on."""
        if generation != self._generation or future.cancel() or future.done():
            return False
        self._given_up[future] = generation
        loop = asyncio.get_running_loop()

        def has_ended(_: Future[bytes]) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits for a place
                loop.call_soon_threadsafe(self._free, future)

        future.add_done_callback(has_ended)
        if len(self._given_up) >= self._slots:
            _log.warning(
                "executor %r: all of its %d places are held by calls that were given up and run on; %s",
                self.name,
                self._slots,
                "it is made anew" if self._can_be_made else "it was given as it is, and takes no calls until they end",
                extra={"executor": self.name, "places": self._slots},
            )
            self._retire(generation)
        # Where it was made anew, all places are free by now, this one included.
        return True

    def _free(self, future: Future[bytes]) -> None:
        """Release the place of a call that was given up."""
        if self._given_up.pop(future, None) is not None:
            self._places.release()

    # ---- executors -------------------------------------------------------------------------------------------

    @property
    def _can_be_made(self) -> bool:
        return not isinstance(self._given, Executor)

    async def _current(self) -> tuple[int, Executor]:
        async with self._making:
            if self._executor is None:
                self._executor = await self._make()
            return self._generation, self._executor

    async def _make(self) -> Executor:
        """Make an executor, on a thread: a client of a cluster connects first."""
        if isinstance(self._given, Executor):
            return self._given
        assert self._threads is not None
        try:
            async with self._threads.one(f"executor {self.name}") as run:
                made: object = await run(self._given)
        except Exception as error:
            raise ExecutorError(self.name, f"making it raised {line_of(error)}") from error
        if not isinstance(made, Executor):
            raise ExecutorError(self.name, f"{self._given!r} made a {type(made).__name__}, which is no Executor")
        if forks(made):
            self._end_later(made)
            raise ExecutorError(self.name, FORKS)
        return made

    def _retire(self, generation: int) -> None:
        """Use an executor no more; the next call makes another one. What was given as it is stays."""
        if generation != self._generation or self._executor is None or not self._can_be_made:
            return
        executor, self._executor = self._executor, None
        self._generation += 1
        for future in [future for future, of in self._given_up.items() if of == generation]:
            self._free(future)
        self._end_later(executor, generation)

    def _end_later(self, executor: Executor, generation: int | None = None) -> None:
        """End an executor in a task of its own; of a generation, or the one of a single call."""
        task = asyncio.create_task(self._end(executor, generation), name=f"durable-batches executor {self.name}")
        self._ending[task] = executor
        task.add_done_callback(self._ending.pop)

    async def _end(self, executor: Executor, generation: int | None) -> None:
        assert self._threads is not None
        runs_nothing = False
        try:
            async with self._threads.one(f"executor {self.name}") as run:
                runs_nothing = await run(lambda: _end(executor))
        except Exception as error:  # noqa: BLE001  (of others; nothing depends on it)
            _log.warning("executor %r could not be ended: %s", self.name, line_of(error), exc_info=error)
        # Some executors forget the futures of what they ran. Calls that still run end as if nothing had happened.
        for ended, (of, future) in list(self._live.items()):
            if of == generation:
                if runs_nothing:
                    wake(ended)
                else:
                    future.cancel()

    async def _end_of(self, executor: Executor, seconds: float | None) -> None:
        """Wait until nothing runs in an executor that is being ended.

        Raises:
            ExecutorError: That cannot be known.
            TimeoutError: The time is up.
        """
        assert self._threads is not None
        try:
            async with nullcontext() if seconds is None else Deadline(self._clock, seconds):
                ending = [task for task, of in self._ending.items() if of is executor]
                if ending:
                    await asyncio.wait(ending)
                async with self._threads.one(f"executor {self.name}") as run:
                    await run(lambda: executor.shutdown(wait=True))
        except TimeoutError:
            raise
        except Exception as error:
            raise ExecutorError(self.name, f"ending it raised {line_of(error)}") from error


FORKS: Final = (
    "its processes are forked from this one, whose threads may hold locks that are then never released; use "
    'process_pool(), or mp_context=multiprocessing.get_context("spawn")'
)


def forks(executor: Executor) -> bool:
    """Whether a pool forks its processes from this one, which has threads."""
    context: Any = getattr(executor, "_mp_context", None)
    return context is not None and context.get_start_method(allow_none=False) == "fork"


async def _at_once() -> None:
    """Begin at once."""


def _slots_of(executor: Executor) -> int:
    """Find out how many calls an executor runs at once: a pool of the standard library knows."""
    known: object = getattr(executor, "_max_workers", None)
    return known if isinstance(known, int) and known > 0 else os.cpu_count() or 1


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


def _end(executor: Executor) -> bool:
    """End an executor without waiting for calls that hang in it; return whether it is known that none runs any more."""
    # Before the shutdown, which forgets them. They run nothing that anybody waits for.
    processes = cast("dict[int, Any]", getattr(executor, "_processes", None) or {})
    children = list(processes.values())
    accepted = inspect.signature(executor.shutdown).parameters
    options: dict[str, Any] = {"cancel_futures": True} if "cancel_futures" in accepted else {}
    executor.shutdown(wait=False, **options)
    are_killed = bool(children)
    for child in children:
        try:
            child.kill()
        except Exception:  # noqa: BLE001  (of others)
            are_killed = False
    for child in children:
        with suppress(Exception):
            child.join(_JOIN_SECONDS)
    return are_killed


_JOIN_SECONDS: Final = 5
