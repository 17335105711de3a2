"""What the calls of activities have spent: as they say it, as it is recorded, and the sums of a batch.

Which spends count
------------------

1. What a call spends is recorded in the transaction that records its result or its final failure, with that of all of
   its attempts. So a commit that is repeated, or that comes from a worker whose lease has expired, counts nothing
   twice.
2. A call that ends without a record (it was cancelled, stopped by a pause or refused) has its spends recorded with the
   end of the document's attempt.
3. A result that comes after the end of its run counts all the same: it was paid for.
4. What a process had in flight when it died is not known, and counts nothing.
5. Of a late result, which may be reported twice, only the report counts that records it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, NamedTuple, NotRequired, TypeAlias, TypedDict

from durable_batches.lifecycle.amounts import Amount, Money, added, text_of, unchecked
from durable_batches.lifecycle.primitives import Value

__all__ = [
    "NOTHING_SPENT",
    "NO_SPENDING",
    "NO_SPENDS",
    "ModelSpending",
    "Spend",
    "SpendSums",
    "Spending",
    "amount_in",
    "amount_of",
    "count_replayed",
    "count_spends",
    "decode_spends",
    "encode_spends",
    "merged",
    "spending_of",
]

_MOST_NAMES: Final = 100
"""Activities, and models, that have a sum of their own; what others spend is summed under `OTHERS`."""
OTHERS: Final = ""

_Sum: TypeAlias = list[Any]
"""Tokens, and money as text."""
_ModelSum: TypeAlias = list[Any]
"""Tokens, those of prompts, those of answers, money as text, and spends of an unknown price."""


class Spend(NamedTuple):
    """What an activity of one document has spent with one model, in one stage."""

    activity: str
    stage: int
    """The index of the stage in which it was called; -1: in none."""
    model: str
    """Empty: it did not say."""
    tokens: int
    """All of them; at least those of prompts and answers."""
    input_tokens: int
    output_tokens: int
    cost: Decimal
    unpriced: int
    """Spends of an unknown price."""


class SpendSums(TypedDict):
    """What a batch has spent, over all of its runs: as it is stored in its core."""

    total: _Sum
    resolver: _Sum
    stages: dict[str, _Sum]
    activities: dict[str, _Sum]
    models: dict[str, _ModelSum]
    unpriced: int
    replayed: NotRequired[_Sum]
    """What results had cost that were found recorded."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ModelSpending(Value):
    """What calls of one model have spent."""

    tokens: int
    input_tokens: int
    """Those of the prompts, as far as calls said so."""
    output_tokens: int
    """Those of the answers, as far as calls said so."""
    cost: Money
    unpriced_calls: int = 0
    """Spends of this model of an unknown price."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Spending(Value):
    """What a batch has spent, over all of its runs."""

    total: Amount
    not_paid_again: Amount
    """What results had cost that were found recorded, after a crash or a failure of the document: each time that one
    was found counts, with the end of the attempt that found it."""
    by_stage: Mapping[str, Amount] = field(default_factory=dict[str, Amount])
    """Of documents' calls, by the stage that they were made in; in none: under ''."""
    by_activity: Mapping[str, Amount] = field(default_factory=dict[str, Amount])
    """By the activity's name; of more than a hundred the rest under ''."""
    by_model: Mapping[str, ModelSpending] = field(default_factory=dict[str, ModelSpending])
    """By the model that calls named; what named none, and of more than a hundred the rest, under ''."""
    resolver: Amount = field(default_factory=Amount)
    """Of the resolver's calls, which are in no stage."""
    unpriced_calls: int = 0
    """Spends of an unknown price: their tokens count, their cost is in no sum."""


NO_SPENDS: Final = "[]"
"""What is recorded of a call that has said nothing, and for which room in a budget was reserved."""
NOTHING_SPENT: Final = Amount()
NO_SPENDING: Final = Spending(total=NOTHING_SPENT, not_paid_again=NOTHING_SPENT)


# ---- recorded with a call --------------------------------------------------------------------------------------------


def encode_spends(spends: Iterable[Spend]) -> str | None:
    """Encode what a call, or an attempt, has spent, as it is recorded; None: it has spent nothing."""
    rows = [[*spend[:6], text_of(spend.cost), spend.unpriced] for spend in merged(spends)]
    return json.dumps(rows, separators=(",", ":")) if rows else None


