"""Activities that run on clusters, which find them by their names. What they do is seen in a folder."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import timedelta
from pathlib import Path

from durable_batches import RetryPolicy, current_activity, durable_activity

ONCE = RetryPolicy(max_attempts=1)


def _begun(mark: Path) -> bool:
    """Write this process's id to a mark, which appears at once; return whether it was there before."""
    if mark.exists():
        return True
    part = mark.with_suffix(".part")
    part.write_text(str(os.getpid()), encoding="ascii")
    part.rename(mark)
    return False


@durable_activity(run_on="cluster", retry=ONCE)
def double(number: int, folder: str, held: bool) -> tuple[int, int]:
    """Return twice the number, and the attempt; the first run of one that is held lasts until its process ends."""
    with (Path(folder) / f"runs-{number}").open("a") as runs:
        runs.write(f"{os.getpid()}\n")
    if held and not _begun(Path(folder) / f"holds-{number}"):
        time.sleep(3600)
    return number * 2, current_activity().attempt


@durable_activity(run_on="cluster", retry=ONCE, timeout=timedelta(seconds=1))
def hang(folder: str) -> None:
    """Run for ever; nothing in it can be interrupted."""
    _begun(Path(folder) / f"hangs-{current_activity().document_id}")
    while True:
        try:
            time.sleep(3600)
        except BaseException:  # noqa: BLE001  (it stands for native code, which nothing interrupts)
            continue


hang_until_stopped = hang.with_options(timeout=timedelta(hours=1))


@durable_activity(run_on="cluster", retry=ONCE)
def exit_always(number: int) -> int:
    os._exit(number)


@durable_activity(run_on="cluster", retry=ONCE)
async def told(folder: str) -> str:
    """Report progress until that was seen; return the document's id."""
    call = current_activity()
    while not (Path(folder) / "seen").exists():
        call.report(1, 2)
        await asyncio.sleep(0.05)
    return call.document_id
