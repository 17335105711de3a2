"""The end of a worker at a signal: it drains at once, and ends its process where nothing else does.

And Ctrl-C while a worker is closed, for all workers: who presses it does not want to wait any longer.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import Any, Final

from durable_batches.errors import ConfigurationError
from durable_batches.exit_watch import watch_exit
from durable_batches.stop_signals import CTRL_C, Precedence, StopListener, StopSignal
from durable_batches.tasks import tell_loop

__all__ = ["Shutdown"]

_log = logging.getLogger("durable_batches")

_SIGNAL_EXIT: Final = 128
"""Added to the number of a signal, this is the exit code that shells give to a process that it has ended."""


class Shutdown:
    """Has a worker drain when its process is asked to stop.

    A server or framework that handles the signal closes the worker in its own time; the drain begins at once, and not
    when it has waited for its clients. Where nothing handles it, the task that has entered the worker is cancelled, so
    that it leaves its block, and the process ends when the worker is closed.

    Args:
        begin_drain: Has the worker claim nothing more, and let running calls finish.
        end_drain: Has the worker cancel what runs.
        listens: Whether it listens while the worker runs; otherwise only for Ctrl-C, while the worker is closed.
    """

    def __init__(self, begin_drain: Callable[[], object], end_drain: Callable[[], object], *, listens: bool) -> None:
        self._begin_drain = begin_drain
        self._end_drain = end_drain
        self.listens: bool = listens
        """Whether it listens; changed only while the worker is closed."""
        self._listener = StopListener(self._receive, Precedence.OVER_PYTHON)
        self._closing = StopListener(self._receive_closing, Precedence.UNLESS_OTHERS, CTRL_C)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._entered_by: asyncio.Task[Any] | None = None
        self._received: int | None = None
        self._ended_by: int | None = None

    def listen(self) -> None:
        """Begin to listen, for the event loop and the task that run.

        Raises:
            ConfigurationError: This is not the main thread.
        """
        if not self.listens:
            return
        if not self._listener.listen():
            raise ConfigurationError(
                "a worker with signals=True has to be entered in the main thread, which alone gets signals; leave out "
                "signals=True, and close the worker when the main thread is asked to stop"
            )
        self._loop, self._entered_by = asyncio.get_running_loop(), asyncio.current_task()
        self._received, self._ended_by = None, None

    def closes(self) -> None:
        """Take note that the worker is being closed: asyncio would do no more than to stop its event loop at Ctrl-C."""
        if not self.listens and self._closing.listen():
            self._loop = asyncio.get_running_loop()

    def leave(self, error: BaseException | None) -> None:
        """Listen no more: the worker is closed, after this error or none.

        Raises:
            SystemExit: A signal was to end the process, and nothing else has gone wrong.
            KeyboardInterrupt: The same, where the worker does not listen.
        """
        self._listener.leave()
        self._closing.leave()
        if self._received is not None and self._loop is not None:
            # Also where a server ends the process.
            watch_exit(_SIGNAL_EXIT + self._received, self._loop)
        number, self._ended_by, self._loop, self._entered_by = self._ended_by, None, None, None
        if number is None or not (error is None or isinstance(error, asyncio.CancelledError)):
            return
        if self.listens:
            raise SystemExit(_SIGNAL_EXIT + number) from None
        raise KeyboardInterrupt from None

    def _receive_closing(self, received: StopSignal) -> None:
        if not received.alone:
            # Who else handles it decides.
            return
        self._ended_by = received.number
        # The next one is asyncio's or Python's again.
        self._closing.leave()
        if self._loop is not None:
            tell_loop(self._loop, self._end_drain)

    def _receive(self, received: StopSignal) -> None:
        if self._received is None:
            self._received = received.number
        if self._loop is not None:
            tell_loop(self._loop, self._act, received)

    def _act(self, received: StopSignal) -> None:
        if self._loop is None:
            # The worker was closed meanwhile.
            return
        name = signal.Signals(received.number).name
        if received.ordinal > 1:
            _log.warning("%s received again: running activities are cancelled", name, extra={"signal": name})
            self._end_drain()
            return
        _log.info("%s received: running activities finish, and nothing begins", name, extra={"signal": name})
        self._begin_drain()
        if not received.alone:
            return
        self._ended_by = received.number
        if self._entered_by is None or self._entered_by.done():
            _log.warning(
                "nothing ends the process at %s: the task that entered the worker has ended; close the worker", name
            )
        else:
            self._entered_by.cancel()
