"""Executors: activities with `run_on=` on pools of processes, or on any other `concurrent.futures.Executor`.

The workflow, its checkpoints and the lease stay with the worker; only encoded arguments and results travel.
"""

from __future__ import annotations

from durable_batches.executors.kept_executor import ExecutorOrFactory
from durable_batches.executors.process_pool import ProcessPool, process_pool

__all__ = ["ExecutorOrFactory", "ProcessPool", "process_pool"]
