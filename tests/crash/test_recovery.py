"""Who takes over, and when: at once where a death can be seen, by the lease anywhere else."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from durable_batches import BatchConfig, BatchId, BatchOrchestrator, DocumentReleased, SQLiteStore, Worker
from durable_batches.clock import SystemClock
from durable_batches.lifecycle.records import ClaimRequest, WorkerId, WorkerRecord
from durable_batches.orchestrator.recovery import this_process
from durable_batches.testing.effects import EffectsLog
from durable_batches.testing.history import HistoryChecker
from tests.crash.processes import CLOCK, children, copy_of, database, opened, until
from tests.crash.workload import MAX_ATTEMPTS, Job, Page, document_ids, extract, here, run_of

LEASE = timedelta(seconds=30)
