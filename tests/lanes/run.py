"""Run lanes one after the other, all of them also where one fails, and print the time that each took.

python tests/lanes/run.py lint types unit
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import NamedTuple


class Run(NamedTuple):
    lane: str
    seconds: float
    succeeded: bool

    def __str__(self) -> str:
        return f"{self.lane:<10} {self.seconds:7.1f} s  {'ok' if self.succeeded else 'FAILED'}"


def run(lane: str) -> Run:
    """Run one lane, with all that it prints."""
    began = time.monotonic()
    ended = subprocess.run([os.environ.get("MAKE", "make"), "--no-print-directory", lane], check=False)
    return Run(lane, time.monotonic() - began, ended.returncode == 0)


def main(lanes: list[str]) -> int:
    runs: list[Run] = []
    try:
        for lane in lanes:
            print(f"== {lane}", flush=True)
            runs.append(run(lane))
    except KeyboardInterrupt:
        print("\nstopped")
    print("\n" + "\n".join(map(str, runs)))
    print(f"{'together':<10} {sum(each.seconds for each in runs):7.1f} s")
    failed = [each.lane for each in runs if not each.succeeded]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 0 if len(runs) == len(lanes) and not failed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
