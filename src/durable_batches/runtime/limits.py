"""What the runtime needs of a limiter, which users hand in: `durable_batches.flow` has one, and others fit as well."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Protocol, runtime_checkable

__all__ = ["JudgesFailures", "Limiter", "Permit"]


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
