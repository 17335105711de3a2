"""The seam round each attempt of an activity call: `(call, call_next) -> value`.

A middleware runs before and after an activity's function, for example to wait for a permit, to record a span, or to
reserve a budget. It is called for every attempt, inside the retries and outside the activity's timeout, so that waiting
for a permit does not count. Its return value is encoded and recorded like the function's result, and the retry policy
applies to its exceptions. When it is cancelled, it must let the cancellation propagate.

Provisional: a worker's resources carry it, and no public argument sets it yet.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from durable_batches.runtime.bound_call import BoundCall
from durable_batches.runtime.context import ActivityContext
from durable_batches.runtime.limits import Limiter

if TYPE_CHECKING:
    from durable_batches.runtime.limited import Holding

__all__ = ["CallNext", "Middleware", "MiddlewareCall", "nested"]

CallNext: TypeAlias = Callable[[], Awaitable[Any]]
"""Call the next middleware, and in the end the activity's function; await its result."""


class MiddlewareCall(ActivityContext, Protocol):
    """The call, as a middleware sees it; batch, document and attempt are those of `ActivityContext`."""

    @property
    def key(self) -> str:
        """The key of the checkpoint that the call will be recorded under."""
        ...

    @property
    def bound(self) -> BoundCall:
        """The activity, its options, and the caller's arguments."""
        ...

    @property
    def limiter(self) -> Limiter:
        """The limiter of its activity, which has one.

        Raises:
            ConfigurationError: It is named, and the worker has none of that name.
        """
        ...

    holding: Holding | None
    """The permit of its present attempt; None: its activity has no limiter."""

    async def take_permit(self, holding: Holding) -> None:
        """Wait for the permit of its present attempt, while it holds nothing that others need."""
        ...


class Middleware(Protocol):
    """Runs round each attempt of each activity call of a worker."""

    def __call__(self, call: MiddlewareCall, call_next: CallNext, /) -> Awaitable[Any]:
        """Return the call's result: that of `call_next()`, changed or unchanged, or another one without calling it."""
        ...


def nested(middleware: Sequence[Middleware], call: MiddlewareCall, innermost: CallNext) -> CallNext:
    """Wrap a function in the middleware, the first one outermost."""
    for each in reversed(middleware):
        innermost = partial(each, call, innermost)
    return innermost
