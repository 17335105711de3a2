"""A batch in a script: for people without asyncio. Progress, an end in good order when told to stop, resumption."""

from __future__ import annotations

from durable_batches.script.runner import run_batch

__all__ = ["run_batch"]
