"""A child that was forked has none of its parent's threads: what needs them says so, and the rest works there."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Final

from tests.processes.databases import Database
from tests.processes.forks import PATIENCE, ROOT
from tests.support import unmeasured

OF_ANOTHER_LOOP: Final = "worker-not-running"
MAY_BE_USED: Final = {
    # As module variables of servers that fork, and of pools.
    "store made before, opened in the child": "done",
    "store closed before": "done",
    "worker closed before": "done",
}


async def test_no_use_of_the_parents_hangs(tmp_path: Path, database: Database) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.processes.forked", database.place),
        cwd=ROOT,
        env=unmeasured(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert json.loads(output) == {
        "store": "store-unavailable",
        "worker": OF_ANOTHER_LOOP,
        "submit": OF_ANOTHER_LOOP,
        "result": OF_ANOTHER_LOOP,
        "cancel": OF_ANOTHER_LOOP,
        **MAY_BE_USED,
    }
