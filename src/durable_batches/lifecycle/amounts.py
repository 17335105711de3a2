"""What a call takes of a provider: tokens and money."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation, Overflow
from operator import index
from typing import Annotated, Final, SupportsIndex, TypeAlias, cast

from pydantic import PlainSerializer

from durable_batches.errors import ConfigurationError
from durable_batches.options import check_integer

__all__ = ["Amount", "Money", "added", "check_tokens", "money", "text_of", "unchecked"]

MOST: Final = 10**15
"""An amount is below this, of tokens as of money."""
_PLACE: Final = Decimal("1e-12")
_EXACT: Final = Context(prec=60, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation, Overflow])
"""Of its own, so that the application's context changes no sum: each has fewer digits than this."""


def text_of(cost: Decimal) -> str:
    """Write an amount of money without an exponent, and without zeros at its end."""
    return f"{cost.normalize(_EXACT):f}"


Money: TypeAlias = Annotated[Decimal, PlainSerializer(text_of, return_type=str, when_used="json")]
"""An amount of money; in JSON, a string of digits."""


@dataclass(frozen=True, kw_only=True)
class Amount:
    """Tokens and money: an estimate of what a call takes of a provider, or what calls took.

    Attributes:
        tokens: Tokens: those of the prompt and, where the provider counts them, of the longest answer.
        cost: Money, in the one currency that the application reckons in; kept to twelve decimal places.

    Raises:
        ConfigurationError: `tokens` is no int, or `cost` no `Decimal` and no int; or one is negative, or not finite.
    """

    tokens: int = 0
    cost: Money = Decimal(0)

    def __post_init__(self) -> None:
        check_tokens("tokens", self.tokens)
        object.__setattr__(self, "cost", money("cost", self.cost))

    def __add__(self, other: Amount) -> Amount:
        return unchecked(self.tokens + other.tokens, added(self.cost, other.cost))

    def __str__(self) -> str:
        return f"{text_of(self.cost)} and {self.tokens:,} tokens"


def unchecked(tokens: int, cost: Decimal) -> Amount:
    """Make an amount of a sum, which may exceed what one call may say."""
    amount = object.__new__(Amount)
    object.__setattr__(amount, "tokens", tokens)
    object.__setattr__(amount, "cost", cost)
    return amount


def check_tokens(name: str, tokens: object) -> None:
    """Refuse what is no number of tokens.

    Raises:
        ConfigurationError: It is no int, is negative, or too large.
    """
    check_integer(name, tokens)
    if not 0 <= index(cast("SupportsIndex", tokens)) < MOST:
        raise ConfigurationError(f"{name} must be 0 or more, and less than {MOST:,}")


def money(name: str, amount: object) -> Decimal:
    """Return an amount of money to twelve decimal places.

    Raises:
        ConfigurationError: It is no `Decimal` and no int, is negative, not finite, or too large.
    """
    if isinstance(amount, bool) or not isinstance(amount, Decimal | int):
        kind = type(amount).__name__
        hint = ", which is not exact; give a Decimal" if isinstance(amount, float) else ""
        raise ConfigurationError(f"{name} must be a Decimal or an int, not {kind!r}{hint}")
    value = Decimal(amount)
    if not value.is_finite() or not 0 <= value < MOST:
        raise ConfigurationError(f"{name} must be 0 or more, and less than {MOST:,}, not {value}")
    return value.quantize(_PLACE, context=_EXACT).normalize(_EXACT)


def added(one: Decimal, other: Decimal) -> Decimal:
    """Add two amounts of money exactly, whatever the context of the application."""
    return _EXACT.add(one, other)
