"""A real Ray: processes that are killed while they hold calls, calls that hang, options that do not fit."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Generator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from tests.clusters.batches import Doubling, stops_what_hangs
from tests.support import STAGES

from durable_batches import BatchOrchestrator, ConfigurationError, MemoryStore, Worker, workflow
from durable_batches.executors import RayExecutor

pytestmark = [
    pytest.mark.timeout(1_500),
    # Ray leaves files and processes of its own to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

# Read when Ray is imported. Without the first, it listens on the machine's own address; without the second, its workers
# have the processor only where nobody else wants it, and hardly begin beside other tests.
os.environ |= {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_worker_niceness": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
}


@pytest.fixture(scope="module")
def cluster() -> Generator[None]:
    """A Ray on loopback that this process is connected to: its start takes long, so there is one for all tests."""
    ray: Any = import_module("ray")
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=80 << 20,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=folder,
        )
        yield
        ray.shutdown()


@pytest.mark.usefixtures("cluster")
async def test_killed_processes_cost_no_document_and_no_attempt(tmp_path: Path) -> None:
    held = (20, 120)
    doubling = Doubling(tmp_path, RayExecutor(), held)
    async with doubling.batches:
        batch_id = await doubling.submit()
        for number in held:
            os.kill(await doubling.holder(number), signal.SIGKILL)
        await doubling.ends_well(batch_id)


@pytest.mark.usefixtures("cluster")
async def test_calls_that_hang_are_stopped(tmp_path: Path) -> None:
    await stops_what_hangs(tmp_path, RayExecutor())


@pytest.mark.usefixtures("cluster")
async def test_what_no_node_has_is_refused_at_the_start() -> None:
    @workflow(STAGES, name="idle")
    async def idle(number: int) -> int:
        return number

    worker = Worker(MemoryStore(), executors={"cluster": RayExecutor(num_gpus=1)})
    with pytest.raises(ConfigurationError, match="no node of the Ray cluster has 1 CPU and 1 GPU for a call"):
        async with BatchOrchestrator(idle, worker=worker):
            pass
