"""The exit watch: a process that was asked to stop ends, also where a thread or a process of the user's never does.

Asyncio waits for the threads of `asyncio.to_thread()` when its event loop ends, and the interpreter for all others that
are no daemons, for pools and for the processes of `multiprocessing`; all without a limit (asyncio: none before Python
3.12, then five minutes). Nothing else is bounded here: code that runs on the main thread, or on its event loop, has all
the time that it takes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import Enum, auto
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from durable_batches.clock import Clock, SystemClock

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

__all__ = ["EXIT_PATIENCE_SECONDS", "leave_exit", "watch_exit"]

_log = logging.getLogger("durable_batches")

EXIT_PATIENCE_SECONDS: Final = 10.0
"""How long the main thread may wait for threads and processes, and do nothing else, before the process is ended."""

_LOOKS: Final = 20
"""In that time. Looks are counted, and not seconds: a machine that sleeps has left the threads no time."""

_TELLING_SECONDS: Final = 5.0
"""How long the log and the output have to be written: a thread may hold their locks, and nobody read the other end."""

_MAX_NAMED: Final = 5
"""Threads whose stacks are logged, and processes that are named."""
_MAX_FRAMES: Final = 12
"""Innermost frames of each."""

_JOINING_MODULES: Final = ("threading", "concurrent.futures.thread", "concurrent.futures.process", "selectors")
"""And those of `multiprocessing`."""
_LAST_FUNCTIONS: Final = (("threading", "_shutdown"), ("multiprocessing.util", "_exit_function"))
"""With which the interpreter ends: where nothing but the modules above has been called by them, it waits."""


class _Join(Enum):
    """Who waits for threads or processes on the main thread."""

    ASYNCIO = auto()
    INTERPRETER = auto()


def watch_exit(code: int, loop: asyncio.AbstractEventLoop) -> None:
    """Have the process end with this code if it comes to do nothing but to wait for threads and processes.

    Once it is watched, this changes the code.

    To be called once the work is given up after a signal to stop. It has no effect on a process that does not end.

    Args:
        code: The exit code that the process is to have.
        loop: The event loop of the main thread, whose end is watched.
    """
    _watch.begin(code, loop)


def leave_exit() -> None:
    """Have the process end as it likes: what was asked to stop has ended by itself, and the program goes on."""
    _watch.leave()


class _ExitWatch:
    """Watches the main thread from a daemon thread, and logs from another; a process has one of each at most."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._process: int | None = None
        self._code = 0
        self._ends = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self, code: int, loop: asyncio.AbstractEventLoop) -> None:
        """See `watch_exit`."""
        self._code, self._loop, self._ends = code, loop, True
        # A child that was forked has none of its parent's threads.
        if self._process == os.getpid():
            return
        # Without a further thread the process still ends, unless another one never does.
        with suppress(RuntimeError):
            over = threading.Event()
            # Both now: while the interpreter ends, Python 3.12 starts none.
            teller = threading.Thread(target=self._tell, args=(over,), name="durable-batches-exit-log", daemon=True)
            teller.start()
            watch = threading.Thread(target=self._watch, args=(over, teller), name="durable-batches-exit", daemon=True)
            watch.start()
            self._process = os.getpid()

    def leave(self) -> None:
        """See `leave_exit`."""
        self._ends = False

    def _watch(self, over: threading.Event, teller: threading.Thread) -> None:
        alarm = self.clock.alarm()
        join: _Join | None = None
        looks = 0
        while looks < _LOOKS:
            alarm.wait(EXIT_PATIENCE_SECONDS / _LOOKS)
            before, join = join, self._join()
            looks = looks + 1 if join is not None and join is before else 0
        over.set()
        teller.join(_TELLING_SECONDS)
        for child in _left_processes():
            with suppress(Exception):
                child.terminate()
        os._exit(self._code)

    def _join(self) -> _Join | None:
        """Return who waits, where the main thread does nothing else."""
        # Documented for just this, in spite of its name.
        frame = sys._current_frames().get(threading.main_thread().ident or 0)  # pyright: ignore[reportPrivateUsage]
        if frame is None or not self._ends:
            return None
        if _is_interpreters_join(frame):
            return _Join.INTERPRETER
        return _Join.ASYNCIO if _is_of_the_loop(frame) and self._loop_joins() else None

    def _loop_joins(self) -> bool:
        """Return whether all that the event loop has left to do is to wait for its threads."""
        loop = self._loop
        if loop is None or not loop.is_running():
            return False
        try:
            tasks = asyncio.all_tasks(loop)
        except RuntimeError:
            # They change all the time.
            return False
        return bool(tasks) and all(map(_is_executors_shutdown, tasks))

    def _tell(self, over: threading.Event) -> None:
        over.wait()
        with suppress(Exception):
            self._log()
        # As the interpreter does when it ends; atexit functions are not called, which belong to the main thread.
        for flush in (logging.shutdown, _flush):
            with suppress(Exception):
                flush()

    def _log(self) -> None:
        threads, processes = _left_threads(), _left_processes()
        names = [thread.name for thread in threads]
        pids = [process.pid for process in processes]
        left = [*map(repr, names[:_MAX_NAMED]), *(f"{each.name!r} ({each.pid})" for each in processes[:_MAX_NAMED])]
        stacks = "".join(f"\nthread {thread.name!r}:\n{text}" for thread, text in list(threads.items())[:_MAX_NAMED])
        _log.error(
            "process ends with exit code %d: it was asked to stop, and only waits for %s that %s not end: %s; "
            "sync activities run in threads that need not be waited for%s",
            self._code,
            " and ".join(_count(*each) for each in ((len(names), "thread"), (len(pids), "process")) if each[0]),
            "does" if len(names) + len(pids) == 1 else "do",
            ", ".join(left) + (", ..." if len(left) < len(names) + len(pids) else ""),
            stacks,
            extra={
                "exit_code": self._code,
                "threads": len(names),
                "thread_names": names[:_MAX_NAMED],
                "process_ids": pids[:_MAX_NAMED],
            },
        )


