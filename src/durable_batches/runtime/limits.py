"""What the runtime needs of a limiter, which users hand in: `durable_batches.flow` has one, and others fit as well."""

from __future__ import annotations

from asyncio import CancelledError
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Protocol, runtime_checkable

from durable_batches.errors import NotInActivityError

__all__ = ["JudgesFailures", "Limiter", "NotBegun", "Permit", "no_limiter"]


class NotBegun(CancelledError):
    """Ends the block of a permit whose call has not begun: nothing was used, and nothing is known of the provider.

    A limiter that does not know it may take it for a call that was cancelled.
    """


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
