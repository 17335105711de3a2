"""What a test of the lanes `unit` and `stores` may not do: wait for time to pass, start processes, be left to chance.

Watched while the tests run, and not looked for in their text: a name, a variable or a helper in between does not
hide it. Waiting is what counts, and not that somebody might: a timer that was set by a test and that fires, a sleep
of a thread, a wait of a thread that came to the end of its patience. Timers of the library and of other packages are
theirs. A test that needs real time is marked so, with the reason: `@pytest.mark.real_time("why")`. One that starts
processes is of the lane `processes`. Chance has the same seed in every run.
"""

from __future__ import annotations

import multiprocessing.process
import random
import sys
import sysconfig
import threading
import time
from asyncio import BaseEventLoop, TimerHandle
from collections.abc import Callable, Generator
from contextvars import Context
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest
from hypothesis import settings
from tests.lanes.plugin import lane_of
from tests.properties import SAME_EVERY_TIME

ROOT: Final = Path(__file__).parents[2]

_STANDARD_LIBRARY: Final = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), "<frozen ")
_PACKAGES: Final = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
_MACHINERY: Final = ("pytest", "_pytest", "pluggy", "xdist", "execnet", "hypothesis")
"""What runs tests: a coroutine that has become a task of its own is called by nothing else."""
_TESTS: Final = tuple(str(ROOT / folder) for folder in ("tests", "examples"))

_POLLS: Final = {
    (str(ROOT / "tests" / "support.py"), "eventually"),
    (str(ROOT / "tests" / "processes" / "children.py"), "until"),
    (str(ROOT / "tests" / "processes" / "clocks.py"), "HastyAlarm.wait"),
}
"""They ask again and again, and how long they do so decides failures only."""
_EQUIPMENT: Final = frozenset(str(ROOT / "tests" / "postgres" / f"{name}.py") for name in ("server", "proxy", "pooler"))
"""Servers are processes, and take their time; networks too."""

_PROCESS_EVENTS: Final = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"})


@dataclass
class Watch:
    """What one test did that its lane does not allow."""

    lane: str
    real_time: bool
    faults: list[str] = field(default_factory=list[str])

    def waited(self, what: str, frame: FrameType | None) -> None:
        if not self.real_time and frame is not None:
            self.faults.append(f"{what} at {_place(frame)}")


_watch: Watch | None = None


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"


class _Code(Enum):
    """Whose code a file is."""

    TEST = auto()
    IN_BETWEEN = auto()
    """Of the standard library: what stands behind it counts."""
    ELSE = auto()


@cache  # each timer of each test asks
def _code_in(name: str) -> _Code:
    if name in _EQUIPMENT:
        return _Code.ELSE
    if name.startswith(_PACKAGES):
        package = name[len(_PACKAGES[0]) + 1 :]
        return _Code.TEST if package.startswith(_MACHINERY) else _Code.ELSE
    if name.startswith(_TESTS):
        return _Code.TEST
    return _Code.IN_BETWEEN if name.startswith(_STANDARD_LIBRARY) else _Code.ELSE


def _in_a_test(frame: FrameType | None) -> FrameType | None:
    """The frame of a test that stands behind this one; None if it is the library's or another package's doing."""
    while frame is not None:
        code = frame.f_code
        whose = _code_in(code.co_filename)
        if whose is not _Code.IN_BETWEEN:
            is_tests = whose is _Code.TEST and (code.co_filename, code.co_qualname) not in _POLLS
            return frame if is_tests else None
        frame = frame.f_back
    return None


def _watch_timers() -> None:
    original = BaseEventLoop.call_at

    def call_at(
        loop: BaseEventLoop, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> TimerHandle:
        watch = _watch
        if watch is not None and not watch.real_time and when > loop.time():
            frame = _in_a_test(sys._getframe(1))
            if frame is not None:
                place = _place(frame)
                inner = callback

                def fired(*arguments: Any) -> None:
                    watch.faults.append(f"a timer fired that was set at {place}")
                    inner(*arguments)

                callback = fired
        return original(loop, when, callback, *args, context=context)

    BaseEventLoop.call_at = call_at  # type: ignore[method-assign, assignment]  # it is less generic


def _watch_threads() -> None:
    sleep_of_time = time.sleep
    wait_of_condition = threading.Condition.wait

    def sleep(seconds: float) -> None:
        if _watch is not None and seconds > 0:
            _watch.waited(f"slept {seconds} s", _in_a_test(sys._getframe(1)))
        sleep_of_time(seconds)

    def wait(condition: threading.Condition, timeout: float | None = None) -> bool:
        notified = wait_of_condition(condition, timeout)
        if not notified and timeout is not None and timeout > 0 and _watch is not None:
            _watch.waited(f"a thread waited {timeout} s in vain", _in_a_test(sys._getframe(1)))
        return notified

    time.sleep = sleep  # type: ignore[assignment]  # it takes seconds by position, too, but names them
    threading.Condition.wait = wait  # type: ignore[method-assign, assignment]  # mypy counts `self` twice


def _watch_processes() -> None:
    start_of_process = multiprocessing.process.BaseProcess.start

    def seen() -> None:
        if _watch is None:
            return
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            if frame.f_code.co_filename in _EQUIPMENT:
                return
            frame = frame.f_back
        _watch.faults.append("started a process; mark it for the lane `processes`")

    def hook(event: str, _: tuple[object, ...]) -> None:
        if event in _PROCESS_EVENTS:
            seen()

    def start(process: multiprocessing.process.BaseProcess) -> None:
        seen()
        start_of_process(process)

    sys.addaudithook(hook)
    multiprocessing.process.BaseProcess.start = start  # type: ignore[method-assign, assignment]  # as above


_watch_timers()
_watch_threads()
_watch_processes()


@pytest.hookimpl
def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile(SAME_EVERY_TIME)
    config.addinivalue_line("markers", "real_time(reason): waits for real time to pass, or measures it")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    global _watch
    random.seed(item.nodeid)
    marker = item.get_closest_marker("real_time")
    lane = lane_of(item, item.config.rootpath)
    if lane in ("unit", "stores"):
        _watch = Watch(lane, real_time=marker is not None)
    try:
        return (yield)
    finally:
        _watch = None


def _refuse() -> None:
    if _watch is not None and _watch.faults:
        faults, _watch.faults = _watch.faults, []
        pytest.fail("it " + "\nit ".join(dict.fromkeys(faults)), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    result = yield
    _refuse()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, Any, Any]:
    result = yield
    _refuse()
    return result
