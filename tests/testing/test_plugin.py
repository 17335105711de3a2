"""The pytest plugin: there where it is asked for, and not noticed anywhere else."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from tests.support import unmeasured
from tests.testing.shouting import shouting

import durable_batches
from durable_batches import SQLiteStore
from durable_batches.testing import BatchEnvironment, ManualClock, StoreMaker, survives_crashes

ROOT = Path(__file__).parents[2]


async def test_an_environment_is_on_a_file_of_the_tests_own(batch_environment: BatchEnvironment) -> None:
    async with batch_environment(shouting) as env:
        assert isinstance(env.store, SQLiteStore)
        batch_id = await env.batches.submit(["a"])
        await env.finished(batch_id)
        moment = env.clock.now()
    async with batch_environment(shouting) as env:
        assert (await env.batches.state(batch_id)).tag == "completed"
        assert env.clock.now() >= moment
    async with batch_environment(shouting, clock=ManualClock()) as env:
        assert env.clock.now() <= moment


async def test_stores_are_new(new_batch_store: StoreMaker) -> None:
    assert (await survives_crashes(shouting, ["a", "b"], store=new_batch_store, limit=6)).points == 6


# ---- in the suites of others -----------------------------------------------------------------------------------------

PLUGIN = """
import sys
import _durable_batches_pytest
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"durable_batches", "pydantic", "pytest_asyncio", "sqlite3"}, loaded
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Without what was installed for this suite.
    environment = {**unmeasured(), "PYTHONPATH": str(ROOT / "src"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def pytest_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(
        folder, "-m", "pytest", "-p", "_durable_batches_pytest", "-p", "no:cacheprovider", "-W", "error", *arguments
    )


@pytest.mark.processes
def test_loading_it_brings_nothing_along(tmp_path: Path) -> None:
    ran = run(tmp_path, "-c", PLUGIN)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.processes
def test_a_suite_that_does_not_use_it_does_not_notice_it(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "import sys\ndef test_it():\n    assert not {'durable_batches', 'pydantic'} & set(sys.modules)\n",
        encoding="utf-8",
    )
    ran = pytest_in(tmp_path, "--strict-config", "--strict-markers")
    assert ran.returncode == 0, ran.stdout
    assert "1 passed" in ran.stdout
    assert "warning" not in ran.stdout
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["test_other.py"]


@pytest.mark.processes
def test_no_plugin_for_async_tests_is_needed(tmp_path: Path) -> None:
    (tmp_path / "test_batches.py").write_text(
        "import asyncio\n"
        "from tests.testing.shouting import shouting\n"
        "def test_it(batch_environment):\n"
        "    async def run():\n"
        "        async with batch_environment(shouting) as env:\n"
        "            assert (await env.batches.run(['a'])).counts.succeeded == 1\n"
        "    asyncio.run(run())\n",
        encoding="utf-8",
    )
    ran = pytest_in(tmp_path, "-o", f"pythonpath={ROOT}")
    assert ran.returncode == 0, ran.stdout
    assert "1 passed" in ran.stdout


def test_pytest_is_not_to_warn_of_a_library_that_was_imported_before_it() -> None:
    """It does where the library is installed, not in this editable form, and is told so by this word."""
    assert "PYTEST_DONT_REWRITE" in (durable_batches.__doc__ or "")


def test_it_is_installed_as_a_plugin() -> None:
    found = [point.value for point in entry_points(group="pytest11") if point.name == "durable_batches"]
    assert found == ["_durable_batches_pytest"]
