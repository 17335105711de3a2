"""A Dask cluster on loopback: processes that are started, killed and started again, each by its id."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager, suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self, cast

__all__ = ["DaskCluster", "connected"]

_ENDS_SECONDS: Final = 20


class DaskCluster:
    """A scheduler, and workers that run one call at once, each with a nanny that replaces its process.

    Args:
        folder: For what they print, and for files of their own.
        allowed_failures: The scheduler's.
    """

    def __init__(self, folder: Path, *, allowed_failures: int = 0) -> None:
        self._folder = folder
        self._allowed_failures = allowed_failures
        self._port = _free_port()
        self._scheduler: subprocess.Popen[bytes] | None = None
        self._workers: list[subprocess.Popen[bytes]] = []

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_workers()
        self.kill_scheduler()

    def start_scheduler(self) -> None:
        self._scheduler = self._start("scheduler", "--port", str(self._port), "--no-show")

    def kill_scheduler(self) -> None:
        if self._scheduler is not None:
            _end(self._scheduler)
            self._scheduler = None

    def start_workers(self, number: int) -> None:
        for _ in range(number):
            options = ("--nthreads", "1", "--nanny", "--local-directory", str(self._folder), "--death-timeout", "60")
            self._workers.append(self._start("worker", self.address, *options))

    def end_workers(self) -> None:
        while self._workers:
            _end(self._workers.pop())

    def _start(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        # Without an address of its own the dashboard, switched off or not, listens on every interface.
        loopback = ("--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0")
        environment = {
            **os.environ,
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(self._allowed_failures),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        with (self._folder / f"{program}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", program, *loopback, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )


class Outcome(Protocol):
    """A future of Dask's."""

    def result(self, timeout: float, /) -> object: ...


class Client(Protocol):
    """A client of Dask's, which the types of the other lanes need not be there for."""

    def get_executor(self, **options: object) -> Executor: ...

    def submit(self, function: Callable[..., object], /, *args: object) -> Outcome: ...

    def wait_for_workers(self, number: int, /, *, timeout: float) -> None: ...


def connected(address: str) -> AbstractContextManager[Client]:
    """A client within the block, which no other code comes to use."""
    distributed: Any = import_module("distributed")
    return cast("AbstractContextManager[Client]", distributed.Client(address, timeout=60, set_as_default=False))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with its own children, which are in its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(_ENDS_SECONDS)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
