"""What blocks an event loop is found, named once, and told; nothing else is."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from io import BytesIO
from shutil import copyfileobj

import pytest

from durable_batches.lifecycle.records import WorkerId
from durable_batches.testing import ManualClock
from durable_batches.worker.loop_watch import LoopWatch
from durable_batches.worker.signals import LeaseSignals

WORKER = WorkerId("w")
AFTER = timedelta(seconds=1)
TICK = 0.5


class Scene:
    """A watch on a clock that stands still; looks are taken on another thread, while a test blocks its loop."""

    def __init__(self, after: timedelta | None = AFTER) -> None:
        self.clock = ManualClock()
        self.signals = LeaseSignals()
        self.watch = LoopWatch(WORKER, self.clock, after=after, tick=TICK, running=lambda: (), signals=self.signals)

    def look(self, *pauses: float) -> Sequence[bool]:
        """Look after each of these pauses, in seconds."""
        answers: list[bool] = []
        for seconds in pauses:
            self.clock.advance(seconds)
            answers.append(self.watch.look())
        return answers

    def look_while(self, blocks: Callable[[threading.Lock], object], *pauses: float) -> Sequence[bool]:
        """The same on another thread, while this one, which has the loop, waits for a lock in a function."""
        returns = threading.Lock()
        returns.acquire()
        return self.look_within(blocks, lambda: blocks(returns), returns.release, *pauses)

    def look_within(
        self, function: Callable[..., object], call: Callable[[], object], end: Callable[[], object], *pauses: float
    ) -> Sequence[bool]:
        """Look while this thread makes a call that is in this function, and then have it return."""
        answers: list[Sequence[bool]] = []
        looping = threading.get_ident()

        def look() -> None:
            while sys._current_frames()[looping].f_code is not function.__code__:
                pass
            answers.append(self.look(*pauses))
            end()

        thread = threading.Thread(target=look)
        thread.start()
        call()
        thread.join()
        return answers[0]


def blocks(returns: threading.Lock) -> None:
    returns.acquire()


def blocks_elsewhere(returns: threading.Lock) -> None:
    returns.acquire()


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno == logging.WARNING]


async def test_a_block_is_named_with_its_stack(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    began = scene.clock.boot()
    with scene.signals.blocked.listen() as blocked:
        assert scene.look_while(blocks, 1, 0.25, 0.25, 0.25) == [False, False, False, True]
    block = scene.watch.block
    assert blocked.heard == [block]
    assert block is not None
    line = blocks.__code__.co_firstlineno + 1
    assert block.place == f"{__file__}:{line} in blocks"
    assert (block.since, block.until) == (began, None)
    (warning,) = warnings(caplog)
    assert warning.message.startswith(
        f"event loop of worker w blocked for 1.8 s: code does not let it turn, at {__file__}"
    )
    assert warning.message.endswith(f'  File "{__file__}", line {line}, in blocks\n    returns.acquire()')
    assert "asyncio" not in warning.message.partition("\n")[2], "the loop's own frames tell nothing"
    assert warning.__dict__["place"] == block.place
    assert warning.__dict__["worker_id"] == WORKER


async def test_each_place_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    caplog.set_level(logging.INFO)
    for call in (blocks, blocks, blocks_elsewhere, blocks):
        assert scene.look_while(call, 2, 0.25) == [False, True]
        scene.watch.turns()
        assert scene.look(0.25) == [True]
    places = [record.__dict__["place"].rpartition(" ")[2] for record in warnings(caplog)]
    assert places == ["blocks", "blocks_elsewhere"]


async def test_the_end_of_a_block_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    scene = Scene()
    began = scene.clock.boot()
    assert scene.look_while(blocks, 2, 0.25, 0.25, 60) == [False, True, False, False], (
        "it is told once that it is blocked"
    )
    scene.watch.turns()
    assert scene.look(0.25, 0.25) == [True, False]
    block = scene.watch.block
    assert block is not None
    assert (block.since, block.until) == (began, began + 62.5)
    assert caplog.records[-1].message == "event loop of worker w turns again after 62.5 s"


async def test_short_blocks_are_nobodys_business(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    for _ in range(20):
        assert not any(scene.look_while(blocks, 0.25, 0.25, 0.25, 0.25, 0.25))
        scene.watch.turns()
    assert scene.watch.block is None
    assert not warnings(caplog)


async def test_a_clock_that_was_moved_on_is_no_block(caplog: pytest.LogCaptureFixture) -> None:
    """As in a test, or when a process was stopped: the loop has had no time to turn."""
    scene = Scene()
    for _ in range(5):
        assert scene.look_while(blocks, 3600, 0, 0) == [False, False, False]
        scene.watch.turns()
    assert scene.watch.block is None
    assert not warnings(caplog)


async def test_a_loop_that_waits_is_not_blocked(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    loop_thread = threading.get_ident()

    def look() -> Sequence[bool]:
        while sys._current_frames()[loop_thread].f_globals["__name__"] != "selectors":
            pass
        return scene.look(3600, 3600, 3600)

    assert await asyncio.to_thread(look) == [False, False, False]
    assert not warnings(caplog)


async def test_nothing_is_watched_without_a_time(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(after=None)
    assert scene.look_while(blocks, 3600, 3600, 3600) == [False, False, False]
    assert scene.watch.block is None
    assert not warnings(caplog)
    assert scene.watch.pause > 0


async def test_a_place_is_in_code_of_the_users_own(caplog: pytest.LogCaptureFixture) -> None:
    """And not in Python's own, which that has called; the stack has both."""
    scene = Scene()
    source, sink = os.pipe()

    def copies() -> None:
        with open(source, "rb", buffering=0) as file:
            copyfileobj(file, BytesIO())

    scene.look_within(copyfileobj, copies, lambda: os.close(sink), 2, 0.25)
    assert scene.watch.block is not None
    assert scene.watch.block.place.startswith(__file__)
    assert scene.watch.block.place.endswith("copies")
    (warning,) = warnings(caplog)
    assert "in copyfileobj" in warning.message
