"""The middleware of an activity with a limiter: each attempt of a call waits for a permit.

A permit is for a call that begins now. So it is waited for before all else, while the call holds nothing that others
need. Where the call has to wait for something else afterwards (a thread, a place in an executor, its worker's lease),
it gives the permit back, as if it had never asked; and takes another one when it has all the rest. If there is none
then, it gives up the rest, and waits for a permit again. After a few times it keeps the permit while it waits: others
may use both all the time, and it would never begin.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeAlias, cast

from durable_batches.errors import ActivityDefinitionError, RateLimitedError
from durable_batches.lifecycle.amounts import Amount
from durable_batches.runtime.bound_call import BoundCall
from durable_batches.runtime.limits import Limiter, Permit
from durable_batches.runtime.middleware import CallNext, MiddlewareCall
from durable_batches.tasks import NotBegun

__all__ = ["NOTHING", "Estimate", "Holding", "Limited", "estimated"]

Estimate: TypeAlias = Callable[..., Amount] | Amount
"""What a call takes, or a function of the call's arguments that returns it."""

NOTHING: Final = Amount()

_MOST_IN_VAIN: Final = 3
"""How often a call that has all the rest may find no permit, before it keeps the one that it waits for next."""


class Holding:
    """The permit of one attempt of a call: held, given back, or used.

    Args:
        limiter: The limiter.
        tokens: What the call takes.
    """

    __slots__ = ("_context", "_in_vain", "_is_used", "_limiter", "_tokens", "permit")

    def __init__(self, limiter: Limiter, tokens: int) -> None:
        self._limiter = limiter
        self._tokens = tokens
        self._context: AbstractAsyncContextManager[Permit] | None = None
        self._is_used = False
        self._in_vain = 0
        self.permit: Permit | None = None
        """None: it is not held."""

    async def take(self, *, wait: bool = True) -> None:
        """Take the permit, if it is not held.

        Args:
            wait: Whether to wait for it.

        Raises:
            RateLimitedError: There is none now; or the limiter does not wait for as long.
        """
        if self.permit is None:
            # Waiting, the limiter's own arguments: one of the user's need not know this one.
            context = (
                self._limiter.permit(tokens=self._tokens)
                if wait
                else self._limiter.permit(tokens=self._tokens, wait=False)
            )
            self.permit = await context.__aenter__()
            self._context = context

    async def take_to_begin(self) -> None:
        """Take the permit if there is one now, since the call has all the rest.

        Raises:
            NotBegun: There is none.
        """
        try:
            await self.take(wait=False)
        except RateLimitedError:
            self._in_vain += 1
            raise NotBegun from None

    def used(self) -> None:
        """Note that the call was handed over: its permit is used, whatever becomes of it."""
        self._is_used = True

    async def give_way(self) -> None:
        """Give it back, since the call waits for a thread or a place; keep it where that was in vain too often."""
        if self._in_vain < _MOST_IN_VAIN:
            await self.give_back()

    async def give_back(self) -> None:
        """Give it back, since the call waits for something else before it begins."""
        if self.permit is not None and not self._is_used:
            await self.end(NotBegun())

    async def end(self, error: BaseException | None) -> None:
        """End the call with this error; None: with a result."""
        context, self._context, self.permit = self._context, None, None
        if context is not None:
            await context.__aexit__(
                None if error is None else type(error), error, None if error is None else error.__traceback__
            )


class Limited:
    """Takes a permit of the activity's limiter for each attempt of its calls.

    Args:
        estimate: What a call takes.
    """

    __slots__ = ("_estimate",)

    def __init__(self, estimate: Estimate) -> None:
        self._estimate = estimate

    async def __call__(self, call: MiddlewareCall, call_next: CallNext, /) -> Any:
        """See `Middleware`. While it waits, neither the activity's timeout runs nor a span of the attempt."""
        limiter = call.limiter
        holding = call.holding = Holding(limiter, self._tokens(call))
        try:
            while True:
                await call.take_permit(holding)
                try:
                    value = await call_next()
                except NotBegun:
                    # It waited for something else, and has given the permit back.
                    continue
                except BaseException as error:
                    await holding.end(error)
                    raise
                await holding.end(None)
                return value
        finally:
            call.holding = None

    def _tokens(self, call: MiddlewareCall) -> int:
        return estimated(self._estimate, call.bound).tokens


def estimated(estimate: Estimate, bound: BoundCall) -> Amount:
    """Return what a call is estimated to take.

    Raises:
        ActivityDefinitionError: The function of the activity returns something else.
    """
    if isinstance(estimate, Amount):
        return estimate
    own = bound.args if bound.activity.instance is None else (bound.activity.instance, *bound.args)
    amount = cast("object", estimate(*own, **bound.kwargs))
    if not isinstance(amount, Amount):
        raise ActivityDefinitionError(
            f"activity {bound.activity.name!r}: estimate must return an Amount, not {type(amount).__name__!r}"
        )
    return amount
