"""Budgets as the commands take them."""

from __future__ import annotations

from pydantic import ValidationError

from durable_batches.cli.exits import CommandError, Exit
from durable_batches.lifecycle.budget import Budget

__all__ = ["budget_of"]

_NONE = "none"


def budget_of(cost: str | None, tokens: str | None) -> Budget | None:
    """Make the budget of what was given for its money and its tokens; None: there is to be none.

    Raises:
        CommandError: One is no amount, or out of range.
    """
    given = {"cost": cost, "tokens": tokens}
    limits: dict[str, object] = {name: text for name, text in given.items() if text not in (None, _NONE)}
    if not limits:
        return None
    try:
        if "tokens" in limits:
            limits["tokens"] = int(str(tokens))
        return Budget.model_validate(limits)
    except (ValidationError, ValueError):
        name, text = ("--budget-tokens", tokens) if tokens not in (None, _NONE) else ("--budget-cost", cost)
        raise CommandError(
            f"{name}: {text!r} is no amount above 0; give --budget-cost 12.50, --budget-tokens 100000, or none",
            Exit.USAGE,
        ) from None
