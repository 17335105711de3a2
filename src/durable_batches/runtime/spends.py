"""What a running call says that it has spent, checked."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from decimal import Decimal
from typing import Final, TypedDict, Unpack

from durable_batches.errors import ConfigurationError, NotInActivityError
from durable_batches.lifecycle.amounts import check_tokens, money
from durable_batches.lifecycle.primitives import problem_with_name
from durable_batches.lifecycle.spending import Spend, merged

__all__ = ["Said", "Spends", "spend_of"]


class Said(TypedDict, total=False):
    """What `ActivityContext.spend` is given."""

    tokens: int | None
    cost: Decimal | int | None
    input_tokens: int
    output_tokens: int
    model: str


def spend_of(**said: Unpack[Said]) -> Spend:
    """Make a spend of what `ActivityContext.spend` is given, with no activity and stage yet.

    Raises:
        ConfigurationError: As that says.
    """
    tokens, cost, model = said.get("tokens"), said.get("cost", 0), said.get("model", "")
    input_tokens, output_tokens = said.get("input_tokens", 0), said.get("output_tokens", 0)
    check_tokens("input_tokens", input_tokens)
    check_tokens("output_tokens", output_tokens)
    if tokens is not None:
        check_tokens("tokens", tokens)
    problem = None if model == "" else problem_with_name(model)
    if problem is not None:
        raise ConfigurationError(f"model {problem}")
    known = int(input_tokens) + int(output_tokens)
    return Spend(
        activity="",
        stage=-1,
        model=model,
        tokens=known if tokens is None else max(int(tokens), known),
        input_tokens=int(input_tokens),
        output_tokens=int(output_tokens),
        cost=Decimal(0) if cost is None else money("cost", cost),
        unpriced=1 if cost is None else 0,
    )


class Spends:
    """What one call has spent and nothing has recorded yet; it may be told on any thread.

    Args:
        activity: The activity's name, for the error.
        has_ended: Whether the call has ended already.
    """

    __slots__ = ("_activity", "_spends")

    def __init__(self, activity: str, *, has_ended: bool = False) -> None:
        self._activity = activity
        self._spends: list[Spend] | None = None if has_ended else []

    def add(self, spend: Spend) -> None:
        """Add a spend.

        Raises:
            NotInActivityError: The call has ended; nothing would record it.
        """
        with _LOCK:
            if self._spends is None:
                raise NotInActivityError(f"spend() was called after the call of activity {self._activity!r} had ended")
            if spend.tokens or spend.cost or spend.unpriced:
                self._spends = merged((*self._spends, spend))

    def seen(self) -> Sequence[Spend]:
        """Return what is there, without taking it."""
        return self._spends or ()

    def take(self, *, last: bool = False) -> list[Spend]:
        """Return what is there, to be recorded; with `last`, nothing can be added any more."""
        with _LOCK:
            taken, self._spends = self._spends or [], None if last or self._spends is None else []
            return taken


_LOCK: Final = threading.Lock()
"""Of all calls: it is held for a moment."""
