"""Executors: activities with `run_on=` on pools of processes, on Dask, on Ray, or any `concurrent.futures.Executor`.

The workflow, its checkpoints and the lease stay with the worker; only encoded arguments and results travel.
"""

from __future__ import annotations

from durable_batches.executors.dask import DaskExecutor
from durable_batches.executors.kept_executor import ExecutorOrFactory
from durable_batches.executors.process_pool import ProcessPool, process_pool
from durable_batches.executors.ray import RayExecutor

__all__ = ["DaskExecutor", "ExecutorOrFactory", "ProcessPool", "RayExecutor", "process_pool"]
