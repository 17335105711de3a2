"""Run lanes again and again beside busy loops, until each has succeeded so many times in a row.

    python tests/lanes/steady.py --times 10 unit stores processes

What was run, how long it took and how it ended stands in `.steady/log`, a line a run; what it printed, in a file
beside it. Stopped and started again, it goes on where it was, as long as the code is the same. The row begins anew
after a run that failed, and after a change of the code. The busy loops end with this program, however that ends.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
_CODE: Final = ("src", "tests", "examples", "docs")
_FILES: Final = ("conftest.py", "Makefile", "pyproject.toml", "requirements-dev.txt", "constraints.txt")

_BUSY: Final = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""
"""A loop that turns for as long as the process that started it is there, which may end before this begins."""


class Run(NamedTuple):
    """A line of the log."""

    moment: str
    code: str
    lane: str
    result: str
    seconds: str

    def __str__(self) -> str:
        return "\t".join(self)


def code_of_now() -> str:
    """A name for the code as it is: runs of other code say nothing about it."""
    digest = hashlib.sha256()
    files = [path for folder in _CODE for path in (ROOT / folder).rglob("*")]
    for path in sorted([*files, *(ROOT / name for name in _FILES)]):
        # Caches of Python and of the checkers change from run to run.
        if any(part == "__pycache__" or part.startswith(".") for part in path.relative_to(ROOT).parts):
            continue
        if path.is_file():
            digest.update(f"{path.relative_to(ROOT)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def row_of(code: str, runs: Iterable[Run]) -> dict[str, int]:
    """How many times in a row each lane has succeeded with this code; once one fails, all begin anew."""
    row: dict[str, int] = {}
    for run in runs:
        if run.code == code:
            if run.result == "ok":
                row[run.lane] = row.get(run.lane, 0) + 1
            else:
                row.clear()
    return row


def logged(folder: Path) -> list[Run]:
    log = folder / "log"
    if not log.exists():
        return []
    # The last line may be cut off, where the machine stopped.
    lines = [line.split("\t") for line in log.read_text(encoding="utf-8").splitlines()]
    return [Run(*line) for line in lines if len(line) == len(Run._fields)]


@contextlib.contextmanager
def busy_loops(count: int) -> Generator[None]:
    """Within: so many processes do nothing but keep a processor busy."""
    loops = [subprocess.Popen([sys.executable, "-c", _BUSY, str(os.getpid())]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()


def run(lane: str, code: str, folder: Path) -> Run:
    """Run a lane, and add a line to the log."""
    moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    output = folder / f"{lane}.txt"
    began = time.monotonic()
    with output.open("wb") as file:
        command = [os.environ.get("MAKE", "make"), "--no-print-directory", lane]
        ended = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False)
    done = Run(moment, code, lane, "ok" if ended.returncode == 0 else "failed", f"{time.monotonic() - began:.1f}")
    if ended.returncode != 0:
        output = output.rename(output.with_name(f"{lane}-{moment.replace(':', '')}.txt"))
        print(output.read_text(encoding="utf-8", errors="replace"), end="")
    with (folder / "log").open("a", encoding="utf-8") as log:
        log.write(f"{done}\n")
    print(done, flush=True)
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lanes", nargs="+")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--busy-loops", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=ROOT / ".steady")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(exist_ok=True)
    # As Ctrl-C, so that the busy loops are ended and waited for.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = code_of_now()
    print(f"code {code}, so far in a row: {row_of(code, logged(folder)) or 'none'}", flush=True)
    try:
        with busy_loops(options.busy_loops):
            for number in range(1, options.times + 1):
                for lane in options.lanes:
                    if row_of(code, logged(folder)).get(lane, 0) < number and run(lane, code, folder).result != "ok":
                        return 1
    except KeyboardInterrupt:
        print("stopped; started again, it goes on from here")
        return 130
    print(f"{', '.join(options.lanes)}: {options.times} times in a row, {options.busy_loops} busy loops beside them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
