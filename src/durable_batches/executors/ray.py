"""Calls on a Ray cluster."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, Protocol, cast
from weakref import WeakKeyDictionary

from durable_batches.errors import ConfigurationError, MissingExtraError
from durable_batches.executors.cluster import ClusterAwayError, ClusterExecutor
from durable_batches.options import check_number, check_text

__all__ = ["RayExecutor"]

_RECONNECT_VARIABLE: Final = "RAY_gcs_rpc_server_reconnect_timeout_s"
_RECONNECT_SECONDS: Final = 86_400

_AWAY: Final = frozenset(
    "LocalRayletDiedError RaySystemError ObjectLostError OwnerDiedError RpcError CancelledError".split()
)
_DEFAULT_CALLS: Final = 1


class _Connection:
    """The connection of this process to Ray, of which there is one; who needs it holds it."""

    def __init__(self) -> None:
        self.lock: Final = threading.Lock()
        self.holders: int = 0
        self.is_ours: bool = False


_connection: Final = _Connection()


class RayExecutor(ClusterExecutor):
    """Runs each call as a task of a Ray cluster: `Worker(executors={"cluster": RayExecutor()})`.

    As many calls are submitted at once as the cluster has room for when it connects. Ray runs none of them again by
    itself. Where the program is connected to Ray already (`ray.init()`), that connection is used, and left open.

    Args:
        address: The cluster's ("10.0.0.1:6379", or "auto"); None: one that runs on this machine, or else one that is
            started, and ends with the worker.
        num_cpus: The processors that each call takes.
        num_gpus: The GPUs that each call takes.

    Raises:
        ConfigurationError: An argument is of a wrong type, negative, or not finite.
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, *, address: str | None = None, num_cpus: float = 1, num_gpus: float = 0) -> None:
        check_text("address", address, optional=True)
        check_number("num_cpus", num_cpus)
        check_number("num_gpus", num_gpus)
        if address == "":
            raise ConfigurationError("address must not be empty")
        for name, amount in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
            if not 0 <= amount < math.inf:
                raise ConfigurationError(f"{name} must be 0 or more, and finite")
        self._address: Final = address
        self._takes: Final = {"CPU": num_cpus, "GPU": num_gpus}
        self._users: int = 0
        self._counted: int = 0
        self._references: WeakKeyDictionary[Future[Any], _Reference] = WeakKeyDictionary()
        self._tasks: dict[Callable[..., Any], _Task] = {}
        if find_spec("ray") is None:
            raise MissingExtraError("ray", "ray")

    def connect(self, *, again: bool = False) -> int:
        """See `ClusterExecutor`."""
        ray = self._ray
        with _connection.lock:
            if not ray.is_initialized():
                local = {} if self._address is not None else {"include_dashboard": False}
                ray.init(address=self._address, **local)
                _connection.is_ours = True
                self._tasks.clear()
            self._users += not again
            _connection.holders += not again
        if again and self._counted:
            # Not asked again: where the cluster is another one now, Ray's core ends this process for the question.
            return self._counted
        try:
            places = self._counted = self._places(ray.nodes())
            if places == 0:
                takes = " and ".join(f"{amount:g} {name}" for name, amount in self._takes.items() if amount)
                raise ConfigurationError(f"no node of the Ray cluster has {takes} for a call: it would wait for ever")
        except BaseException:
            if not again:
                self.disconnect()
            raise
        return places

    @cached_property
    def _ray(self) -> _Ray:
        if "ray" not in sys.modules:
            # Ray ends the process of a program that has not reached the head of its cluster for a minute; read once.
            os.environ.setdefault(_RECONNECT_VARIABLE, str(_RECONNECT_SECONDS))
        return cast("_Ray", import_module("ray"))

    def _places(self, nodes: Sequence[Mapping[str, Any]]) -> int:
        """Count the calls that there is room for at once."""
        wanted = {name: amount for name, amount in self._takes.items() if amount}
        there = [node["Resources"] for node in nodes if node["Alive"]]
        if not wanted:
            return max(int(sum(node.get("CPU", 0) for node in there)), _DEFAULT_CALLS)
        return sum(min(int(node.get(name, 0) // amount) for name, amount in wanted.items()) for node in there)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `ClusterExecutor`."""
        if not self._ray.is_initialized():
            raise ClusterAwayError("this process is not connected to Ray")
        task = self._tasks.get(fn)
        if task is None:
            # Without retries: a call that ends its process would run again, without telling anybody.
            takes = {"num_cpus": self._takes["CPU"], "num_gpus": self._takes["GPU"]}
            task = self._tasks[fn] = self._ray.remote(max_retries=0, retry_exceptions=False, **takes)(fn)
        reference = task.remote(*args, **kwargs)
        future = reference.future()
        self._references[future] = reference
        return future

    def stop(self, future: Future[Any], *, forced: bool) -> bool:
        """See `ClusterExecutor`: its function is interrupted; where it is forced, its process is ended."""
        reference = self._references.get(future)
        if reference is None or future.done() or not self._ray.is_initialized():
            return True
        self._ray.cancel(reference, force=forced)
        return future.done()

    def was_away(self, error: BaseException | None) -> bool:
        """See `ClusterExecutor`."""
        return error is None or any(kind.__name__ in _AWAY for kind in type(error).__mro__)

    def disconnect(self) -> None:
        """See `ClusterExecutor`. A connection that others have made is left open."""
        with _connection.lock:
            if self._users == 0:
                return
            self._users -= 1
            _connection.holders -= 1
            if _connection.holders == 0 and _connection.is_ours:
                _connection.is_ours = False
                self._tasks.clear()
                self._ray.shutdown()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `concurrent.futures.Executor.shutdown`."""
        self.disconnect()

    def __repr__(self) -> str:
        return f"<Ray executor of {self._address or 'this machine'}>"


# ---- Ray, as far as it is used: its types need not be installed --------------------------------------------------


class _Reference(Protocol):
    def future(self) -> Future[Any]: ...


class _Task(Protocol):
    def remote(self, *args: Any, **kwargs: Any) -> _Reference: ...


class _Ray(Protocol):
    def init(self, *, address: str | None, **options: Any) -> object: ...

    def is_initialized(self) -> bool: ...

    def nodes(self) -> Sequence[Mapping[str, Any]]: ...

    def remote(self, **options: Any) -> Callable[[Callable[..., Any]], _Task]: ...

    def cancel(self, reference: _Reference, *, force: bool) -> object: ...

    def shutdown(self) -> None: ...
