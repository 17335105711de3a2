"""Pools of processes that end with their worker, however it ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal

from durable_batches.errors import ConfigurationError
from durable_batches.options import check_choice, check_integer

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

__all__ = ["ProcessPool", "process_pool"]

# `multiprocessing` is imported where it is needed: every worker imports this module, and few have processes.

_START_METHODS: Final = ("forkserver", "spawn")


class ProcessPool:
    """Makes pools of processes: one for a worker, and another one each time that the pool has broken.

    Args:
        processes: As many calls run at once.
        calls_per_process: The calls after which a process is replaced; None: it runs any number.
        start_method: How processes are started.
    """

    def __init__(
        self, processes: int, calls_per_process: int | None, start_method: Literal["forkserver", "spawn"]
    ) -> None:
        self.processes: Final = processes
        self.calls_per_process: Final = calls_per_process
        self.start_method: Final = start_method

    def __call__(self) -> ProcessPoolExecutor:
        """Make a pool. Its processes are started as they are needed."""
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        return ProcessPoolExecutor(
            self.processes,
            mp_context=multiprocessing.get_context(self.start_method),
            initializer=_begin,
            max_tasks_per_child=self.calls_per_process,
        )

    def __repr__(self) -> str:
        return f"<process pool of {self.processes}>"


def process_pool(
    processes: int | None = None,
    *,
    calls_per_process: int | None = None,
    start_method: Literal["forkserver", "spawn"] = "spawn",
) -> ProcessPool:
    """Make pools of processes for a worker: `Worker(executors={"cpu": ...})`.

    The processes end with the worker's, also where that is killed; they leave Ctrl-C to it, and are never forked from a
    process that has threads.

    Args:
        processes: As many calls run at once; by default, one for each processor.
        calls_per_process: The calls after which a process is replaced, for code that leaks memory; None: never.
        start_method: "spawn" starts each process anew; "forkserver" forks them from a server process, which is faster
            where many are started, and not there on Windows.

    Raises:
        ConfigurationError: A number is below 1, or the system does not have the start method.
    """
    check_integer("processes", processes, optional=True)
    check_integer("calls_per_process", calls_per_process, optional=True)
    check_choice("start_method", start_method, _START_METHODS)
    if (processes is not None and processes < 1) or (calls_per_process is not None and calls_per_process < 1):
        raise ConfigurationError("processes and calls_per_process must be 1 or more")
    if start_method == "forkserver" and sys.platform == "win32":
        raise ConfigurationError(f"start_method {start_method!r} is not there on this system")
    return ProcessPool(processes or os.cpu_count() or 1, calls_per_process, start_method)


def _begin() -> None:
    """Prepare a process of the pool: it ends with its parent, and leaves Ctrl-C to it.

    A terminal sends that to both; the worker drains, and the calls that run are to finish.
    """
    with suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    from multiprocessing import parent_process

    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), name="durable-batches parent", daemon=True).start()


def _end_with(sentinel: int) -> None:
    from multiprocessing.connection import wait

    wait([sentinel])
    # At once: nobody is there to take the result of what runs.
    os._exit(1)
