"""Calls on a Dask cluster."""

from __future__ import annotations

import math
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor, Future
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, Protocol, TypeAlias, cast
from weakref import WeakKeyDictionary

from durable_batches.errors import ConfigurationError, MissingExtraError
from durable_batches.executors.cluster import ClusterAwayError, ClusterExecutor
from durable_batches.options import check_instance, check_number, check_text

__all__ = ["DaskExecutor"]

_CONNECT_SECONDS: Final = 10
_RESTART_SECONDS: Final = 30
_Options: TypeAlias = Mapping[str, Any]


class DaskExecutor(ClusterExecutor):
    """Runs calls on the workers of a Dask cluster, over a client of its own: `Worker(executors={"cluster": ...})`.

    As many calls are submitted at once as the workers have threads when it connects. The cluster's scheduler must have
    `allowed-failures` 0, since it otherwise runs a call again that ends its process, without telling anybody.

    Args:
        address: The scheduler's ("tcp://10.0.0.1:8786").
        resources: What each call takes of the resources that workers were started with (`{"GPU": 1}`); None: nothing.

    Raises:
        ConfigurationError: An argument is of a wrong type.
        MissingExtraError: Dask is not installed.
    """

    def __init__(self, address: str, *, resources: Mapping[str, float] | None = None) -> None:
        check_text("address", address)
        check_instance("resources", resources, Mapping, optional=True)
        if not address:
            raise ConfigurationError("address must not be empty")
        for name, amount in (resources or {}).items():
            check_text("each name in resources", name)
            check_number(f"resources[{name!r}]", amount)
            if not 0 < amount < math.inf:
                raise ConfigurationError(f"resources[{name!r}] must be positive and finite")
        if find_spec("distributed") is None:
            raise MissingExtraError("dask", "distributed")
        self._begin(address, None, {} if resources is None else {"resources": dict(resources)})

    def _begin(self, address: str, client: _Client | None, options: _Options) -> None:
        self._address: str = address
        self._is_own: bool = client is None
        self._client: _Client | None = client
        self._options: _Options = {**options, "pure": False, "retries": 0}
        self._lock = threading.Lock()
        self._users: int = 0
        self._is_shut_down: Callable[[], bool] = bool
        self._submitted: WeakKeyDictionary[Future[Any], _Submitted] = WeakKeyDictionary()
        self._stopped: WeakKeyDictionary[Future[Any], tuple[str, bool, int]] = WeakKeyDictionary()

    @classmethod
    def of(cls, executor: Executor) -> DaskExecutor:
        """Make one that uses the client and the options of `Client.get_executor(...)`.

        Raises:
            ConfigurationError: It would answer a call from memory, or run it again by itself.
        """
        found = cast("_ClientExecutor", executor)
        client, options = found._client, found._kwargs  # pyright: ignore[reportPrivateUsage]  # there is no other way
        if options.get("pure") is not False:
            raise ConfigurationError(
                "Dask answers a call from memory that equals an earlier one, unless its executor is made by "
                "Client.get_executor(pure=False)"
            )
        if options.get("retries"):
            raise ConfigurationError(
                "Client.get_executor(retries=...) runs calls again that this library does not know of; leave it out"
            )
        made = cls.__new__(cls)
        made._begin("", client, options)
        made._is_shut_down = lambda: found._shutdown  # pyright: ignore[reportPrivateUsage]
        return made

    def connect(self, *, again: bool = False) -> int:
        """See `ClusterExecutor`."""
        with self._lock:
            client = self._client
            if self._is_own and (client is None or client.status == "closed"):
                distributed = cast("_Distributed", import_module("distributed"))
                client = distributed.Client(self._address, timeout=_CONNECT_SECONDS, set_as_default=False)
            assert client is not None
            try:
                _check(client)
                places = sum(client.nthreads().values())
            except BaseException:
                if client is not self._client:
                    client.close()
                raise
            if places == 0:
                if client is not self._client:
                    client.close()
                raise ClusterAwayError("the Dask cluster has no workers")
            self._client = client
            self._users += not again
            return places

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `ClusterExecutor`."""
        client = self._client
        if self._is_shut_down():
            raise RuntimeError("cannot schedule new futures after shutdown")
        if client is None or client.status != "running":
            if client is not None and client.status == "closed" and not self._is_own:
                raise RuntimeError("cannot schedule new futures after shutdown of the Dask client")
            raise ClusterAwayError("the Dask client is not connected")
        try:
            submitted = client.submit(fn, *args, **self._options, **kwargs)
        except Exception as error:
            if type(error).__name__ == "ClosedClientError":
                raise ClusterAwayError("the Dask client has been closed") from error
            raise
        future: Future[Any] = Future()
        # It cannot be cancelled from here on: `stop` tells the cluster.
        future.set_running_or_notify_cancel()
        self._submitted[future] = submitted
        client.loop.add_callback(_hand_on, client, submitted, future)
        return future

    def stop(self, future: Future[Any], *, forced: bool) -> bool:
        """See `ClusterExecutor`. Dask cannot stop a thread: where it is forced, the worker of that thread is restarted.

        That takes a worker that has a nanny, and runs one call at once.
        """
        client, submitted = self._client, self._submitted.get(future)
        if client is None or submitted is None or client.status != "running":
            return True
        found = client.run_on_scheduler(_worker_of(), key=submitted.key)
        if found is not None and future not in self._stopped:
            self._stopped[future] = found
        if not submitted.cancelled():
            submitted.cancel()
        address, has_nanny, threads = self._stopped.get(future, ("", False, 0))
        if address not in client.nthreads() or not client.run(_has_task(), submitted.key, workers=[address])[address]:
            return True
        if forced and has_nanny and threads == 1:
            client.restart_workers([address], timeout=_RESTART_SECONDS)
            return True
        return False

    def was_away(self, error: BaseException | None) -> bool:
        """See `ClusterExecutor`: a scheduler that goes away cancels all that was submitted."""
        return error is None or any(kind.__name__ in _AWAY for kind in type(error).__mro__)

    def disconnect(self) -> None:
        """See `ClusterExecutor`. A client that was given is left open."""
        with self._lock:
            self._users = max(self._users - 1, 0)
            client = self._client
            if self._is_own and self._users == 0 and client is not None:
                self._client = None
                client.close()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `concurrent.futures.Executor.shutdown`."""
        self.disconnect()

    def __repr__(self) -> str:
        return f"<Dask executor of {self._address or self._client!r}>"


