"""Calls on a cluster that is away, loses them, and is told to stop them. Virtual time, and no cluster."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from types import SimpleNamespace
from typing import Any

import pytest
from tests.executors.activities import double, hang
from tests.executors.engines import Engine
from tests.executors.test_placement import placed
from tests.support import PATIENCE, STAGES, eventually, moving, turns, within

from durable_batches import (
    BatchOrchestrator,
    ConfigurationError,
    ExecutorError,
    MemoryStore,
    MissingExtraError,
    Worker,
    workflow,
)
from durable_batches.executors import DaskExecutor, RayExecutor
from durable_batches.executors.cluster import ClusterAwayError, ClusterExecutor, foreign
from durable_batches.executors.placement import Placement
from durable_batches.runtime.elsewhere import CallLostError
from durable_batches.runtime.threads import Threads
from durable_batches.testing import HistoryChecker, ManualClock


class KilledWorker(Exception):
    """With which Dask loses a call."""


class Cluster(Engine, ClusterExecutor):
    """An engine made of traps that may be away; `fate` may also say "lose"."""

    def __init__(self, fate: Callable[[bytes], str | Exception] = lambda call: "run", places: int = 2) -> None:
        super().__init__(fate, places)
        self.is_away = False
        self.asked = 0
        self.connected = 0
        self.stops_when_forced = False
        self.stopped: list[bool] = []

    def connect(self, *, again: bool = False) -> int:
        self.asked += 1
        if self.is_away:
            raise OSError("nobody listens there")
        self.connected += not again
        return self._max_workers

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self.is_away:
            raise ClusterAwayError("there is no connection")
        return super().submit(fn, *args, **kwargs)

    def stop(self, future: Future[Any], *, forced: bool) -> bool:
        self.stopped.append(forced)
        return forced or not self.stops_when_forced

    def was_away(self, error: BaseException | None) -> bool:
        return error is None

    def disconnect(self) -> None:
        self.connected -= 1

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.disconnect()


async def test_calls_that_are_lost_with_the_cluster_are_placed_again_however_often(
    caplog: pytest.LogCaptureFixture,
) -> None:
    losses = 0

    def fate(message: bytes) -> str:
        nonlocal losses
        losses += 1
        return "cancel" if losses <= 12 else "run"

    cluster = Cluster(fate)
    async with placed(cluster) as there:
        async with moving(there.clock, 10):
            assert await there.all(range(3)) == [0, 2, 4]
        assert there.free_places == 2
    assert cluster.connected == 0
    logged = [record.getMessage() for record in caplog.records if record.name == "durable_batches"]
    assert logged[0].startswith("executor 'cpu' is away: cancelled by the executor; its calls wait until it is back")
    assert logged[-1].startswith("executor 'cpu' answers again after ")


async def test_calls_wait_until_the_cluster_is_back_and_one_of_them_connects_it() -> None:
    cluster = Cluster()
    async with placed(cluster) as there:
        cluster.is_away = True
        waiting = asyncio.create_task(there.all(range(5), seconds=1))
        await eventually(lambda: cluster.asked == 2)
        # Hours later they still wait, and their own time has not begun.
        for asked in (3, 4, 5):
            await eventually(lambda: there.clock.waiting > 0)
            there.clock.advance(3600)
            await eventually(lambda asked=asked: cluster.asked == asked)  # type: ignore[misc]
        assert not waiting.done()
        cluster.is_away = False
        await eventually(lambda: there.clock.waiting > 0)
        there.clock.advance(3600)
        assert await waiting == [0, 2, 4, 6, 8]
        assert cluster.asked == 6
        assert there.free_places == 2


async def test_calls_wait_for_a_cluster_that_comes_back_with_other_options(caplog: pytest.LogCaptureFixture) -> None:
    class Changing(Cluster):
        refuses = False

        def connect(self, *, again: bool = False) -> int:
            super().connect(again=again)
            if self.refuses:
                raise ConfigurationError("it runs calls twice")
            return self._max_workers

    submitted: list[bytes] = []

    def fate(message: bytes) -> str:
        submitted.append(message)
        return "cancel" if len(submitted) == 1 else "run"

    cluster = Changing(fate)
    async with placed(cluster) as there:
        cluster.refuses = True
        waiting = asyncio.create_task(there.run(1))
        for asked in (2, 3, 4):
            await eventually(lambda asked=asked: cluster.asked == asked)  # type: ignore[misc]
            await eventually(lambda: there.clock.waiting > 0)
            there.clock.advance(3600)
        assert len(submitted) == 1
        cluster.refuses = False
        async with moving(there.clock, 60):
            assert await waiting == 2
    assert caplog.text.count("executors['cpu']: it runs calls twice") == 1


async def test_a_call_that_waits_for_a_cluster_can_be_cancelled() -> None:
    cluster = Cluster()
    async with placed(cluster) as there:
        cluster.is_away = True
        waiting = asyncio.create_task(there.run(1))
        await eventually(lambda: cluster.asked == 2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        cluster.is_away = False
        assert await there.run(2) == 4
        assert there.free_places == 2


async def test_a_cluster_that_a_function_makes_is_made_again_when_it_is_back() -> None:
    made: list[Cluster] = []
    is_away = False

    def make() -> Cluster:
        if is_away:
            raise OSError("nobody listens there")
        made.append(Cluster())
        return made[-1]

    async with placed(make) as there:
        assert await there.run(1) == 2
        is_away = made[0].ended = True
        waiting = asyncio.create_task(there.run(2, seconds=1))
        await eventually(lambda: there.clock.waiting > 0)
        is_away = False
        there.clock.advance(3600)
        assert await waiting == 4
        assert len(made) == 2
        await there.ended()
    assert [cluster.connected for cluster in made] == [0, 0]


async def test_a_call_that_ends_its_process_is_to_blame_and_costs_no_other() -> None:
    made: list[Cluster] = []

    def make() -> Cluster:
        made.append(Cluster(lambda message: KilledWorker("died") if message.endswith(b"13") else "run"))
        return made[-1]

    async with placed(make) as there:
        results = await there.all(range(12, 16))
        assert isinstance(results.pop(1), CallLostError)
        assert results == [24, 28, 30]
    # It is not made anew, nor is another one made for the call.
    assert len(made) == 1


async def test_a_call_that_a_cluster_takes_its_time_to_take_can_be_cancelled() -> None:
    gate = threading.Event()

    class Slow(Cluster):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            assert gate.wait(PATIENCE)
            return super().submit(fn, *args, **kwargs)

    cluster = Slow(lambda message: "hang" if message.endswith(b"1") else "run", places=1)
    async with placed(cluster) as there:
        running = asyncio.create_task(there.run(1))
        await turns(5)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        # It keeps its place until it was submitted, and stopped.
        assert there.free_places == 0
        gate.set()
        await eventually(lambda: there.free_places == 1)
        assert cluster.stopped == [False]
        assert await there.run(2) == 4
        # The end of the worker waits for it no more than the caller.
        gate.clear()
        running = asyncio.create_task(there.run(3))
        await turns(5)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    gate.set()


async def test_a_connection_that_is_made_for_nobody_is_ended() -> None:
    gate, ended = threading.Event(), threading.Event()

    class Slow(Cluster):
        def connect(self, *, again: bool = False) -> int:
            assert gate.wait(PATIENCE)
            return super().connect(again=again)

        def disconnect(self) -> None:
            super().disconnect()
            ended.set()

    threads, cluster = Threads(1), Slow()
    opening = asyncio.create_task(Placement("cpu", cluster, ManualClock()).open(threads))
    await turns(5)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    gate.set()
    await eventually(ended.is_set)
    assert cluster.connected == 0
    threads.close()


@pytest.mark.parametrize("forced", [False, True])
async def test_a_call_that_was_given_up_is_stopped_and_keeps_its_place_until_then(forced: bool) -> None:
    cluster = Cluster(lambda message: "hang" if message.endswith(b"1") else "run", places=1)
    cluster.stops_when_forced = forced
    async with placed(cluster) as there:
        hanging = asyncio.create_task(there.run(1))
        await eventually(lambda: bool(cluster.running))
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        after = asyncio.create_task(there.run(2))
        if forced:
            await eventually(lambda: cluster.stopped == [False] and there.clock.waiting > 0)
            assert not after.done()
            there.clock.advance(2)
        assert await after == 4
        assert cluster.stopped == [False, True][: 1 + forced]
        assert there.free_places == 1


async def test_calls_that_run_when_the_worker_ends_are_stopped_and_not_waited_for() -> None:
    cluster = Cluster(lambda message: "hang")
    cluster.stops_when_forced = True
    async with placed(cluster) as there:
        hanging = asyncio.create_task(there.run(1))
        await eventually(lambda: bool(cluster.running))
        hanging.cancel()
        await eventually(lambda: bool(cluster.stopped))
    assert cluster.connected == 0


async def test_a_cluster_that_loses_everything_uses_no_attempt_of_any_document() -> None:
    @workflow(STAGES, name="trial")
    async def trial(number: int) -> int:
        return await double(number)

    submitted: dict[bytes, int] = {}

    def fate(message: bytes) -> str | Exception:
        times = submitted[message] = submitted.get(message, 0) + 1
        return ("cancel", KilledWorker("died"), "cancel", KilledWorker("died"), "run")[times - 1]

    clock = ManualClock()
    store = MemoryStore(clock=clock)
    worker = Worker(store, executors={"cpu": Cluster(fate, places=8)}, clock=clock)
    async with BatchOrchestrator(trial, worker=worker) as batches, moving(clock, 0.1):
        result = await within(batches.run(range(12), document_id=str))
    assert result.counts.succeeded == 12
    # The same bytes each time, and in them the attempt.
    assert set(submitted.values()) == {5}
    await HistoryChecker().verify(store)


async def test_a_cluster_that_is_away_or_does_not_fit_is_an_error_at_the_start() -> None:
    @workflow(STAGES, name="trial")
    async def trial(number: int) -> None:
        await hang(number)

    away = Cluster()
    away.is_away = True
    with pytest.raises(ExecutorError, match="connecting it raised OSError: nobody listens there"):
        async with BatchOrchestrator(trial, worker=Worker(MemoryStore(), executors={"cpu": away})):
            pass

    class Wrong(Cluster):
        def connect(self, *, again: bool = False) -> int:
            raise ConfigurationError("it runs calls twice")

    with pytest.raises(ConfigurationError, match=r"executors\['cpu'\]: it runs calls twice"):
        async with BatchOrchestrator(trial, worker=Worker(MemoryStore(), executors={"cpu": Wrong()})):
            pass


# ---- Dask and Ray, as far as they need not be there ------------------------------------------------------------


class Scheduler:
    """A client of Dask's."""

    status = "running"

    def __init__(self, allowed_failures: int = 0, threads: Mapping[str, int] | None = None) -> None:
        self.allowed_failures = allowed_failures
        self.threads = {"tcp://one": 1, "tcp://two": 1} if threads is None else threads

    def run_on_scheduler(self, function: Callable[..., object]) -> object:
        return function(dask_scheduler=self)

    def nthreads(self) -> Mapping[str, int]:
        return self.threads


