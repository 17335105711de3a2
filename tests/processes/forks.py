"""Processes of the tests, whose stops and ends are events: forked from a warm one, or started by a command."""

from __future__ import annotations

import asyncio
import atexit
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from tests.support import unmeasured
from tests.warm import warm

T = TypeVar("T")

ROOT: Final = Path(__file__).parents[2]

PATIENCE: Final = 60.0
"""Seconds until something that must happen is held not to: generous, since the machine may be busy."""


class Process:
    """One process, as its parent sees it."""

    def __init__(self) -> None:
        self.pid = 0
        self.stopped = False
        self.code: int | None = None
        self._changed = threading.Condition()
        self._awaited: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def becomes(self, **what: Any) -> None:
        """Take note; called on any thread."""
        with self._changed:
            for name, value in what.items():
                setattr(self, name, value)
            self._changed.notify_all()
            for loop, event in self._awaited:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(event.set)

    def wait(self, seconds: float) -> int:
        """Its exit code; blocks until it has ended."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.code is not None, seconds), f"process {self.pid} does not end"
            assert self.code is not None
            return self.code

    def wait_until_begun(self, seconds: float) -> None:
        """Block until it has a process id."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.pid, seconds), "the fork server does not answer"

    async def until(self, value: Callable[[], T | None], what: str) -> T:
        """Wait for a value of it that is not there yet; looked at when it stops, goes on or ends."""
        changed = asyncio.Event()
        entry = (asyncio.get_running_loop(), changed)
        self._awaited.append(entry)
        try:
            async with asyncio.timeout(PATIENCE):
                while (found := value()) is None:
                    await changed.wait()
                    changed.clear()
            return found
        except TimeoutError:
            raise AssertionError(f"waited {PATIENCE:g} s for {what}") from None
        finally:
            self._awaited.remove(entry)


class Started(Process):
    """A process of a command; its stops are not seen."""

    def __init__(self, command: Sequence[str], output: Path, errors: Path) -> None:
        super().__init__()
        with output.open("wb") as out, errors.open("ab") as err, warm():
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err, env=unmeasured())
        self.pid = self._process.pid
        threading.Thread(target=lambda: self.becomes(code=self._process.wait()), daemon=True).start()


class Forks:
    """The fork server of this process of tests, and what it tells of its children."""

    _here: ClassVar[Forks | None] = None

    @classmethod
    def here(cls) -> Forks:
        """The one of this process; started when the first test asks for it."""
        if cls._here is None:
            cls._here = cls()
            atexit.register(cls._here.close)
        return cls._here

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.processes.fork_server"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=unmeasured(),
        )
        self._numbers = itertools.count(1)
        self._processes: dict[int, Process] = {}
        self._ready = threading.Event()
        threading.Thread(target=self._listen, name="fork server", daemon=True).start()
        assert self._ready.wait(PATIENCE), "the fork server does not start"

    def start(self, job: Mapping[str, Any], output: Path, errors: Path) -> Process:
        """Fork a child."""
        process, number = Process(), next(self._numbers)
        errors.touch()
        self._processes[number] = process
        command = {"number": number, "job": job, "output": str(output), "errors": str(errors)}
        assert self._server.stdin is not None
        self._server.stdin.write(f"{json.dumps(command)}\n".encode())
        self._server.stdin.flush()
        process.wait_until_begun(PATIENCE)
        return process

    def close(self) -> None:
        """End the server, and with it its children."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(PATIENCE)

    def _listen(self) -> None:
        assert self._server.stdout is not None
        for line in self._server.stdout:
            event = json.loads(line)
            if "ready" in event:
                self._ready.set()
                continue
            process = self._processes[event["number"]]
            match event.get("state"):
                case "stopped":
                    process.becomes(stopped=True)
                case "running":
                    process.becomes(stopped=False)
                case "ended":
                    del self._processes[event["number"]]
                    process.becomes(code=event["code"])
                case _:
                    process.becomes(pid=event["pid"])
        # A server that is gone has taken its children along.
        self._ready.set()
        for process in self._processes.values():
            process.becomes(code=-9, pid=process.pid or -1)
