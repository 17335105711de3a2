"""Interpreters that tests start, forked from a warm one: a twentieth of the time of a start, and of all its imports.

Within `warm`, `subprocess` and `asyncio` start a Python program so: with `-c`, `-m` or a file, and `-W`; all else is
started as ever. The child is one of this process like any other: waited for, killed and told signals.

What a test shows of an interpreter itself, and of what it imports, wants a new one.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest
from tests.support import unmeasured

ROOT: Final = Path(__file__).parents[1]

_PR_SET_CHILD_SUBREAPER: Final = 36

_SCRIPT: Final = Path(sys.executable).with_name("durable-batches")

_execute_child: Final[Callable[..., None]] = vars(subprocess.Popen)["_execute_child"]

IN_A_NAMESPACE: Final = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
"""What an interpreter may have before it, which is done without that program then."""

_ORDINARY: Final = {
    "preexec_fn": None,
    "shell": False,
    "gid": None,
    "gids": None,
    "uid": None,
    "umask": -1,
    "process_group": -1,
    "close_fds": True,
}
"""Of the arguments of `Popen`, those with which a child is like those that are forked."""


class Source:
    """The process that is forked.

    Args:
        version: The folder of the library that it imports; by default the one under test, and all that programs of
            tests need. Another one is imported with warnings as errors.
    """

    _here: ClassVar[Source | None] = None

    @classmethod
    def here(cls) -> Source:
        """The one of this process; started when the first test asks for it."""
        if cls._here is None:
            cls._here = cls()
            atexit.register(cls._here.close)
        return cls._here

    def __init__(self, version: Path | None = None) -> None:
        self._socket, other = socket.socketpair()
        modules = [] if version is None else ["durable_batches", "durable_batches.stores"]
        environment = (
            unmeasured() if version is None else unmeasured() | {"PYTHONPATH": str(version), "PYTHONWARNINGS": "error"}
        )
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm_interpreter", str(other.fileno()), *modules],
                cwd=ROOT,
                env=environment,
                pass_fds=[other.fileno()],
            )

    def fork(self, command: Mapping[str, Any], files: Sequence[int]) -> int:
        """A child of this process, with these files."""
        data = json.dumps(command).encode()
        subreap(True)
        try:
            socket.send_fds(self._socket, [b"%08d" % len(data)], files)
            self._socket.sendall(data)
            return int.from_bytes(self._socket.recv(8), "big")
        finally:
            subreap(False)

    def close(self) -> None:
        """End it; its children go on."""
        self._socket.close()
        self._process.wait(60)


def subreap(whether: bool) -> None:
    """Have descendants whose parents end become children of this process, or no longer."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(whether))


def arguments_of(command: Sequence[str]) -> list[str] | None:
    """What an interpreter is started with; None: it is no Python, or one with options of its own."""
    program, *arguments = map(os.fspath, command)
    if program == str(_SCRIPT):
        return [program, *arguments]
    if program != sys.executable:
        return None
    rest = arguments
    while rest[:1] == ["-W"]:
        rest = rest[2:]
    is_program = bool(rest) and (rest[0] in ("-c", "-m") or not rest[0].startswith("-"))
    return arguments if is_program else None


def _start(source: Source, process: Any, *given: Any) -> None:
    """In place of `Popen._execute_child`."""
    asked: dict[str, Any] = signature(_execute_child).bind(process, *given).arguments
    if all(asked[name] == usual for name, usual in _ORDINARY.items()):
        command: Sequence[str] | str = asked["args"]
        isolated = not isinstance(command, str) and tuple(command[: len(IN_A_NAMESPACE)]) == IN_A_NAMESPACE
        if isolated:
            command = command[len(IN_A_NAMESPACE) :]
        arguments = None if isinstance(command, str) else arguments_of(command)
        if arguments is not None:
            _fork(source, process, arguments, asked, isolated=isolated)
            return
    _execute_child(process, *given)


def _fork(source: Source, process: Any, arguments: list[str], asked: Mapping[str, Any], *, isolated: bool) -> None:
    own = (asked["p2cread"], asked["c2pwrite"], asked["errwrite"])
    passed = list(asked["pass_fds"])
    environment = os.environ if asked["env"] is None else asked["env"]
    command = {
        "arguments": arguments,
        "environment": dict(environment),
        "folder": os.fspath(asked["cwd"] or os.getcwd()),
        "files": [0, 1, 2, *passed],
        "leads_session": asked["start_new_session"],
        "isolated": isolated,
    }
    files = [number if file == -1 else file for number, file in enumerate(own)]
    process.pid = source.fork(command, [*files, *passed])
    process._child_created = True
    ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
    process._close_pipe_fds(*(asked[name] for name in ends))


@contextmanager
def warm(source: Source | None = None) -> Generator[None]:
    """Within: Python programs are forked, where that can be done; by default from a source of this process."""
    if sys.platform != "linux":
        yield
        return
    forked = source or Source.here()  # which is started as ever

    def start(process: Any, *given: Any) -> None:
        _start(forked, process, *given)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(subprocess.Popen, "_execute_child", start)
        yield
