"""Forks the children of the tests: a warm process, which has imported everything and run it once.

`python -m tests.processes.fork_server` reads commands from its stdin, one JSON a line, and writes what becomes of
its children to its stdout: each time that one stops, goes on or ends. A child costs a few milliseconds in place of the
seconds that a busy machine takes to import everything, and to run it for the first time. The children do not outlive
it, nor it who started it.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import select
import signal
import sys
import traceback
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import pytest
from tests.postgres.databases import without_schema
from tests.postgres.types import remember_types
from tests.processes import scenarios
from tests.warm_interpreter import run_a_batch, settle

from durable_batches import stores

_PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True, kw_only=True)
class Command:
    """One child to fork."""

    number: int
    job: dict[str, Any]
    output: str
    errors: str


class ForkServer:
    """The loop."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._is_warm_on_postgres = False
        self._woken, waker = os.pipe()
        for end in (self._woken, waker):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(waker)
        signal.signal(signal.SIGCHLD, _hear)
        # Of a terminal, the tests get it, too, and end this.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def serve(self) -> None:
        rest = b""
        self._report(ready=os.getpid())
        while True:
            ready, _, _ = select.select([0, self._woken], [], [])
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._reap()
            if 0 in ready:
                data = os.read(0, 65536)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    command = Command(**json.loads(line))
                    self._warm_up_for(command.job)
                    self._fork(command)

    def _warm_up_for(self, job: dict[str, Any]) -> None:
        """Before the first child on Postgres: connect to that server here, and learn its types."""
        place = job.get("store", "")
        if not self._is_warm_on_postgres and place.startswith("{"):
            self._is_warm_on_postgres = True
            schema = f"warm_{os.getpid()}"
            dsn = json.loads(place)["dsn"]
            try:
                run_a_batch(stores.PostgresStore(dsn, schema=schema))
                settle()
            finally:
                without_schema(dsn, schema)

    def _fork(self, command: Command) -> None:
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become(command, server)
        self._numbers[pid] = command.number
        self._report(number=command.number, pid=pid)

    def _reap(self) -> None:
        while self._numbers:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if os.WIFSTOPPED(status):
                self._report(number=self._numbers[pid], state="stopped")
            elif os.WIFCONTINUED(status):
                self._report(number=self._numbers[pid], state="running")
            else:
                self._report(number=self._numbers.pop(pid), state="ended", code=os.waitstatus_to_exitcode(status))

    def _report(self, **what: object) -> None:
        os.write(1, f"{json.dumps(what)}\n".encode())


def _hear(*_: object) -> None:
    """What wakes the loop is the byte that is written for it."""


def _become(command: Command, server: int) -> NoReturn:
    """In the child: the process that the command asks for."""
    code = 1
    try:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for path, flags, number in (
            (os.devnull, os.O_RDONLY, 0),
            (command.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 1),
            (command.errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 2),
        ):
            file = os.open(path, flags, 0o644)
            os.dup2(file, number)
            os.close(file)
        result = asyncio.run(scenarios.main(command.job))
        os.write(1, json.dumps(result).encode())
        code = 0
    except KeyboardInterrupt:
        # As the interpreter does.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001  (a child says why it failed, whatever it was)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    remember_types(pytest.MonkeyPatch())
    # The driver is imported here, also where no child needs it for a while.
    assert stores.PostgresStore is not None
    run_a_batch()
    settle()
    ForkServer().serve()
