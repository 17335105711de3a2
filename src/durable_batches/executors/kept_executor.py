"""The executor of a placement: made when it is needed, made anew when it has broken, and ended.

What was given as it is stays: it is not ours to end, and cannot be made again.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from contextlib import nullcontext, suppress
from typing import Any, Final, TypeAlias, cast

from durable_batches.clock import Clock, Deadline
from durable_batches.errors import ConfigurationError, ExecutorError
from durable_batches.executors.cluster import ClusterExecutor, foreign
from durable_batches.lifecycle.failures import line_of
from durable_batches.runtime.threads import Threads

__all__ = ["FORKS", "ExecutorOrFactory", "KeptExecutor", "forks", "slots_of"]

_log = logging.getLogger("durable_batches")

ExecutorOrFactory: TypeAlias = Executor | Callable[[], Executor]
"""An executor, or what makes one: only then can one that has broken be replaced."""


class KeptExecutor:
    """Keeps an executor; belongs to the event loop between `open` and `close`.

    Args:
        name: The executor's name.
        given: The executor, or what makes it.
        clock: The worker's.
        retired: Called with the generation that is used no more.
        ended: Called when an executor has been ended, with its generation, and whether it is known that nothing of it
            runs any more.
    """

    def __init__(
        self,
        name: str,
        given: ExecutorOrFactory,
        clock: Clock,
        *,
        retired: Callable[[int], None],
        ended: Callable[[int, bool], None],
    ) -> None:
        self.name: Final = name
        self.generation: int = 0
        self._given = given
        self._clock = clock
        self._retired = retired
        self._has_ended = ended
        self._threads: Threads | None = None
        self._submitting: Threads | None = None
        self._executor: Executor | None = None
        self._slots: int = 1
        self._making = asyncio.Lock()
        self._ending: dict[asyncio.Task[None], Executor] = {}
        self._left: set[asyncio.Task[Future[bytes]]] = set()

    async def open(self, threads: Threads) -> int:
        """Make the executor; return how many calls it runs at once.

        Raises:
            ConfigurationError: Options of a cluster do not fit.
            ExecutorError: It cannot be made, or not be used.
        """
        self._threads = threads
        self._submitting = Threads(1)
        self._making = asyncio.Lock()
        await self.current()
        return self._slots

    async def close(self) -> None:
        """End the executor, with all that it runs, unless it was given as it is; of that, what it has connected."""
        self.retire(self.generation)
        if self.cluster is not None:
            self.end_later(self.cluster)
            self._executor = None
        for submitting in self._left:
            submitting.cancel()
        while self._ending or self._left:
            await asyncio.wait([*self._ending, *self._left])
        if self._submitting is not None:
            self._submitting.close()

    @property
    def can_be_made(self) -> bool:
        """Whether it can be made again."""
        return not isinstance(self._given, Executor)

    @property
    def cluster(self) -> ClusterExecutor | None:
        """It, where it is one of a cluster, which replaces its processes by itself."""
        return self._executor if isinstance(self._executor, ClusterExecutor) else None

    @property
    def is_there(self) -> bool:
        """Whether it is made."""
        return self._executor is not None

    async def current(self) -> tuple[int, Executor]:
        """Return the executor, with its generation; make it where there is none.

        Raises:
            ConfigurationError: Options of a cluster do not fit.
            ExecutorError: It cannot be made, or not be used.
        """
        async with self._making:
            if self._executor is None:
                made = await self.make()
                if isinstance(made, ClusterExecutor):
                    await self._connect(made, again=False)
                else:
                    self._slots = slots_of(made)
                self._executor = made
            return self.generation, self._executor

    async def connect_again(self) -> None:
        """Connect the cluster again, or make its executor again.

        Raises:
            ConfigurationError: Its options do not fit.
            ExecutorError: It is away.
        """
        if self.cluster is None:
            await self.current()
        else:
            await self._connect(self.cluster, again=True)

    async def _connect(self, cluster: ClusterExecutor, *, again: bool) -> None:
        assert self._threads is not None
        connecting = _Making(lambda: cluster.connect(again=again), lambda _: None if again else cluster.disconnect())
        try:
            async with self._threads.one(f"executor {self.name}") as run:
                self._slots = await run(connecting.make)
        except ConfigurationError as error:
            raise ConfigurationError(f"executors[{self.name!r}]: {error}") from error
        except Exception as error:
            raise ExecutorError(self.name, f"connecting it raised {line_of(error)}") from error
        finally:
            connecting.give_up()

    async def stop(self, cluster: ClusterExecutor, future: Future[bytes], *, forced: bool) -> bool:
        """Tell a cluster to stop a call; return whether its place is free."""
        assert self._threads is not None
        try:
            async with self._threads.one(f"executor {self.name}") as run:
                is_free: bool = await run(lambda: cluster.stop(future, forced=forced))
                return is_free
        except Exception as error:  # noqa: BLE001  (of others; where it is away, nothing of it can be told)
            _log.debug("executor %r could not stop a call: %s", self.name, line_of(error), exc_info=error)
            return True

    async def make(self) -> Executor:
        """Make an executor, on a thread: a client of a cluster connects first.

        Raises:
            ExecutorError: It cannot be made, or not be used.
        """
        if isinstance(self._given, Executor):
            return foreign(self._given)
        assert self._threads is not None
        making = _Making(self._given, lambda made: _end(made) if isinstance(made, Executor) else None)
        try:
            async with self._threads.one(f"executor {self.name}") as run:
                made = await run(making.make)
        except Exception as error:
            raise ExecutorError(self.name, f"making it raised {line_of(error)}") from error
        finally:
            # Where it was given up, nobody has what is made.
            making.give_up()
        if not isinstance(made, Executor):
            raise ExecutorError(self.name, f"{self._given!r} made a {type(made).__name__}, which is no Executor")
        if forks(made):
            self.end_later(made)
            raise ExecutorError(self.name, FORKS)
        return foreign(made)

    @property
    def has_processes(self) -> bool:
        """Whether it runs calls in processes, which may have to start first, and tell when a call begins."""
        executor = self._executor
        return executor is None or isinstance(executor, ClusterExecutor) or hasattr(executor, "_processes")

    async def submit(
        self,
        executor: Executor,
        function: Callable[[bytes], bytes],
        message: bytes,
        *,
        given_up: Callable[[Future[bytes]], None] | None = None,
        left: Callable[[asyncio.Task[Future[bytes]]], None] | None = None,
    ) -> Future[bytes]:
        """Submit a call; on a thread, where that may start processes, or wait for a cluster.

        Args:
            executor: The executor.
            function: What it runs.
            message: The call.
            given_up: Called with what was submitted, where this is cancelled meanwhile: nobody else has it.
            left: Called, where this is cancelled meanwhile and a cluster takes its time, with the task that still
                submits.
        """
        if not (isinstance(executor, ClusterExecutor) or _starts_processes(executor)):
            return executor.submit(function, message)
        submitting = asyncio.create_task(
            self._submit(executor, function, message), name=f"durable-batches executor {self.name}"
        )
        try:
            return await asyncio.shield(submitting)
        except asyncio.CancelledError:
            if left is not None and isinstance(executor, ClusterExecutor) and not submitting.done():
                # It may be away, and answer in hours.
                self._left.add(submitting)
                submitting.add_done_callback(self._left.discard)
                left(submitting)
                raise
            while not submitting.done():
                # A process that starts is soon there. Meanwhile the call may be in the queue of the executor.
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([submitting])
            if given_up is not None and submitting.exception() is None:
                given_up(submitting.result())
            raise

    async def _submit(self, executor: Executor, function: Callable[[bytes], bytes], message: bytes) -> Future[bytes]:
        assert self._submitting is not None
        async with self._submitting.one(f"executor {self.name}") as run:
            future: Future[bytes] = await run(lambda: executor.submit(function, message))
            return future

    def retire(self, generation: int) -> None:
        """Use an executor no more; the next call makes another one. What was given as it is stays."""
        if generation != self.generation or self._executor is None or not self.can_be_made:
            return
        executor, self._executor = self._executor, None
        self.generation += 1
        self._retired(generation)
        self.end_later(executor, generation)

    def end_later(self, executor: Executor, generation: int | None = None) -> None:
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
        if generation is not None:
            self._has_ended(generation, runs_nothing)

    async def end_of(self, executor: Executor, seconds: float | None) -> None:
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


def slots_of(executor: Executor) -> int:
    """Find out how many calls an executor runs at once: a pool of the standard library knows."""
    known: object = getattr(executor, "_max_workers", None)
    return known if isinstance(known, int) and known > 0 else os.cpu_count() or 1


class _Making:
    """Makes an executor, or its connection, on a thread; what nobody waits for any more is ended there."""

    def __init__(self, given: Callable[[], object], end: Callable[[object], object]) -> None:
        self._given = given
        self._end = end
        self._lock = threading.Lock()
        self._is_given_up = False
        self._is_made = False

    def make(self) -> object:
        """Make it."""
        made = self._given()
        with self._lock:
            self._is_made = True
            is_lost = self._is_given_up
        if is_lost:
            self._end(made)
        return made

    def give_up(self) -> None:
        """Note that nobody waits for it; nothing happens where it is made."""
        with self._lock:
            self._is_given_up = not self._is_made


def _starts_processes(executor: Executor) -> bool:
    """Whether the next call may have to wait for the start of a process, as in a pool that has not all of its own."""
    processes = _processes_of(executor)
    return processes is not None and len(processes) < slots_of(executor)


def _processes_of(executor: Executor) -> Mapping[int, Any] | None:
    """Return the processes of a pool, by their ids; None: it is no such pool, or was shut down."""
    processes: object = getattr(executor, "_processes", None)
    return cast("dict[int, Any]", processes) if isinstance(processes, dict) else None


def _end(executor: Executor) -> bool:
    """End an executor without waiting for calls that hang in it; return whether it is known that none runs any more."""
    # Before the shutdown, which forgets them. They run nothing that anybody waits for.
    children = list((_processes_of(executor) or {}).values())
    accepted = inspect.signature(executor.shutdown).parameters
    options: dict[str, Any] = {"cancel_futures": True} if "cancel_futures" in accepted else {}
    failed: list[Exception] = []

    def shut_down() -> None:
        try:
            executor.shutdown(wait=bool(children), **options)
        except Exception as error:  # noqa: BLE001  (of others)
            failed.append(error)

    # A pool that is not waited for forgets its processes at once, also where its own thread is replacing one of them.
    ending = threading.Thread(target=shut_down, name="durable-batches-end", daemon=True)
    ending.start()
    while ending.is_alive() and not getattr(executor, "_shutdown_thread", True):
        ending.join(0.001)
    are_killed = bool(children)
    for child in children:
        try:
            child.kill()
        except Exception:  # noqa: BLE001  (of others)
            are_killed = False
    for child in children:
        with suppress(Exception):
            child.join(_JOIN_SECONDS)
    ending.join(_JOIN_SECONDS if children else _SHUTDOWN_SECONDS)
    if failed:
        raise failed[0]
    if not children and ending.is_alive():
        raise TimeoutError(f"its shutdown has not returned within {_SHUTDOWN_SECONDS:g} s, and goes on in a thread")
    return are_killed


_JOIN_SECONDS: Final = 5
_SHUTDOWN_SECONDS: Final = 15
"""For which the shutdown of an executor without processes of its own is waited for: that of a cluster may hang."""
