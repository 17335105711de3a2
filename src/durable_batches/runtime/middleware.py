"""The seam round each attempt of an activity call: `(call, call_next) -> value`.

What has to happen before and after an activity's function (a permit to wait for, a span, a sum to reserve) is a
middleware. It is called for every attempt, within the retries and outside of the activity's timeout, so that waiting
for a permit does not count; what it returns is encoded and recorded as the function's result would be. An exception
that it raises is judged by the retry policy, as the function's own. Cancelled, it has to let the cancellation pass.

Provisional: a worker's resources carry it, and no public argument sets it yet.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

from durable_batches.runtime.bound_call import BoundCall
from durable_batches.runtime.context import ActivityContext

__all__ = ["CallNext", "Middleware", "MiddlewareCall", "nested"]

CallNext: TypeAlias = Callable[[], Awaitable[Any]]
"""Goes on: to the next middleware, and in the end to the activity's function. Awaits to its result."""


class MiddlewareCall(ActivityContext, Protocol):
    """The call that a middleware is given; batch, document and attempt are those of `ActivityContext`."""

    @property
    def key(self) -> str:
        """The key of the checkpoint that the call will be recorded under."""
        ...

    @property
    def bound(self) -> BoundCall:
        """The activity, its options, and the arguments as the caller gave them."""
        ...


class Middleware(Protocol):
    """Runs round each attempt of each activity call of a worker."""

    def __call__(self, call: MiddlewareCall, call_next: CallNext, /) -> Awaitable[Any]:
        """Return the call's result: that of `call_next()`, changed or not, or another one without calling it."""
        ...


def nested(middleware: Sequence[Middleware], call: MiddlewareCall, innermost: CallNext) -> CallNext:
    """Put the middleware round a function, the first of them outermost."""
    for each in reversed(middleware):
        innermost = partial(each, call, innermost)
    return innermost
