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
[parameters]
"path.batch" = "{batch}"
"""


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def filled(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Server]:
    async with shop(tmp_path_factory.mktemp("openapi") / "batches.db") as found:
        await found.fill()
        async with serving(found.path) as server:
            yield server


async def schemathesis(server: Server, folder: Path, *options: str) -> None:
    """Send requests of all kinds that the document describes, and of some that it does not."""
    process = await asyncio.create_subprocess_exec(
        str(PYTHON.with_name("schemathesis")),
        *options,
        *("run", f"{server.address}openapi.json", "--header", f"Authorization: Bearer {TOKEN}"),
        *("--phases", "coverage,fuzzing", "--max-examples", "20", "--generation-deterministic"),
        # A stream of a batch that runs has no end.
        *("--request-timeout", "1"),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


@pytest.mark.parametrize("batch", ["failed", "live"])
async def test_every_answer_is_described(filled: Server, batch: str, tmp_path: Path) -> None:
    settings = tmp_path / "schemathesis.toml"
    settings.write_text(CONFIGURATION.format(batch=batch), encoding="utf-8")
    await schemathesis(filled, tmp_path, "--config-file", str(settings))


async def test_ids_of_all_kinds_are_answered(filled: Server, tmp_path: Path) -> None:
    await schemathesis(filled, tmp_path)
