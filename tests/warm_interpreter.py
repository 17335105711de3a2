"""The process that warm interpreters are forked from: it has imported everything, and has run it once.

`python -m tests.warm_interpreter FD [MODULE ...]` takes commands from a socket, each with the files that its child has
open, and answers with the child's process id. With modules, it imports these, and all that they export, and runs
nothing: whichever version of the library they are of.

The child becomes what `python` with the command's arguments would be: its `__main__`, `sys.argv`, `sys.path`,
environment, standard streams and signals are those of a new interpreter. It is handed to whoever subreaps, which
`tests/warm.py` does, and leads its own life.
"""

from __future__ import annotations

import asyncio
import builtins
import ctypes
import gc
import importlib
import io
import json
import os
import runpy
import signal
import socket
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from durable_batches import Store

_IN_BYTES: Final = 1 << 20
_ALL_FILES: Final = 1 << 30
_SECONDS: Final = 60
"""For threads to end that have nothing left to do."""

_PR_SET_PDEATHSIG: Final = 1
_CLONE_NEWNS: Final = 0x20000
_CLONE_NEWPID: Final = 0x20000000
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 0x40000

_OWN_PATHS: Final = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


@dataclass(frozen=True, kw_only=True)
class Command:
    """One interpreter.

    Args:
        arguments: Of the command line, without the interpreter's own name.
        environment: All of it.
        folder: Its working directory.
        files: The numbers that it has its files under.
        leads_session: Whether it is the first of a session.
        isolated: Whether it is the first of a namespace of processes, as a container's is.
    """

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    files: list[int]
    leads_session: bool
    isolated: bool


def serve(connection: socket.socket) -> Callable[[], object] | None:
    """Fork children; return in each what it has to do, and in this process None, when the other end is closed."""
    while True:
        data, files, _, _ = socket.recv_fds(connection, _IN_BYTES, 64)
        if not data:
            return None
        # What does not fit into one message is announced by its length.
        size = int(data[:8])
        data = data[8:]
        while len(data) < size:
            data += connection.recv(size - len(data))
        command = Command(**json.loads(data))
        reading, writing = os.pipe()
        between = os.fork()
        if between == 0:
            child = os.fork()
            if child:
                os.write(writing, child.to_bytes(8, "big"))
                # Without this process, the child is the subreaper's.
                os._exit(0)
            for number in (reading, writing, connection.detach()):
                os.close(number)
            return _become(command, files)
        for number in (writing, *files):
            os.close(number)
        os.waitpid(between, 0)
        connection.sendall(os.read(reading, 8))
        os.close(reading)


def _become(command: Command, files: list[int]) -> Callable[[], object]:
    if command.leads_session:
        os.setsid()
    if command.isolated:
        _isolate()
    _place(files, command.files)
    os.chdir(command.folder)
    os.environ.clear()
    os.environ.update(command.environment)
    _open_streams(unbuffered=bool(command.environment.get("PYTHONUNBUFFERED")))
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __annotations__={})
    sys.modules["__main__"] = main
    arguments = list(command.arguments)
    sys.orig_argv = [sys.executable, *arguments]
    while arguments[0] == "-W":
        sys.warnoptions.append(arguments[1])
        warnings.simplefilter(arguments[1])  # type: ignore[arg-type]  # the name of an action
        del arguments[:2]
    match arguments:
        case ["-c", program, *rest]:
            sys.argv = ["-c", *rest]
            _look_first_in("")
            return lambda: exec(compile(program, "<string>", "exec"), main.__dict__)
        case ["-m", module, *rest]:
            sys.argv = ["-m", *rest]
            _look_first_in(os.getcwd())
            return lambda: runpy._run_module_as_main(module)  # type: ignore[attr-defined]
        case [path, *rest]:
            sys.argv = [path, *rest]
            _look_first_in(str(Path(path).resolve().parent))
            file = os.path.abspath(path)
            main.__dict__.update(__file__=file, __cached__=None)
            return lambda: exec(compile(Path(file).read_bytes(), file, "exec"), main.__dict__)
        case _:
            raise ValueError("an interpreter without a program")


