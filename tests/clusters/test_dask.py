"""A real Dask: a worker that is killed, a scheduler that restarts, calls that hang, options that do not fit."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.clusters.batches import PATIENCE, Doubling, stops_what_hangs
from tests.clusters.dask_cluster import DaskCluster, connected
from tests.support import STAGES, within

from durable_batches import (
    BatchOrchestrator,
    ConfigurationError,
    ExecutorError,
    MemoryStore,
    Worker,
    workflow,
)
from durable_batches.executors import DaskExecutor, ExecutorOrFactory

pytestmark = pytest.mark.timeout(1_500)


@pytest.fixture
def cluster(tmp_path: Path) -> Generator[DaskCluster]:
    with DaskCluster(tmp_path) as cluster:
        cluster.start_scheduler()
        cluster.start_workers(2)
        wait_for_workers(cluster, 2)
        yield cluster


def wait_for_workers(cluster: DaskCluster, number: int) -> None:
    with connected(cluster.address) as client:
        client.wait_for_workers(number, timeout=PATIENCE)


async def test_a_killed_worker_and_a_restarted_scheduler_cost_no_document_and_no_attempt(
    cluster: DaskCluster, tmp_path: Path
) -> None:
    doubling = Doubling(tmp_path, DaskExecutor(cluster.address), held=(20, 120))
    async with doubling.batches:
        batch_id = await doubling.submit()
        os.kill(await doubling.holder(20), signal.SIGKILL)
        await doubling.holder(120)
        cluster.kill_scheduler()
        cluster.end_workers()
        cluster.start_scheduler()
        cluster.start_workers(2)
        await doubling.ends_well(batch_id)


async def test_calls_of_a_client_that_the_application_has_made(cluster: DaskCluster, tmp_path: Path) -> None:
    with connected(cluster.address) as client:
        await stops_what_hangs(tmp_path, client.get_executor(pure=False))
        # The worker has ended what it has made, and nothing else.
        assert client.submit(abs, -1).result(PATIENCE) == 1
        doubling = Doubling(tmp_path, client.get_executor(), held=())
        with pytest.raises(ConfigurationError, match="pure=False"):
            async with doubling.batches:
                pass


async def test_a_scheduler_that_repeats_calls_is_refused_and_one_that_is_away_is_an_error(tmp_path: Path) -> None:
    @workflow(STAGES, name="idle")
    async def idle(number: int) -> int:
        return number

    async def start(executor: ExecutorOrFactory) -> None:
        worker = Worker(MemoryStore(), executors={"cluster": executor})
        async with BatchOrchestrator(idle, worker=worker):
            pass

    with DaskCluster(tmp_path, allowed_failures=3) as cluster:
        with pytest.raises(ExecutorError, match="connecting it raised OSError"):
            await within(start(DaskExecutor(cluster.address)), seconds=PATIENCE)
        cluster.start_scheduler()
        with connected(cluster.address):
            pass
        with pytest.raises(ConfigurationError, match="DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=0"):
            await within(start(DaskExecutor(cluster.address)), seconds=PATIENCE)
