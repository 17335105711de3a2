"""The OpenAPI document against a running server, by schemathesis: every answer is one that it describes."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.browser.batches import shop
from tests.browser.node import PYTHON
from tests.web.servers import TOKEN, Server, serving

CONFIGURATION = """
# Only failed documents have a fingerprint, so that with another status it is refused: no schema of parameters says so.
[[operations]]
include-name = "GET /batches/{batch}/documents"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "401", "403", "404", "503"]

# Numbers of a policy have bounds that its schema does not tell, and some wait until no document is running.
[[operations]]
include-name = "POST /batches/{batch}/update"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "401", "403", "404", "409", "503"]
"""

FEW_STREAMS = """
# Each of these takes all of its second: the many of them are those of the batch that has ended.
[[operations]]
include-path-regex = "/(progress|snapshots)$"
phases.coverage.enabled = false
phases.fuzzing.generation.max-examples = 2
"""

OF_BATCH = """
[parameters]
"path.batch" = "BATCH"
"""


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def filled(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Server]:
    async with shop(tmp_path_factory.mktemp("openapi") / "batches.db") as found:
        await found.fill()
        async with serving(found.path) as server:
            yield server


async def schemathesis(server: Server, folder: Path, configuration: str, *options: str) -> None:
    """Send requests of all kinds that the document describes, and of some that it does not."""
    (folder / "schemathesis.toml").write_text(configuration, encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *(str(PYTHON), "-m", "schemathesis.cli"),
        *("run", f"{server.address}openapi.json", "--header", f"Authorization: Bearer {TOKEN}"),
        *("--max-examples", "20", "--generation-deterministic"),
        # A stream of a batch that runs has no end.
        *("--request-timeout", "1"),
        *options,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


ALL = ("--phases", "coverage,fuzzing")
OF_A_BATCH = ("--include-path-regex", "^/batches/[{]")
"""The routes that say something else of another batch; one test asks the others, too."""


async def test_every_answer_is_described(filled: Server, tmp_path: Path) -> None:
    await schemathesis(filled, tmp_path, CONFIGURATION + OF_BATCH.replace("BATCH", "failed"), *ALL, *OF_A_BATCH)


async def test_answers_about_a_batch_that_runs_are_described(filled: Server, tmp_path: Path) -> None:
    configuration = CONFIGURATION + FEW_STREAMS + OF_BATCH.replace("BATCH", "live")
    await schemathesis(filled, tmp_path, configuration, *ALL, *OF_A_BATCH)


async def test_all_routes_and_ids_of_all_kinds_are_answered(filled: Server, tmp_path: Path) -> None:
    await schemathesis(filled, tmp_path, CONFIGURATION, *ALL)