_watch: Final = _ExitWatch(SystemClock())


def _count(number: int, what: str) -> str:
    if number == 1:
        return f"1 {what}"
    return f"{number} {what}{'es' if what.endswith('s') else 's'}"


def _is_interpreters_join(innermost: FrameType) -> bool:
    """Whether this waits for threads or processes at the end of the interpreter; not in a function that it calls."""
    frame: FrameType | None = innermost
    while frame is not None:
        module = _module_of(frame)
        if (module, frame.f_code.co_name) in _LAST_FUNCTIONS:
            return True
        if module not in _JOINING_MODULES and module.partition(".")[0] != "multiprocessing":
            return False
        frame = frame.f_back
    return False


def _is_of_the_loop(innermost: FrameType) -> bool:
    """Whether the event loop itself waits, and no code that it has called. One in C has no frames of its own."""
    module = _module_of(innermost)
    return module == "selectors" or module.partition(".")[0] in ("asyncio", "uvloop")


def _is_executors_shutdown(task: asyncio.Task[Any]) -> bool:
    return getattr(task.get_coro(), "__name__", None) == "shutdown_default_executor"


def _left_threads() -> Mapping[threading.Thread, str]:
    """Return the threads that are waited for, with the ends of their stacks."""
    frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
    found: dict[threading.Thread, str] = {}
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if frame is None or thread is threading.main_thread() or _is_machinery(frame):
            continue
        if thread.daemon and not _writes_to_a_queue(frame):
            continue
        found[thread] = "".join(_stack(frame)).rstrip()
    return found


def _left_processes() -> Sequence[BaseProcess]:
    """Return the processes of `multiprocessing` that are waited for."""
    if "multiprocessing" not in sys.modules:
        return ()
    from multiprocessing import active_children

    with suppress(Exception):
        return active_children()
    return ()


def _stack(innermost: FrameType) -> Sequence[str]:
    return traceback.format_list(traceback.extract_stack(innermost)[-_MAX_FRAMES:])


def _is_machinery(innermost: FrameType) -> bool:
    """Whether this is a thread that waits for others, or for processes, or one of a pool that has nothing to run."""
    if (_module_of(innermost), innermost.f_code.co_name) == ("concurrent.futures.thread", "_worker"):
        return True
    return _is_within(innermost, "asyncio.base_events", "_do_shutdown") or _is_within(
        innermost, "concurrent.futures.process"
    )


def _writes_to_a_queue(innermost: FrameType) -> bool:
    """Whether this is the thread of a queue of `multiprocessing`, which is waited for until all is read; not idle."""
    return _is_within(innermost, "multiprocessing.queues", "_feed") and _module_of(innermost) != "threading"


def _is_within(innermost: FrameType, module: str, function: str | None = None) -> bool:
    """Whether this function of a module, or any of it, is being called."""
    frame: FrameType | None = innermost
    while frame is not None:
        if _module_of(frame) == module and function in (None, frame.f_code.co_name):
            return True
        frame = frame.f_back
    return False


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


def _module_of(frame: FrameType) -> str:
    name: object = frame.f_globals.get("__name__", "")
    return name if isinstance(name, str) else ""
