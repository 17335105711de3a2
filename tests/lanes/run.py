"""Run lanes, two at once, all of them also where one fails, and print the time that each took.

    python tests/lanes/run.py lint types unit --where-possible browser

A lane `--where-possible` runs where `make LANE-possible` succeeds. Where it fails, the lane is left out, which fails
nothing, and the last line of all says so in capitals, with the last line that the target has printed.

Many tests wait for servers, processes and locks, and the checkers of types use one processor each: a second lane fills
what the first one leaves idle, so none needs more than two processes of tests, each of which collects and prepares
anew. The longest lanes begin first, for two of them to end at about the same time. What lanes print does not mix: it
follows when a lane has ended.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Final, NamedTuple

LEFT_OUT: Final = {"browser": "THE PAGE IN A BROWSER"}
"""What is not tested where a lane is left out."""


FIRST: Final = (
    "lint",
    "soak",
    "clusters",
    "resolution",
    "processes",
    "unit",
    "stores",
    "types",
    "matrix",
    "browser",
    "docs",
    "wheel",
)
"""In which order lanes begin: what is done at once, and then by the time that they take."""


class Run(NamedTuple):
    """A lane that has ended."""

    lane: str
    seconds: float
    succeeded: bool
    output: str
    """What it printed; empty where that has been seen already."""

    def __str__(self) -> str:
        return f"{self.lane:<10} {self.seconds:7.1f} s  {'ok' if self.succeeded else 'FAILED'}"


def run(lane: str, *, alone: bool) -> Run:
    """Run one lane with all that it prints, at once where it runs alone."""
    command = [os.environ.get("MAKE", "make"), "--no-print-directory", lane, *([] if alone else ["JOBS=2"])]
    began = time.monotonic()
    with tempfile.TemporaryFile() as printed:
        output = None if alone else printed
        ended = subprocess.run(command, stdout=output, stderr=output, check=False)
        printed.seek(0)
        text = printed.read().decode(errors="replace")
    return Run(lane, time.monotonic() - began, ended.returncode == 0, text)


def left_out(lane: str) -> str | None:
    """Why a lane cannot be run here; None: it can."""
    command = [os.environ.get("MAKE", "make"), "--no-print-directory", f"{lane}-possible"]
    asked = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if asked.returncode == 0:
        return None
    # What make itself says of its failure is not the reason.
    lines = [line for line in asked.stdout.splitlines() if line.strip() and "***" not in line]
    return lines[-1] if lines else f"`make {lane}-possible` failed"


def run_all(lanes: Sequence[str], at_once: int) -> Iterator[Run]:
    """Run the lanes, the longest first, at most so many at once; yield each when it has ended."""
    # The threads only wait for their lane. What stops this program stops the lanes, too: they are in its group.
    with ThreadPoolExecutor(at_once) as lanes_at_once:
        waiting = sorted(lanes, key=lambda lane: FIRST.index(lane) if lane in FIRST else len(FIRST))
        running: set[Future[Run]] = set()
        while waiting or running:
            while waiting and len(running) < at_once:
                print(f"-- {waiting[0]} begins", flush=True)
                running.add(lanes_at_once.submit(run, waiting.pop(0), alone=at_once == 1))
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (each.result() for each in ended)


def main(lanes: Sequence[str], at_once: int, where_possible: Sequence[str] = ()) -> int:
    runs: list[Run] = []
    began = time.monotonic()
    reasons = {lane: reason for lane in where_possible if (reason := left_out(lane)) is not None}
    lanes = [*lanes, *(lane for lane in where_possible if lane not in reasons)]
    try:
        for each in run_all(lanes, at_once):
            runs.append(each)
            if each.output:
                print(f"== {each.lane}\n{each.output}", end="", flush=True)
    except KeyboardInterrupt:
        print("\nstopped")
    print("\n" + "\n".join(map(str, sorted(runs, key=lambda each: lanes.index(each.lane)))))
    print(f"{'together':<10} {time.monotonic() - began:7.1f} s")
    failed = [each.lane for each in runs if not each.succeeded]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    for lane, reason in reasons.items():
        print(f"NOT TESTED: {LEFT_OUT.get(lane, f'THE LANE {lane.upper()}')}. {reason}", flush=True)
    return 0 if len(runs) == len(lanes) and not failed else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("lanes", nargs="+")
    parser.add_argument("--where-possible", nargs="+", default=[], metavar="LANE")
    parser.add_argument("--at-once", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    sys.exit(main(options.lanes, options.at_once, options.where_possible))
