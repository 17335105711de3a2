"""What calls of language models cost, by the prices that `genai-prices` knows (extra `llm`)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from importlib import import_module
from typing import Final, Protocol, cast

from durable_batches.errors import MissingExtraError, NotInActivityError
from durable_batches.options import check_text
from durable_batches.runtime.context import current_activity

__all__ = ["price_of", "spend_usage"]

_INPUT: Final = ("input_tokens", "prompt_tokens", "prompt_token_count")
_OUTPUT: Final = ("output_tokens", "completion_tokens", "candidates_token_count")
"""The names that clients have for them, those of `genai-prices` first."""
_OTHERS: Final = ("cache_read_tokens", "cache_write_tokens", "input_audio_tokens", "output_audio_tokens")
"""What some of the tokens of the prompt and the answer are, and are priced as: the names of `genai-prices`."""


class _Calculation(Protocol):
    @property
    def total_price(self) -> Decimal: ...


class _Prices(Protocol):
    """The package, as far as it is used here; it may not be installed."""

    def Usage(self, **tokens: int) -> object: ...  # noqa: N802  (its name there)

    def calc_price(self, usage: object, model_ref: str, *, provider_id: str | None) -> _Calculation: ...


def price_of(usage: object, *, model: str, provider: str | None = None) -> Decimal | None:
    """Return what a call has cost; None: the price of this model is not known.

    The prices are those that the installed release of `genai-prices` has, or that its `UpdatePrices` has fetched.

    Args:
        usage: What the client says of the tokens of the call, an object or a mapping: those of OpenAI, Anthropic,
            Google and pydantic-ai. Tokens that were read from a cache are told apart by the names that `genai-prices`
            and pydantic-ai have for them; by other names they cost as much as any.
        model: The model, as the provider names it.
        provider: The provider's id, as `genai-prices` has it ("openai"); None: that which has such a model.

    Raises:
        ConfigurationError: `model` or `provider` is no str.
        MissingExtraError: `genai-prices` is not installed.
    """
    check_text("model", model)
    check_text("provider", provider, optional=True)
    try:
        prices = cast("_Prices", import_module("genai_prices"))
    except ImportError as error:
        raise MissingExtraError("llm", "genai-prices") from error
    tokens = {"input_tokens": _tokens(usage, _INPUT), "output_tokens": _tokens(usage, _OUTPUT)}
    tokens |= {name: number for name in _OTHERS if (number := _tokens(usage, (name,)))}
    try:
        return prices.calc_price(prices.Usage(**tokens), model, provider_id=provider).total_price
    except (LookupError, ValueError):
        # A provider or a model that it does not know, or one that is not priced by tokens.
        return None


def spend_usage(usage: object, *, model: str, provider: str | None = None) -> None:
    """Say what the running call has spent (`ActivityContext.spend`), and settle its permit, if it has one.

    A model whose price is not known has its tokens counted, and the call as one of an unknown price.

    Args:
        usage: As `price_of` takes it.
        model: The model, as the provider names it.
        provider: The provider's id; None: that which has such a model.

    Raises:
        MissingExtraError: `genai-prices` is not installed.
        NotInActivityError: The code is not running in an activity's body within an orchestrator.
    """
    call = current_activity()
    input_tokens, output_tokens = _tokens(usage, _INPUT), _tokens(usage, _OUTPUT)
    cost = price_of(usage, model=model, provider=provider)
    call.spend(input_tokens=input_tokens, output_tokens=output_tokens, cost=cost, model=model)
    with suppress(NotInActivityError):
        call.settle(tokens=input_tokens + output_tokens)


def _tokens(usage: object, names: tuple[str, ...]) -> int:
    for name in names:
        if isinstance(usage, Mapping):
            number = cast("Mapping[str, object]", usage).get(name)
        else:
            number = getattr(usage, name, None)
        if isinstance(number, int) and not isinstance(number, bool):
            return max(number, 0)
    return 0
