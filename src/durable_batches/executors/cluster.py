"""Executors whose calls run on a cluster: an engine of its own, with processes that it replaces by itself.

What is different from a pool of this machine: a process that dies costs what ran in it and nothing else, so nothing is
made anew; the cluster may be away, which no call is to blame for; and a call that nobody waits for can be stopped.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

__all__ = ["ClusterAwayError", "ClusterExecutor", "foreign"]


class ClusterAwayError(Exception):
    """A cluster takes no calls now, and may take them later. Users do not see it: calls wait."""


class ClusterExecutor(Executor):
    """Runs calls on a cluster. Its methods may block, and are called on threads, but for `submit`."""

    @abstractmethod
    def connect(self, *, again: bool = False) -> int:
        """Connect to the cluster; return how many calls it runs at once.

        Args:
            again: Whether it was connected before, and refuses calls now.

        Raises:
            ConfigurationError: An option of the cluster would run calls twice, or not at all.
            Exception: The cluster is away.
        """

    @abstractmethod
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a call, without waiting for anything.

        Raises:
            ClusterAwayError: There is no connection.
        """

    @abstractmethod
    def stop(self, future: Future[Any], *, forced: bool) -> bool:
        """Stop a call that nobody waits for, as far as that can be done; return whether its place is free.

        It is called again until it is.

        Args:
            future: What `submit` returned.
            forced: Whether the process that runs it may be ended.
        """

    @abstractmethod
    def was_away(self, error: BaseException | None) -> bool:
        """Whether a call was lost with the cluster, and not with the process that ran it.

        Args:
            error: With which it was lost; None: its future was cancelled.
        """

    @abstractmethod
    def disconnect(self) -> None:
        """End what `connect` began, once for each time that it was not `again`."""


def foreign(executor: Executor) -> Executor:
    """Return what runs the calls of an executor: of one that Dask's client has made, the one of this library."""
    if type(executor).__module__.partition(".")[0] == "distributed":
        from durable_batches.executors.dask import DaskExecutor

        return DaskExecutor.of(executor)
    return executor