_AWAY: Final = frozenset({"CancelledError", "CommClosedError"})


async def _hand_on(client: _Client, submitted: _Submitted, future: Future[Any]) -> None:
    """Hand the outcome of a call on, on the client's event loop."""
    try:
        result = await client.gather(submitted, asynchronous=True)
    except BaseException as error:  # noqa: BLE001  (it is the outcome; that of a lost scheduler is a cancellation)
        future.set_exception(error)
    else:
        future.set_result(result)


# Functions within others travel by value: neither scheduler nor workers need this version of the library for them.


def _allowed_failures() -> Callable[..., int]:
    def ask(dask_scheduler: Any) -> int:
        return int(dask_scheduler.allowed_failures)

    return ask


def _worker_of() -> Callable[..., tuple[str, bool, int] | None]:
    def ask(key: str, dask_scheduler: Any) -> tuple[str, bool, int] | None:
        task = dask_scheduler.tasks.get(key)
        worker = None if task is None else task.processing_on
        return None if worker is None else (worker.address, bool(worker.nanny), int(worker.nthreads))

    return ask


def _has_task() -> Callable[..., bool]:
    def ask(key: str, dask_worker: Any) -> bool:
        return key in dask_worker.state.tasks

    return ask


def _check(client: _Client) -> None:
    """Verify that the cluster runs no call again by itself."""
    allowed = client.run_on_scheduler(_allowed_failures())
    if allowed != 0:
        raise ConfigurationError(
            f"Dask's scheduler has allowed-failures {allowed}: it would run a call that ends its process {allowed + 1} "
            "times, without telling; start it with DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=0 in its environment"
        )


# ---- Dask, as far as it is used: its types need not be installed -------------------------------------------------


class _Submitted(Protocol):
    @property
    def key(self) -> str: ...

    def cancel(self) -> object: ...

    def cancelled(self) -> bool: ...


class _Loop(Protocol):
    def add_callback(self, callback: Callable[..., object], /, *args: object) -> None: ...


class _Client(Protocol):
    @property
    def status(self) -> str: ...

    @property
    def loop(self) -> _Loop: ...

    def submit(self, fn: Callable[..., Any], /, *args: Any, **options: Any) -> _Submitted: ...

    def gather(self, futures: _Submitted, /, *, asynchronous: bool) -> Awaitable[Any]: ...

    def nthreads(self) -> Mapping[str, int]: ...

    def run(self, function: Callable[..., Any], /, *args: Any, workers: list[str]) -> Mapping[str, Any]: ...

    def run_on_scheduler(self, function: Callable[..., Any], /, **kwargs: Any) -> Any: ...

    def restart_workers(self, workers: list[str], /, *, timeout: int) -> object: ...

    def close(self) -> object: ...


class _ClientExecutor(Protocol):
    _client: _Client
    _kwargs: Mapping[str, object]
    _shutdown: bool


class _Distributed(Protocol):
    def Client(self, address: str, /, *, timeout: int, set_as_default: bool) -> _Client: ...  # noqa: N802
