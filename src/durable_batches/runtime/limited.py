"""The middleware of an activity with a limiter: each attempt of a call waits for a permit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias, cast

from durable_batches.errors import ActivityDefinitionError
from durable_batches.lifecycle.amounts import Amount
from durable_batches.runtime.limits import Limiter
from durable_batches.runtime.middleware import CallNext, MiddlewareCall

__all__ = ["NOTHING", "Estimate", "Limited"]

Estimate: TypeAlias = Callable[..., Amount] | Amount
"""What a call takes, or a function of the call's arguments that returns it."""

NOTHING: Final = Amount()


class Limited:
    """Takes a permit of a limiter for each attempt of an activity's calls.

    Args:
        limiter: The limiter.
        estimate: What a call takes.
    """

    __slots__ = ("_estimate", "limiter")

    def __init__(self, limiter: Limiter, estimate: Estimate) -> None:
        self.limiter: Limiter = limiter
        self._estimate = estimate

    async def __call__(self, call: MiddlewareCall, call_next: CallNext, /) -> Any:
        """See `Middleware`. While it waits, neither the activity's timeout runs nor a span of the attempt."""
        context = self.limiter.permit(tokens=self._tokens(call))
        with call.waiting_for_permit(self.limiter.name):
            permit = await context.__aenter__()
        call.permit = permit
        try:
            value = await call_next()
        except BaseException as error:
            call.permit = None
            await context.__aexit__(type(error), error, error.__traceback__)
            raise
        call.permit = None
        await context.__aexit__(None, None, None)
        return value

    def _tokens(self, call: MiddlewareCall) -> int:
        estimate = self._estimate
        if isinstance(estimate, Amount):
            return estimate.tokens
        bound = call.bound
        own = bound.args if bound.activity.instance is None else (bound.activity.instance, *bound.args)
        amount = cast("object", estimate(*own, **bound.kwargs))
        if not isinstance(amount, Amount):
            raise ActivityDefinitionError(
                f"activity {bound.activity.name!r}: estimate must return an Amount, not {type(amount).__name__!r}"
            )
        return amount.tokens