def client_executor(client: Scheduler, **options: object) -> Executor:
    """What a client's `get_executor` returns."""

    class ClientExecutor(Executor):
        _client = client
        _kwargs = options
        _shutdown = False

    ClientExecutor.__module__ = "distributed.cfexecutor"
    return ClientExecutor()


def connect(executor: Executor) -> int:
    cluster = foreign(executor)
    assert isinstance(cluster, ClusterExecutor)
    return cluster.connect()


def test_options_of_dask_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"get_executor\(pure=False\)"):
        connect(client_executor(Scheduler()))
    with pytest.raises(ConfigurationError, match="retries"):
        connect(client_executor(Scheduler(), pure=False, retries=2))
    with pytest.raises(ConfigurationError, match=r"allowed-failures 3: it would run .* 4 times"):
        connect(client_executor(Scheduler(3), pure=False))
    with pytest.raises(ClusterAwayError, match="no workers"):
        connect(client_executor(Scheduler(threads={}), pure=False))
    assert connect(client_executor(Scheduler(), pure=False)) == 2


def test_a_client_of_dask_that_is_closed_says_that_it_was_given_as_it_is() -> None:
    client = Scheduler()
    cluster = foreign(client_executor(client, pure=False))
    client.status = "connecting"
    with pytest.raises(ClusterAwayError, match="not connected"):
        cluster.submit(len, b"")
    client.status = "closed"
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown of the Dask client"):
        cluster.submit(len, b"")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A Ray of two nodes, one of which has died."""
    nodes = [
        {"Alive": True, "Resources": {"CPU": 5.0, "GPU": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
    ]
    fake = SimpleNamespace(
        __spec__=SimpleNamespace(name="ray"), is_initialized=lambda: True, nodes=lambda: nodes, shutdown=lambda: None
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize(
    ("takes", "places"), [((1, 0), 5), ((2, 0), 2), ((0.5, 0), 10), ((1, 1), 1), ((0, 0), 5), ((0, 0.5), 2)]
)
def test_places_of_a_ray_cluster_are_counted_by_what_a_call_takes(takes: tuple[float, float], places: int) -> None:
    cluster = RayExecutor(num_cpus=takes[0], num_gpus=takes[1])
    assert cluster.connect() == places
    cluster.disconnect()


def test_a_ray_cluster_that_may_be_another_one_is_not_asked_what_it_has(ray: SimpleNamespace) -> None:
    cluster = RayExecutor()
    assert cluster.connect() == 5

    def nodes() -> None:
        raise AssertionError("this ends the process where the head was started anew")

    ray.nodes = nodes
    assert cluster.connect(again=True) == 5
    cluster.disconnect()


@pytest.mark.usefixtures("ray")
def test_what_no_node_of_a_ray_cluster_has_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no node of the Ray cluster has 6 CPU and 1 GPU for a call"):
        RayExecutor(num_cpus=6, num_gpus=1).connect()


@pytest.mark.parametrize("amount", [-1, float("nan"), float("inf"), "2", True])
@pytest.mark.usefixtures("ray")
def test_amounts_that_a_call_cannot_take_are_refused(amount: Any) -> None:
    for name in ("num_cpus", "num_gpus"):
        with pytest.raises(ConfigurationError, match=name):
            RayExecutor(**{name: amount})


def _nowhere(name: str) -> None:
    """Find no module."""


def test_what_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durable_batches.executors.dask.find_spec", _nowhere)
    monkeypatch.setattr("durable_batches.executors.ray.find_spec", _nowhere)
    with pytest.raises(MissingExtraError, match=r"durable-batches\[dask\]"):
        DaskExecutor("tcp://127.0.0.1:8786")
    with pytest.raises(MissingExtraError, match=r"durable-batches\[ray\]"):
        RayExecutor()
    with pytest.raises(ConfigurationError, match="address must be a str"):
        DaskExecutor(8786)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="address must not be empty"):
        DaskExecutor("")
