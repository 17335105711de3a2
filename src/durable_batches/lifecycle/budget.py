"""The budget of a batch: how much its calls may spend, and what happens when that is spent.

Spends are counted in the transaction that records them (`spending`), and the budget is judged there. So the commit that
reaches it pauses the batch, or fails it. Calls that are running then finish, and are recorded and counted.

A call of an activity with an estimate asks for room before it begins (`CallReserved`), in a transaction of all workers'
commits: what is spent and what is reserved never exceed the budget. So the batch exceeds it only by what calls spend
above their estimates, with all of their attempts. Room is released with the record of the call, or in the plan that
ends the document's attempt: of a worker that died, the one that releases its documents. A call that finds no room waits
for what others release; where none is reserved, the budget counts as spent.

Calls without an estimate reserve nothing: by these, a batch exceeds its budget by what was in flight at that commit,
and by what other workers begin until they notice, within half a second.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Final, Literal, Self, TypedDict

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from durable_batches.lifecycle.amounts import MOST, Amount, Money, added, money, text_of
from durable_batches.lifecycle.records import Micros

__all__ = ["BUDGET_GENERATION", "Budget", "BudgetPause"]

BUDGET_GENERATION: Final = 3
"""The generation of the library that knows budgets; an older one counts nothing, and would not pause."""


_DIGITS: Final = r"^(?!0+(\.0+)?$)[0-9]{1,15}(\.[0-9]{1,12})?$"


def _exact(value: object, info: ValidationInfo) -> object:
    """Refuse what is not exact, and text that others would read as another number."""
    if isinstance(value, str):
        if re.fullmatch(_DIGITS, value) is None:
            raise ValueError("must be above 0, and have digits alone: 12.50")
    elif info.mode == "json":
        raise ValueError('must be a string of digits, as a number of JSON is not exact: "12.50"')
    elif isinstance(value, bool | float):
        raise ValueError(f"must be a Decimal or an int, not {type(value).__name__!r}, which is not exact")
    return value


def _rounded(value: Decimal) -> Decimal:
    rounded = money("cost", value)
    if not rounded:
        raise ValueError("must be a trillionth at least")
    return rounded


class Budget(BaseModel, frozen=True, extra="forbid", defer_build=True):
    """How much the calls of a batch may spend (`ActivityContext.spend`), over all of its runs.

    At least one of `tokens` and `cost` is given; the one that is reached first counts.

    Raises:
        pydantic.ValidationError: A value is out of range or of a wrong type (a float), or none is given.
    """

    tokens: Annotated[int, Field(strict=True, ge=1, lt=MOST)] | None = None
    """All tokens. None: no limit."""

    cost: (
        Annotated[
            Money,
            BeforeValidator(_exact),
            Field(gt=0, lt=MOST, allow_inf_nan=False),
            AfterValidator(_rounded),
            WithJsonSchema({"type": "string", "pattern": _DIGITS}),
        ]
        | None
    ) = None
    """Money, in the currency that calls say, to twelve decimal places; in JSON a string of digits. None: no limit."""

    then: Literal["pause", "fail"] = "pause"
    """What happens when it is reached: the batch is paused until `update(budget=)` raises it, or it is FAILED."""

    @model_validator(mode="after")
    def _is_limited(self) -> Self:
        if self.tokens is None and self.cost is None:
            raise ValueError("give tokens, cost, or both")
        return self

    def is_reached(self, spent: Amount) -> bool:
        """Whether nothing is left of it."""
        return (self.tokens is not None and spent.tokens >= self.tokens) or (
            self.cost is not None and spent.cost >= self.cost
        )

    def has_room(self, used: Amount, amount: Amount) -> bool:
        """Whether an amount fits in what is left of it."""
        return (self.tokens is None or used.tokens + amount.tokens <= self.tokens) and (
            self.cost is None or added(used.cost, amount.cost) <= self.cost
        )

    def __str__(self) -> str:
        parts = [] if self.cost is None else [text_of(self.cost)]
        if self.tokens is not None:
            parts.append(f"{self.tokens:,} tokens")
        return " or ".join(parts)


class BudgetPause(TypedDict):
    """The pause of a batch whose budget is spent, as it is stored in its core: a field of its own, like an operator's.

    It sets `BatchRecord.paused`, too.
    """

    since: Micros
    note: str
