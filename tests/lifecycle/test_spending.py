"""What calls spend: recorded and summed exactly, and what may be said."""

from __future__ import annotations

import decimal
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_batches import Amount, ConfigurationError
from durable_batches.lifecycle.spending import (
    NO_SPENDING,
    Spend,
    SpendSums,
    amount_of,
    count_replayed,
    count_spends,
    decode_spends,
    encode_spends,
    spending_of,
)
from durable_batches.runtime.spends import spend_of

STAGES = ("reading", "writing")

costs = st.decimals(min_value=0, max_value=10**12, places=12, allow_nan=False, allow_infinity=False)
spends = st.builds(
    Spend,
    st.sampled_from(["ask", "read", "ä:1"]),
    st.integers(-1, 2),
    st.sampled_from(["", "gpt", "klein \0 \\u0000"]),
    st.integers(0, 10**15),
    st.integers(0, 10**15),
    st.integers(0, 10**15),
    costs,
    st.integers(0, 1),
)


@given(st.lists(st.tuples(st.lists(spends, max_size=3), st.booleans()), max_size=6))
def test_sums_are_exact_whatever_the_context(said: list[tuple[list[Spend], bool]]) -> None:
    sums: SpendSums | None = None
    with decimal.localcontext(prec=3, rounding=decimal.ROUND_DOWN):
        for of_call, resolver in said:
            text = encode_spends(of_call)
            if text is not None:
                sums = count_spends(sums, decode_spends(text), STAGES, resolver=resolver)
        spending = spending_of(sums)
    everything = [(spend, resolver) for of_call, resolver in said for spend in of_call]
    total = sum((Fraction(spend.cost) for spend, _ in everything), Fraction(0))
    assert Fraction(spending.total.cost) == total
    assert spending.total.tokens == sum(spend.tokens for spend, _ in everything)
    assert spending.unpriced_calls == sum(spend.unpriced for spend, _ in everything)
    for parts in (
        [*spending.by_stage.values(), spending.resolver],
        list(spending.by_activity.values()),
        list(spending.by_model.values()),
    ):
        assert sum((Fraction(part.cost) for part in parts), Fraction(0)) == total
        assert sum(part.tokens for part in parts) == spending.total.tokens
    for index, stage in enumerate(STAGES):
        mine = [Fraction(spend.cost) for spend, resolver in everything if spend.stage == index and not resolver]
        assert Fraction(spending.by_stage.get(stage, Amount()).cost) == sum(mine, Fraction(0))


def test_what_is_found_recorded_is_summed_apart() -> None:
    spent = [Spend("ask", 0, "gpt", 10, 8, 2, Decimal("0.10"), 0)]
    sums = count_spends(None, spent, STAGES, resolver=False)
    count_replayed(sums, spent)
    count_replayed(sums, spent)
    spending = spending_of(sums)
    assert spending.total == Amount(tokens=10, cost=Decimal("0.1"))
    assert spending.not_paid_again == Amount(tokens=20, cost=Decimal("0.2"))
    assert encode_spends([]) is None
    assert spending_of(None) == NO_SPENDING


def test_names_beyond_a_hundred_share_a_sum() -> None:
    sums: SpendSums | None = None
    for number in range(300):
        spent = [Spend(f"ask{number}", 0, f"model{number}", 1, 1, 0, Decimal(1), 0)]
        sums = count_spends(sums, spent, STAGES, resolver=False)
    spending = spending_of(sums)
    assert len(spending.by_activity) == len(spending.by_model) == 101
    assert spending.by_activity[""].cost == spending.by_model[""].cost == 200


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"tokens": -1}, "tokens must be 0 or more"),
        ({"tokens": 1.5}, "tokens must be an int"),
        ({"tokens": True}, "tokens must be an int"),
        ({"input_tokens": 10**15}, "input_tokens must be 0 or more, and less"),
        ({"cost": 0.1}, "not exact; give a Decimal"),
        ({"cost": Decimal("NaN")}, "cost must be 0 or more"),
        ({"cost": Decimal("sNaN")}, "cost must be 0 or more"),
        ({"cost": Decimal("Infinity")}, "cost must be 0 or more"),
        ({"cost": Decimal("-0.01")}, "cost must be 0 or more"),
        ({"cost": True}, "cost must be a Decimal or an int, not 'bool'"),
        ({"cost": "1"}, "cost must be a Decimal or an int, not 'str'"),
        ({"model": "zero \0"}, "model must not contain NUL"),
        ({"model": "m" * 600}, "model must have 1 to 512 characters"),
        ({"model": None}, "model must be a str"),
    ],
)
def test_what_is_no_amount_is_refused(said: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        spend_of(**said)
    if said.keys() <= {"tokens", "cost"}:
        with pytest.raises(ConfigurationError, match=problem):
            Amount(**said)


def test_a_sum_may_exceed_what_one_call_may_say() -> None:
    most = spend_of(tokens=10**15 - 1, cost=10**15 - 1)
    (spend,) = decode_spends(encode_spends([most, most]) or "")
    assert amount_of([spend]) + amount_of([most]) == amount_of([most] * 3)
    assert amount_of([spend]).tokens == 2 * 10**15 - 2


def test_what_is_said_is_completed() -> None:
    assert spend_of(input_tokens=3, output_tokens=4).tokens == 7
    assert spend_of(tokens=5, input_tokens=3, output_tokens=4).tokens == 7
    assert spend_of(tokens=9, cost=None).unpriced == 1
    # A third of a cent: to a trillionth.
    assert spend_of(cost=Decimal(1) / 3).cost == Decimal("0.333333333333")
    assert Amount(cost=Decimal("0.10")) == Amount(cost=Decimal("0.1"))
    assert str(Amount(tokens=12_345, cost=Decimal("1E+2"))) == "100 and 12,345 tokens"
