"""The command `why`."""

from __future__ import annotations

from durable_batches.cli.exits import Exit
from durable_batches.cli.output import print_json, write
from durable_batches.printable import printable_lines
from durable_batches.reading.client import BatchClient

__all__ = ["explain_batch"]


async def explain_batch(client: BatchClient, batch_id: str, *, as_json: bool) -> int:
    """Print why a batch is where it is."""
    explanation = await client.explain(batch_id)
    if as_json:
        reasons = [{"tag": reason.tag, **vars(reason), "text": str(reason)} for reason in explanation.reasons]
        print_json(
            {
                "batch_id": explanation.batch_id,
                "state": explanation.state.tag,
                "headline": explanation.headline,
                "reasons": reasons,
            }
        )
    else:
        write(printable_lines(str(explanation)))
    return Exit.DONE