def decode_spends(text: str) -> list[Spend]:
    """Decode what was recorded."""
    return [Spend._make([*row[:6], Decimal(row[6]), row[7]]) for row in json.loads(text)]


def merged(spends: Iterable[Spend]) -> list[Spend]:
    """Sum spends of one activity, stage and model."""
    sums: dict[tuple[str, int, str], Spend] = {}
    for spend in spends:
        key = spend[:3]
        before = sums.get(key)
        sums[key] = spend if before is None else _sum_of(before, spend)
    return list(sums.values())


def _sum_of(one: Spend, other: Spend) -> Spend:
    return one._replace(
        tokens=one.tokens + other.tokens,
        input_tokens=one.input_tokens + other.input_tokens,
        output_tokens=one.output_tokens + other.output_tokens,
        cost=added(one.cost, other.cost),
        unpriced=one.unpriced + other.unpriced,
    )


def amount_of(spends: Iterable[Spend]) -> Amount:
    """Sum spends."""
    total = NOTHING_SPENT
    for spend in spends:
        total += unchecked(spend.tokens, spend.cost)
    return total


# ---- the sums of a batch ---------------------------------------------------------------------------------------------


def count_spends(
    sums: SpendSums | None, spends: Iterable[Spend], stages: Sequence[str], *, resolver: bool
) -> SpendSums:
    """Add spends to the sums of a batch.

    Args:
        sums: Those so far, which are changed; None: it has spent nothing.
        spends: What was spent.
        stages: The tags of the batch's stages.
        resolver: Whether its resolver has spent it.
    """
    if sums is None:
        sums = SpendSums(total=_none(), resolver=_none(), stages={}, activities={}, models={}, unpriced=0)
    for spend in spends:
        _add(sums["total"], spend)
        if resolver:
            _add(sums["resolver"], spend)
        else:
            _add(sums["stages"].setdefault(_stage_of(spend, stages), _none()), spend)
        activities, models = sums["activities"], sums["models"]
        _add(activities.setdefault(_name_in(activities, spend.activity), _none()), spend)
        model = models.setdefault(_name_in(models, spend.model), [0, 0, 0, "0", 0])
        model[0] += spend.tokens
        model[1] += spend.input_tokens
        model[2] += spend.output_tokens
        model[3] = text_of(added(Decimal(model[3]), spend.cost))
        model[4] += spend.unpriced
        sums["unpriced"] += spend.unpriced
    return sums


def count_replayed(sums: SpendSums, spends: Iterable[Spend]) -> None:
    """Add what results had cost that were found recorded."""
    replayed = sums.setdefault("replayed", _none())
    for spend in spends:
        _add(replayed, spend)


def spending_of(sums: SpendSums | None) -> Spending:
    """Read the sums of a batch."""
    if sums is None:
        return NO_SPENDING
    return Spending(
        total=amount_in(sums["total"]),
        not_paid_again=amount_in(sums.get("replayed", _none())),
        by_stage={name: amount_in(of_name) for name, of_name in sums["stages"].items()},
        by_activity={name: amount_in(of_name) for name, of_name in sums["activities"].items()},
        by_model={
            name: ModelSpending(
                tokens=tokens,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                cost=Decimal(cost),
                unpriced_calls=unpriced,
            )
            for name, (tokens, input_tokens, output_tokens, cost, unpriced) in sums["models"].items()
        },
        resolver=amount_in(sums["resolver"]),
        unpriced_calls=sums["unpriced"],
    )


def amount_in(stored: Sequence[Any]) -> Amount:
    """Read one sum."""
    return unchecked(stored[0], Decimal(stored[1]))


def _none() -> _Sum:
    return [0, "0"]


def _add(total: _Sum, spend: Spend) -> None:
    total[0] += spend.tokens
    total[1] = text_of(added(Decimal(total[1]), spend.cost))


def _stage_of(spend: Spend, stages: Sequence[str]) -> str:
    return stages[spend.stage] if 0 <= spend.stage < len(stages) else ""


def _name_in(sums: Mapping[str, object], name: str) -> str:
    return name if name in sums or len(sums) < _MOST_NAMES else OTHERS
