"""What the runtime needs of a limiter, which users hand in: `durable_batches.flow` has one, and others fit as well."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable
from weakref import ref

from durable_batches.clock import Clock
from durable_batches.errors import ConfigurationError, NotInActivityError
from durable_batches.lifecycle.records import SharedLimit, SharedWrites, WorkerId
from durable_batches.options import check_instance

__all__ = [
    "JudgesFailures",
    "KnownLimiters",
    "Limiter",
    "Permit",
    "SharedBudget",
    "SharesLimits",
    "Supply",
    "checked_limiters",
    "is_limiter",
    "no_limiter",
    "no_limiter_named",
]


T = TypeVar("T")


class Permit(Protocol):
    """The permission to make one call, from its beginning to its end."""

    def settle(self, *, tokens: int) -> None:
        """Say how many tokens the call took after all."""
        ...

    def refused(self, retry_after: timedelta | None = None) -> None:
        """Say that the provider has no room now (429): all calls wait."""
        ...

    def observe(self, answer: object) -> None:
        """Read what a provider says of its limits in an answer, an error or headers."""
        ...


def no_limiter(method: str, activity: str) -> NotInActivityError:
    """Make the error of a call without a limiter that tells it something."""
    return NotInActivityError(
        f"{method}() is for activities with a limiter, and {activity!r} has none; give it one: "
        "@durable_activity(limiter=...)"
    )


def no_limiter_named(activity: str, limiter: str, workflow: str | None = None) -> ConfigurationError:
    """Make the error of an activity whose limiter the worker does not have."""
    of_workflow = "" if workflow is None else f" of workflow {workflow!r}"
    return ConfigurationError(
        f"activity {activity!r}{of_workflow} has the limiter {limiter!r}, and the worker has none of that name: "
        f"Worker(..., limiters={{{limiter!r}: CentralRateLimiter(...)}})"
    )


def is_limiter(value: object) -> bool:
    """Whether this gives permits."""
    return not isinstance(value, type) and hasattr(value, "permit")


def checked_limiters(limiters: Mapping[str, Limiter] | None) -> Mapping[str, Limiter]:
    """Return the limiters of a worker, by their names.

    Raises:
        ConfigurationError: They are none, or a name is no text.
    """
    check_instance("limiters", limiters, Mapping, optional=True)
    for name, limiter in (limiters or {}).items():
        check_instance("each name in limiters", name, str)
        if not is_limiter(limiter):
            raise ConfigurationError(f"limiters[{name!r}] must be a Limiter, such as a CentralRateLimiter")
    return dict(limiters or {})


class Limiter(Protocol):
    """Gives permits to make calls; an argument of `durable_activity`."""

    @property
    def name(self) -> str:
        """The name, for people."""
        ...

    def permit(
        self, *, tokens: int = 0, wait: bool = True, max_wait: timedelta | None = None
    ) -> AbstractAsyncContextManager[Permit]:
        """Wait for a permit, and hold it within the block."""
        ...


@runtime_checkable
class JudgesFailures(Protocol):
    """A limiter that can say of an error whether it counts as the provider's failure; asked where the error is."""

    def is_failure(self, error: BaseException, /) -> bool:
        """Return whether an error is the provider's failure."""
        ...


class SharedBudget(Protocol):
    """A worker's way to what is kept for all workers."""

    @property
    def worker_id(self) -> WorkerId:
        """The id of the worker's session."""
        ...

    @property
    def clock(self) -> Clock:
        """The worker's clock."""
        ...

    async def take(self, name: str, plan: Callable[[SharedLimit], SharedWrites[T]]) -> T:
        """See `durable_batches.stores.SharedLimits.take`."""
        ...


@runtime_checkable
class Supply(Protocol):
    """The way of a budget to a limiter."""

    @property
    def shared(self) -> str:
        """The name of the budget in the store."""
        ...

    def join(self, budget: SharedBudget) -> None:
        """Take note of a worker that supplies it from now on, by `run`."""
        ...

    def run(self, budget: SharedBudget) -> Coroutine[Any, Any, None]:
        """Take from the budget when calls need it, until cancelled."""
        ...

    def leave(self, budget: SharedBudget) -> None:
        """Take note that the worker supplies it no more: its `run` has ended."""
        ...

    async def handed_over(self) -> None:
        """Wait until another worker of this event loop supplies it, if there is one."""
        ...


@runtime_checkable
class SharesLimits(Protocol):
    """A limiter whose limits all workers of a store may share."""

    @property
    def supply(self) -> Supply | None:
        """What workers supply; None: its limits are its own."""
        ...


class KnownLimiters:
    """The limiters that calls have asked for permits, for as long as others have them: one may be made for each batch.

    By their identity, since one of the user's own may not be hashable.
    """

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: dict[int, Callable[[], Limiter | None]] = {}

    def __contains__(self, limiter: Limiter) -> bool:
        found = self._found.get(id(limiter))
        return found is not None and found() is limiter

    def add(self, limiter: Limiter) -> None:
        """Add a limiter; one of the user's own of which there are no weak references stays."""
        identity = id(limiter)
        try:
            self._found[identity] = ref(limiter, partial(self._forget, identity))
        except TypeError:
            self._found[identity] = lambda: limiter

    def present(self) -> Sequence[Limiter]:
        """Return those that others have. On any thread."""
        return [limiter for found in list(self._found.values()) if (limiter := found()) is not None]

    def _forget(self, identity: int, reference: Callable[[], Limiter | None]) -> None:
        # Another one may have its identity by now.
        if self._found.get(identity) is reference:
            del self._found[identity]
