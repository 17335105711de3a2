"""The signals that ask a process to stop, for each part of it that wants to end in good order.

One handler stands in front of the one that was there, and tells those who listen. What was there is called as well,
unless a listener takes its place. Nothing is patched, and the handler is put back when nobody listens any more.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from enum import Enum, auto
from functools import partial
from types import FrameType
from typing import Any, Final, NamedTuple, TypeAlias

from durable_batches.clock import Clock, SystemClock

__all__ = ["CTRL_C", "STOP_SIGNALS", "Precedence", "StopListener", "StopSignal"]

CTRL_C: Final = (signal.SIGINT,)

if sys.platform == "win32":
    STOP_SIGNALS: Final = (*CTRL_C, signal.SIGTERM, signal.SIGBREAK)
else:
    STOP_SIGNALS: Final = (*CTRL_C, signal.SIGTERM)

_FORCED: Final = 3
"""The signal of this number ends the process at once."""

_ECHO_SECONDS: Final = 0.5
"""A signal that follows this soon is not counted: `timeout` and others signal the process and its group."""

_Before: TypeAlias = Any  # a handler, as `signal.getsignal` returns it


class Precedence(Enum):
    """What becomes of the handler that was there before a listener."""

    BESIDE = auto()
    """It is called as well, whatever it is."""
    UNLESS_OTHERS = auto()
    """As OVER_PYTHON, where no other listener takes its place; where one does, all is left to that."""
    OVER_PYTHON = auto()
    """It is called as well if the application or its server has installed it; what Python does by itself (end the
    process, raise KeyboardInterrupt, cancel the main task) does not happen."""
    OVER_ALL = auto()
    """It is not called."""


class StopSignal(NamedTuple):
    """A signal that asks the process to stop, as a listener receives it."""

    number: int
    ordinal: int
    """Of those that the listener has received, from 1; those with another `alone` are not counted: a
    server raises the signal again when it has stopped."""
    alone: bool
    """Whether the listener takes the place of the handler that was there: then it is to end the process."""


class StopListener:
    """Listens for the signals that ask the process to stop.

    A third one ends the process at once, where it takes another handler's place. A signal that the process ignores
    (`nohup`, a shell's background job) stays ignored, and so does one whose handler was not installed from Python.

    Args:
        told: Called in the handler: between two instructions of the main thread, also while the event loop is blocked.
        precedence: Whether it takes the place of the handler that was there.
        numbers: The signals.
    """

    def __init__(
        self,
        told: Callable[[StopSignal], object],
        precedence: Precedence,
        numbers: Collection[signal.Signals] = STOP_SIGNALS,
    ) -> None:
        self._told = told
        self.precedence: Final = precedence
        self.numbers: Final = numbers
        self._counts: dict[bool, int] = {}
        self._latest: dict[bool, float] = {}

    def listen(self) -> bool:
        """Begin to listen, and to count; or anew, in front of handlers that were installed since.

        Returns:
            False: this is not the main thread, and only that one can have handlers.
        """
        if threading.current_thread() is not threading.main_thread():
            return False
        self._counts, self._latest = {}, {}
        _switchboard.add(self)
        return True

    def leave(self) -> None:
        """Listen no more. The last one puts back the handlers that were there, where no others are installed since."""
        _switchboard.remove(self)

    def replaces(self, number: int, before: _Before) -> bool:
        """Return whether it takes the place of this handler of a signal, as far as that is for itself to say."""
        if number not in self.numbers:
            return False
        match self.precedence:
            case Precedence.BESIDE:
                return False
            case Precedence.OVER_PYTHON | Precedence.UNLESS_OTHERS:
                return _is_pythons_own(before)
            case Precedence.OVER_ALL:
                return True

    def receive(self, number: int, now: float, *, alone: bool) -> None:
        """Take note of a signal, and tell of it unless it is an echo."""
        if number not in self.numbers:
            return
        latest = self._latest.get(alone)
        if latest is not None and now - latest < _ECHO_SECONDS:
            return
        self._latest[alone] = now
        count = self._counts[alone] = self._counts.get(alone, 0) + 1
        if alone and count >= _FORCED:
            os._exit(128 + number)
        self._told(StopSignal(number, count, alone))


class _Handler:
    """A handler in front of another one. A child that was forked has it, too, and nobody who listens."""

    def __init__(self, before: _Before) -> None:
        self.before: Final = before
        self._process = os.getpid()

    @property
    def is_of_this_process(self) -> bool:
        """Whether it was not inherited from the process that this one was forked from."""
        return self._process == os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.is_of_this_process:
            _switchboard.receive(number, self.before, partial(self._pass_on, number, frame))
        else:
            self._pass_on(number, frame)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if callable(self.before):
            self.before(number, frame)
        elif self.before is signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


class _Switchboard:
    """Who listens in this process. Changed and read on the main thread only, but for those who leave elsewhere."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._listeners: list[StopListener] = []
        self._is_receiving = False

    def add(self, listener: StopListener) -> None:
        """Add a listener, and stand in front of handlers that were installed meanwhile."""
        if listener not in self._listeners:
            self._listeners.append(listener)
        for number in listener.numbers:
            before = signal.getsignal(number)
            is_there = isinstance(before, _Handler) and before.is_of_this_process
            # None: a handler that was not installed from Python, and could not be put back.
            if before is not None and before is not signal.SIG_IGN and not is_there:
                signal.signal(number, _Handler(before))

    def remove(self, listener: StopListener) -> None:
        """Remove a listener, and with the last one the handlers."""
        if listener in self._listeners:
            self._listeners.remove(listener)
        if self._listeners or threading.current_thread() is not threading.main_thread():
            return
        for number in STOP_SIGNALS:
            handler = signal.getsignal(number)
            if isinstance(handler, _Handler):
                signal.signal(number, handler.before)

    def receive(self, number: int, before: _Before, pass_on: Callable[[], None]) -> None:
        """Tell all who listen, and pass the signal on, unless one of them takes the place of the handler before."""
        takers = self._takers(number, before)
        if self._is_receiving:
            # A handler that was installed in front of one of ours, and behind another, calls ours in its turn.
            if not takers:
                pass_on()
            return
        self._is_receiving = True
        try:
            now = self.clock.boot()
            for listener in list(self._listeners):
                listener.receive(number, now, alone=listener in takers)
            if not takers:
                pass_on()
        finally:
            self._is_receiving = False

    def _takers(self, number: int, before: _Before) -> Sequence[StopListener]:
        """Return those who take the place of this handler."""
        takers = [listener for listener in self._listeners if listener.replaces(number, before)]
        return [each for each in takers if each.precedence is not Precedence.UNLESS_OTHERS] or takers


_switchboard: Final = _Switchboard(SystemClock())


def _is_pythons_own(handler: _Before) -> bool:
    """Whether this is what Python does by itself: nobody has asked for anything else."""
    while isinstance(handler, _Handler):
        handler = handler.before
    function = handler.func if isinstance(handler, partial) else handler
    return (
        handler is signal.SIG_DFL
        or handler is signal.default_int_handler
        or getattr(function, "__module__", None) == "asyncio.runners"
    )
