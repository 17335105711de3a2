"""How many calls a thing takes on its way through the library, and how often the way comes back to a file it had left.

    python -m benchmarks.journeys [--rounds N] [--trace JOURNEY]

One document on SQLite. `sys.setprofile` reports every call of a Python function; those of the package count, in every
thread, in the order in which they were made. A coroutine counts when it begins and not when it goes on; so do a
comprehension and a generator expression, which are functions of their own before Python 3.12. For each journey:

    calls     functions of the package that were called
    files     files of the package that they are in
    returns   times that the next call is in another file than the last one, and in one that had been left before

What a worker does now and then (a look for dead workers, say) may come in between, so each journey is made several
times, and the shortest way counts.

    submit                       `submit` of one document, until it returns
    claim, run, result           from there until `result` returns; the document calls one activity
    activity, row, subscribers   from the activity's call until those who watch the batch are told of its commit
      call, journal              of it until its result is handed in at the journal; the activity's own body not counted
      commit, subscribers        of it from the end of the commit on
    progress of 7 events         all events of the ended batch, from its first one
    cancel                       `cancel` of a batch that has ended

What the program has to know of the package (`journal.py`, its `record`, and `_committed`, which it calls) is older
than the program, so that versions before it can be measured, too: with PYTHONPATH=/of/that/version/src.
"""

from __future__ import annotations

import argparse
import asyncio
import dis
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Final, Literal, NamedTuple

import durable_batches
from durable_batches import BatchOrchestrator, BatchStateMachine, SQLiteStore, Stage, durable_activity, workflow

PACKAGE: Final = str(Path(durable_batches.__file__).parent) + "/"
RESUME: Final = dis.opmap["RESUME"]
ROUNDS: Final = 9


class Call(NamedTuple):
    """A call of a function of the package."""

    file: str
    function: str


class Way(NamedTuple):
    """What a journey takes."""

    calls: int
    files: int
    returns: int


def way_of(calls: Sequence[Call]) -> Way:
    seen: set[str] = set()
    returns = 0
    last = ""
    for call in calls:
        if call.file != last:
            returns += call.file in seen
            seen.add(call.file)
            last = call.file
    return Way(len(calls), len(seen), returns)


class Tracer:
    """Notes the calls that are made between `begin` and `end`, in threads that start after `install`, too."""

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._on = False

    def install(self) -> None:
        threading.setprofile(self._noted)
        sys.setprofile(self._noted)

    def uninstall(self) -> None:
        threading.setprofile(None)
        sys.setprofile(None)

    def begin(self) -> None:
        self._calls = []
        self._on = True

    def end(self) -> list[Call]:
        self._on = False
        return self._calls

    def _noted(self, frame: FrameType, event: str, _: object) -> None:
        if not self._on or event != "call":
            return
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE) and not _goes_on(frame):
            self._calls.append(Call(code.co_filename[len(PACKAGE) :], code.co_qualname))


def _goes_on(frame: FrameType) -> bool:
    """Whether it is a coroutine or generator that had begun before."""
    at, code = frame.f_lasti, frame.f_code.co_code
    return at >= 0 and code[at] == RESUME and code[at + 1] & 3 != 0


# ---- the journeys ----------------------------------------------------------------------------------------------------


class Reading(Stage):
    tag: Literal["reading"] = "reading"


tracer = Tracer()


@durable_activity(stage=Reading)
async def read(text: str) -> str:
    return text


@workflow(BatchStateMachine(Reading))
async def plain(text: str) -> str:
    return await read(text)


@workflow(BatchStateMachine(Reading))
async def traced(text: str) -> str:
    # The claim's aftermath comes to its end first.
    await asyncio.sleep(0.05)
    tracer.begin()
    found = await read(text)
    tracer.end()
    return found


async def in_batches(folder: Path) -> dict[str, list[Call]]:
    """The journeys that begin at the orchestrator's methods."""
    found: dict[str, list[Call]] = {}
    async with BatchOrchestrator(plain, store=SQLiteStore(folder / "plain.db")) as batches:
        # What is made once (schemas, prepared statements) is made.
        await batches.run(["first"])
        await asyncio.sleep(0.05)
        tracer.begin()
        batch_id = await batches.submit(["second"])
        found["submit"] = tracer.end()
        tracer.begin()
        await batches.result(batch_id)
        found["claim, run, result"] = tracer.end()
        tracer.begin()
        events = [event async for event in batches.progress(batch_id)]
        found[f"progress of {len(events)} events"] = tracer.end()
        await asyncio.sleep(0.05)
        tracer.begin()
        await batches.cancel(batch_id)
        found["cancel"] = tracer.end()
    return found


async def in_an_activity(folder: Path) -> dict[str, list[Call]]:
    """The way from an activity's call to its row, and on to who watches."""
    async with BatchOrchestrator(traced, store=SQLiteStore(folder / "traced.db")) as batches:
        batch_id = await batches.submit(["only"])
        async for _ in batches.progress(batch_id):
            pass
    calls = tracer.end()
    handed_in = _first(calls, 0, lambda call: call.file.endswith("journal.py") and call.function.endswith(".record"))
    committed = _first(calls, handed_in, lambda call: call.function.endswith("._committed"))
    told = _first(calls, committed, lambda call: call.file.endswith(("journal.py", "signals.py")))
    return {
        "activity, row, subscribers": calls[:told],
        "  call, journal": calls[: handed_in + 1],
        "  commit, subscribers": calls[committed:told],
    }


def _first(calls: Sequence[Call], start: int, condition: Callable[[Call], bool]) -> int:
    return next(index for index in range(start, len(calls)) if condition(calls[index]))


def journeys(rounds: int = ROUNDS) -> dict[str, list[Call]]:
    """The calls of each journey, the shortest of several times."""
    found: dict[str, list[Call]] = {}
    for _ in range(rounds):
        for journey in (in_batches, in_an_activity):
            with tempfile.TemporaryDirectory() as folder:
                tracer.install()
                try:
                    made = asyncio.run(journey(Path(folder)))
                finally:
                    tracer.uninstall()
            for name, calls in made.items():
                if name not in found or way_of(calls) < way_of(found[name]):
                    found[name] = calls
    return found


# ---- report ----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--trace", metavar="JOURNEY", help="print every call of the journeys that this is a part of")
    arguments = parser.parse_args()
    found = journeys(arguments.rounds)
    print(f"{'':28} {'calls':>6} {'files':>6} {'returns':>8}")
    for name, calls in found.items():
        way = way_of(calls)
        print(f"{name:28} {way.calls:6} {way.files:6} {way.returns:8}")
    wanted: str | None = arguments.trace
    for name, calls in found.items():
        if wanted is not None and wanted in name:
            print(f"\n{name.strip()}")
            for call in calls:
                print(f"  {call.file:40} {call.function}")


if __name__ == "__main__":
    main()
