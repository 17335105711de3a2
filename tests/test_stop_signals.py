"""The signals that ask a process to stop: told once to all who listen, in front of whatever handles them."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest
from tests.support import unmeasured

from durable_batches.stop_signals import Precedence, StopListener, StopSignal
from durable_batches.testing import ManualClock

TERM: Final = signal.SIGTERM
INT: Final = signal.SIGINT


class Heard:
    """A listener, and what it was told."""

    def __init__(self, precedence: Precedence) -> None:
        self.told: list[StopSignal] = []
        self.listener = StopListener(self.told.append, precedence)

    @property
    def counts(self) -> list[tuple[int, bool]]:
        return [(each.ordinal, each.alone) for each in self.told]


pytestmark = pytest.mark.usefixtures("signal_clock")


class Host:
    """A server that handles a signal."""

    def __init__(self) -> None:
        self.received = 0
        self._before: Any = None

    def handle(self, *_: object) -> None:
        self.received += 1

    def __enter__(self) -> Host:
        self._before = signal.signal(TERM, self.handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(TERM, self._before)


def test_a_listener_beside_leaves_the_signal_to_the_server() -> None:
    heard = Heard(Precedence.BESIDE)
    with Host() as host:
        assert heard.listener.listen()
        signal.raise_signal(TERM)
        assert (heard.counts, host.received) == ([(1, False)], 1)
        heard.listener.leave()
        assert signal.getsignal(TERM) == host.handle


def test_a_listener_over_python_is_alone_where_nothing_else_handles_it() -> None:
    heard = Heard(Precedence.OVER_PYTHON)
    heard.listener.listen()
    signal.raise_signal(TERM)
    signal.raise_signal(INT)  # by default a KeyboardInterrupt
    assert heard.told == [StopSignal(TERM, 1, alone=True)], "the other one was an echo"
    heard.listener.leave()


def test_what_asyncio_does_at_ctrl_c_counts_as_pythons_own() -> None:
    heard = Heard(Precedence.OVER_PYTHON)

    async def main() -> str:
        heard.listener.listen()
        signal.raise_signal(INT)
        await asyncio.sleep(0)
        heard.listener.leave()
        return "not cancelled"

    assert asyncio.run(main()) == "not cancelled"
    assert heard.told == [StopSignal(INT, 1, alone=True)]


def test_a_listener_over_python_is_beside_a_server() -> None:
    heard = Heard(Precedence.OVER_PYTHON)
    with Host() as host:
        heard.listener.listen()
        signal.raise_signal(TERM)
        heard.listener.leave()
    assert (heard.counts, host.received) == ([(1, False)], 1)


def test_a_listener_over_all_takes_the_place_of_a_server() -> None:
    heard = Heard(Precedence.OVER_ALL)
    with Host() as host:
        heard.listener.listen()
        signal.raise_signal(TERM)
        heard.listener.leave()
    assert (heard.counts, host.received) == ([(1, True)], 0)


def test_who_listens_unless_others_do_leaves_it_to_them() -> None:
    heard, other = Heard(Precedence.UNLESS_OTHERS), Heard(Precedence.OVER_PYTHON)
    heard.listener.listen()
    other.listener.listen()
    signal.raise_signal(TERM)
    assert (heard.counts, other.counts) == ([(1, False)], [(1, True)])
    other.listener.leave()
    signal.raise_signal(TERM)
    assert heard.counts == [(1, False), (1, True)]
    heard.listener.leave()


def test_signals_are_counted_but_their_echoes(signal_clock: ManualClock) -> None:
    heard = Heard(Precedence.OVER_PYTHON)
    heard.listener.listen()
    for pause in (0, 0.4, 0.2, 0):
        signal_clock.advance(pause)
        signal.raise_signal(TERM)
    assert heard.counts == [(1, True), (2, True)]
    heard.listener.leave()
    heard.listener.listen()
    signal.raise_signal(TERM)
    assert heard.counts[2:] == [(1, True)], "counted anew"
    heard.listener.leave()


def test_the_third_signal_ends_the_process_at_once(signal_clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(code: int) -> None:
        raise ChildProcessError(code)

    monkeypatch.setattr("durable_batches.stop_signals.os._exit", end)
    heard = Heard(Precedence.OVER_PYTHON)
    heard.listener.listen()
    for _ in range(2):
        signal.raise_signal(TERM)
        signal_clock.advance(1)
    with pytest.raises(ChildProcessError, match="143"):
        signal.raise_signal(TERM)
    heard.listener.leave()


def test_a_server_hears_of_as_many_signals_as_there_are(signal_clock: ManualClock) -> None:
    heard = Heard(Precedence.OVER_PYTHON)
    with Host() as host:
        heard.listener.listen()
        for _ in range(4):
            signal.raise_signal(TERM)
            signal_clock.advance(1)
        heard.listener.leave()
    assert (len(heard.told), host.received) == (4, 4)


def test_a_signal_that_a_server_raises_again_is_not_the_second_one() -> None:
    """As uvicorn does when it has stopped, and has put back the handlers that it found."""
    heard = Heard(Precedence.OVER_PYTHON)
    heard.listener.listen()
    with Host() as host:
        other = Heard(Precedence.BESIDE)
        other.listener.listen()
        signal.raise_signal(TERM)
        assert heard.counts == [(1, False)]
        other.listener.leave()
    signal.raise_signal(TERM)
    assert heard.counts == [(1, False), (1, True)]
    assert host.received == 1
    heard.listener.leave()


def test_a_signal_is_told_once_where_a_handler_in_between_calls_the_one_before() -> None:
    first, last = Heard(Precedence.OVER_PYTHON), Heard(Precedence.BESIDE)
    first.listener.listen()
    ours: Any = signal.getsignal(TERM)
    received: list[int] = []

    def between(number: int, frame: Any) -> None:
        received.append(number)
        ours(number, frame)

    signal.signal(TERM, between)
    last.listener.listen()
    signal.raise_signal(TERM)
    assert (len(first.told), len(last.told), received) == (1, 1, [TERM])
    first.listener.leave()
    last.listener.leave()
    assert signal.getsignal(TERM) is between
    signal.signal(TERM, ours.before)


def test_they_may_leave_in_any_order() -> None:
    first, second = Heard(Precedence.OVER_PYTHON), Heard(Precedence.OVER_PYTHON)
    first.listener.listen()
    second.listener.listen()
    first.listener.leave()
    first.listener.leave()
    signal.raise_signal(TERM)
    assert (first.told, second.counts) == ([], [(1, True)])
    second.listener.leave()
    assert signal.getsignal(TERM) is signal.SIG_DFL


def test_a_handler_that_was_installed_since_stays() -> None:
    heard = Heard(Precedence.OVER_PYTHON)
    heard.listener.listen()
    with Host() as host:
        heard.listener.leave()
        signal.raise_signal(TERM)
        assert signal.getsignal(TERM) == host.handle
    assert (heard.told, host.received) == ([], 1)
    # What it had found, and put back, is ours, which nobody needs any more.
    signal.signal(TERM, signal.SIG_DFL)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    heard = Heard(Precedence.OVER_ALL)
    before = signal.signal(TERM, signal.SIG_IGN)
    heard.listener.listen()
    signal.raise_signal(TERM)
    assert heard.told == []
    heard.listener.leave()
    assert signal.signal(TERM, before) is signal.SIG_IGN


def test_only_the_main_thread_can_listen() -> None:
    with ThreadPoolExecutor() as pool:
        assert pool.submit(Heard(Precedence.OVER_ALL).listener.listen).result() is False


FORKS: Final = """
import os, signal, time
from durable_batches.stop_signals import Precedence, StopListener
StopListener(print, Precedence.OVER_ALL).listen()
child = os.fork()
if child == 0:
    signal.raise_signal(signal.SIGTERM)
    os._exit(0)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.processes
def test_a_child_that_was_forked_can_be_ended() -> None:
    """As pools of processes end theirs: it has the handler, and nobody who does what it asks for."""
    command = [sys.executable, "-W", "error", "-c", FORKS]
    ran = subprocess.run(command, env=unmeasured(), capture_output=True, text=True, timeout=60, check=False)
    assert (ran.stdout, ran.stderr) == (f"{-TERM}\n", "")
