"""Prices of calls by what clients say of their tokens; the package that knows them is stood in for."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from durable_batches import Amount
from durable_batches.errors import ConfigurationError, MissingExtraError
from durable_batches.flow import price_of, spend_usage
from durable_batches.testing import activity_context


@dataclass
class Calculation:
    total_price: Decimal


def calc_price(usage: dict[str, int], model_ref: str, *, provider_id: str | None) -> Calculation:
    """As `genai-prices` has it: a model that it does not know is a LookupError."""
    if model_ref != "known" or provider_id not in (None, "openai"):
        raise LookupError(f"Unable to find model with model_ref={model_ref!r}")
    cached = usage.get("cache_read_tokens", 0)
    tokens = usage["input_tokens"] - cached + 4 * usage["output_tokens"]
    return Calculation((tokens + Decimal(cached) / 2) / Decimal(10**6))


@pytest.fixture
def prices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", SimpleNamespace(Usage=dict, calc_price=calc_price))


USAGES: list[Any] = [
    {"input_tokens": 1000, "output_tokens": 100},
    {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
    SimpleNamespace(input_tokens=1000, output_tokens=100),
    SimpleNamespace(prompt_tokens=1000, completion_tokens=100, prompt_tokens_details=None),
    SimpleNamespace(prompt_token_count=1000, candidates_token_count=100),
]


@pytest.mark.usefixtures("prices")
def test_a_call_is_priced_by_what_its_client_says() -> None:
    for usage in USAGES:
        assert price_of(usage, model="known") == price_of(usage, model="known", provider="openai") == Decimal("0.0014")
    cached = {"input_tokens": 1000, "output_tokens": 0, "cache_read_tokens": 1000}
    assert price_of(cached, model="known") == Decimal("0.0005")
    assert price_of(USAGES[0], model="another") is price_of(USAGES[0], model="known", provider="none") is None
    with pytest.raises(ConfigurationError, match="model must be a str"):
        price_of(USAGES[0], model=7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("prices")
def test_a_call_spends_what_it_used_and_settles_its_permit() -> None:
    with activity_context() as context:
        for usage in USAGES:
            spend_usage(usage, model="known")
        spend_usage(USAGES[0], model="another")
    assert context.spending.total == Amount(tokens=6600, cost=Decimal("0.007"))
    assert context.spending.by_model["known"].output_tokens == 500
    assert (context.spending.unpriced_calls, context.spending.by_model["another"].unpriced_calls) == (1, 1)
    assert context.settled == [1100] * 6


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    with pytest.raises(MissingExtraError, match="durable-batches\\[llm\\]"):
        price_of({}, model="known")
