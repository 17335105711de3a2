"""The command `spent`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from decimal import Decimal
from typing import Final

from durable_batches.cli.exits import Exit
from durable_batches.cli.output import print_fields, print_json, print_table
from durable_batches.lifecycle.amounts import Amount, text_of
from durable_batches.lifecycle.spending import NO_SPENDING, Spending
from durable_batches.reading.client import BatchClient
from durable_batches.terminal.lines import print_line

__all__ = ["show_spending"]

_NONE: Final = "-"


async def show_spending(client: BatchClient, batch_id: str, *, as_json: bool) -> int:
    """Print what a batch has spent: in all, by stage, by activity and by model."""
    spending = await client.spent(batch_id)
    if as_json:
        print_json({"batch_id": batch_id, **vars(spending)})
        return Exit.DONE
    if spending == NO_SPENDING:
        print_line("no call has said that it spent anything")
        return Exit.DONE
    print_fields(
        [
            ("spent", str(spending.total)),
            *([("not paid again", str(spending.not_paid_again))] if spending.not_paid_again != Amount() else []),
            *([("unknown price", f"{spending.unpriced_calls} calls")] if spending.unpriced_calls else []),
        ]
    )

    async def rows() -> AsyncGenerator[Sequence[str], None]:
        for row in _rows(spending):
            yield row

    await print_table(("OF", "NAME", "COST", "TOKENS"), rows())
    return Exit.DONE


def _rows(spending: Spending) -> Iterator[Sequence[str]]:
    for name, amount in spending.by_stage.items():
        yield "stage", name or _NONE, *_texts(amount.cost, amount.tokens)
    if spending.resolver != Amount():
        yield "resolver", _NONE, *_texts(spending.resolver.cost, spending.resolver.tokens)
    for name, amount in spending.by_activity.items():
        yield "activity", name or _NONE, *_texts(amount.cost, amount.tokens)
    for name, of_model in spending.by_model.items():
        yield "model", name or _NONE, *_texts(of_model.cost, of_model.tokens)


def _texts(cost: Decimal, tokens: int) -> tuple[str, str]:
    return text_of(cost), str(tokens)
