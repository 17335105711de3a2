"""The commands that change a batch: `cancel`."""

from __future__ import annotations

from durable_batches.cli.exits import Exit
from durable_batches.cli.output import print_json, write
from durable_batches.reading.client import BatchClient
from durable_batches.terminal.text import printable

__all__ = ["cancel_batch"]


async def cancel_batch(client: BatchClient, batch_id: str, *, reason: str, as_json: bool) -> int:
    """Cancel a batch, and print what had finished and what was running."""
    running = (await client.snapshot(batch_id)).counts.running
    cancelled = await client.cancel(batch_id, reason=reason)
    batch = await client.snapshot(batch_id)
    counts = batch.counts
    if as_json:
        print_json({"batch_id": batch.batch_id, "cancelled": cancelled, "state": batch.state.tag, "counts": counts})
    elif cancelled:
        finished = counts.succeeded + counts.failed
        write(
            f"cancelled {printable(batch_id)}: {finished} of {counts.total} documents had finished"
            + (f", {running} were running" if running else "")
        )
    else:
        write(f"{printable(batch_id)} had ended before: {batch.state.tag}")
    return Exit.DONE if cancelled else Exit.ENDED_BEFORE
