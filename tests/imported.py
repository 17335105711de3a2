"""Programs in a process in which the library has been imported, and nothing else: forked, and not started.

Importing anything of the package imports the package first. So a process that has done no more than that is where a
program that begins so comes to be, and a hundredth of the time of a new interpreter leads there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Final, Self

from tests.support import unmeasured

_PATIENCE: Final = 60.0

_SERVER: Final = """
import durable_batches
import json, os, sys

for line in iter(sys.stdin.readline, ""):
    command = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(command["folder"])
        for number, name, flags in ((0, os.devnull, os.O_RDONLY), (1, command["output"], os.O_WRONLY),
                                    (2, command["errors"], os.O_WRONLY)):
            file = os.open(name, flags | os.O_CREAT)
            os.dup2(file, number)
            os.close(file)
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
# Out of the loop, for it to end as any other program does.
exec(compile(command["program"], "<string>", "exec"), {"__name__": "__main__"})
"""


class Imported:
    """The process, for as long as the context lasts.

    Args:
        path: Where the library is.
        options: Of its interpreter.
    """

    def __init__(self, path: Path, *options: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *options, "-c", _SERVER],
            env={**unmeasured(), "PYTHONPATH": str(path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, program: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run a program in a folder, in a process of its own."""
        with TemporaryDirectory() as files:
            output, errors = Path(files) / "output", Path(files) / "errors"
            command = {"program": program, "folder": str(folder), "output": str(output), "errors": str(errors)}
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(f"{json.dumps(command)}\n")
            self._process.stdin.flush()
            code = int(self._process.stdout.readline())
            return subprocess.CompletedProcess(program, code, output.read_text(), errors.read_text())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=_PATIENCE)
