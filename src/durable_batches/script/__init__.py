"""Batches in scripts without asyncio: progress, a graceful stop at a signal, resumption."""

from __future__ import annotations

from durable_batches.script.runner import run_batch

__all__ = ["run_batch"]
