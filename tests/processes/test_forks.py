"""A child that was forked has none of its parent's threads: what needs them says so, and the rest works there."""

from __future__ import annotations

import asyncio
import json
import re
import sys
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


async def said(program: str, database: Database) -> tuple[object, str]:
    """What a program prints as JSON, and its log."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", program, database.place),
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
    return json.loads(output), errors.decode()


async def test_no_use_of_the_parents_hangs(database: Database) -> None:
    answers, _ = await said("tests.processes.forked", database)
    assert answers == {
        "store": "store-unavailable",
        "worker": OF_ANOTHER_LOOP,
        "submit": OF_ANOTHER_LOOP,
        "result": OF_ANOTHER_LOOP,
        "cancel": OF_ANOTHER_LOOP,
        **MAY_BE_USED,
    }


async def test_a_child_that_comes_back_to_the_library_ends(database: Database) -> None:
    codes, log = await said("tests.processes.forking", database)
    assert codes == {
        "activity returns": 1,
        "activity raises": 1,
        "activity exits": 0,
        "activity exits with 3": 3,
        "activity awaits": 1,
        "sync activity returns": 1,
        "sync activity exits with 3": 3,
        "workflow returns": 1,
        "workflow exits with 3": 3,
        "block exits with 3": 3,
    }
    places = re.findall(r"it was forked in (.*), and comes back", log)
    batch = r" of document '(.*)' of batch '\w+'"
    assert sorted(re.sub(batch, r" of \1", place) for place in places) == [
        "activity 'forks' of activity awaits",
        "activity 'forks' of activity raises",
        "activity 'forks' of activity returns",
        "activity 'forks_on_a_thread' of sync activity returns",
        "the workflow of workflow returns",
    ]
    assert "ValueError: in the child" in log