def _isolate() -> None:
    """Return in the first process of a new namespace; this one waits for it, and ends as it does.

    As `unshare --pid --fork --mount-proc --kill-child`.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(function: str, *arguments: object) -> None:
        if getattr(libc, function)(*arguments) != 0:
            raise OSError(ctypes.get_errno(), function)

    call("unshare", _CLONE_NEWPID | _CLONE_NEWNS)
    first = os.fork()
    if first:
        code = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
        if code < 0:
            os.kill(os.getpid(), -code)
        os._exit(code)
    call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
    call("mount", b"none", b"/proc", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)
    call("mount", b"proc", b"/proc", b"proc", ctypes.c_ulong(0), None)


def _place(files: list[int], numbers: list[int]) -> None:
    """Give files the numbers that they are wanted under, and close all others."""
    # Out of the way first: one may have a number that another one is wanted under.
    free = max([*numbers, *files]) + 1
    for place, file in enumerate(files):
        os.dup2(file, free + place)
    for place, number in enumerate(numbers):
        os.dup2(free + place, number)
    wanted = sorted(numbers)
    for number, following in zip(wanted, [*wanted[1:], _ALL_FILES], strict=True):
        os.closerange(number + 1, following)


def _open_streams(*, unbuffered: bool) -> None:
    """As an interpreter opens them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before: io.TextIOWrapper = getattr(sys, f"__{name}__")
        binary = open(  # noqa: SIM115  (they stay open)
            number, "wb" if number else "rb", buffering=0 if unbuffered and number else -1, closefd=False
        )
        stream = io.TextIOWrapper(
            binary,
            encoding=before.encoding,
            errors=before.errors,
            line_buffering=not unbuffered and (number == 2 or os.isatty(number)),
            write_through=unbuffered,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _look_first_in(folder: str) -> None:
    """Have modules found as in a new interpreter: beside the program, and where its environment says."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    others = [path for path in sys.path[1:] if path not in _OWN_PATHS]
    sys.path[:] = [folder, *paths, *others]


_WANTED: Final = (
    *("durable_batches.cli.app", "durable_batches.extraction", "durable_batches.web", "asyncpg"),
    *("durable_batches.script.runner", "durable_batches.terminal.bars"),
    *("uvicorn.lifespan.on", "uvicorn.loops.auto", "uvicorn.protocols.http.auto", "uvicorn.protocols.websockets.auto"),
)
"""What is imported by the programs of most tests."""


def import_all(names: Iterable[str]) -> None:
    for name in names:
        module = importlib.import_module(name)
        for exported in getattr(module, "__all__", ()):
            getattr(module, exported)


def run_a_batch(store: Store | None = None) -> None:
    """Run a batch whose document calls every activity: what is prepared upon first use is prepared here.

    Args:
        store: Where; None: a file that is removed.
    """
    from tests.processes.workload import Page, extract

    from durable_batches import BatchOrchestrator, SQLiteStore

    async def run(path: Path) -> None:
        async with BatchOrchestrator(extract, store=SQLiteStore(path) if store is None else store) as batches:
            result = await batches.run([Page(12)])
        assert result.state.tag == "completed"

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder) / "batches.db"))


def settle() -> None:
    """Make ready to fork: with one thread, and what is there looked through no more, in no child."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            # An idle one of a worker, which was told to end, and takes its moment.
            thread.join(_SECONDS)
    assert threading.active_count() == 1, "a fork has but one thread"
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    file, *modules = sys.argv[1:]
    import_all(modules or _WANTED)
    if not modules:
        run_a_batch()
    settle()
    # Of a terminal, the tests get it, too, and close the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    program = serve(socket.socket(fileno=int(file)))
    if program is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Here, and not within a function: how it ends is the interpreter's matter.
        program()
