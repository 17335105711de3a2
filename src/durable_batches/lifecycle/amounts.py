"""What a call takes of a provider."""

from __future__ import annotations

from dataclasses import dataclass

from durable_batches.errors import ConfigurationError
from durable_batches.options import check_integer

__all__ = ["Amount"]


@dataclass(frozen=True, kw_only=True)
class Amount:
    """What a call takes of a provider, as an estimate.

    Attributes:
        tokens: Tokens: those of the prompt and, where the provider counts them, of the longest answer.

    Raises:
        ConfigurationError: `tokens` is no int, or negative.
    """

    tokens: int = 0

    def __post_init__(self) -> None:
        check_integer("tokens", self.tokens)
        if self.tokens < 0:
            raise ConfigurationError("tokens must be 0 or more")
