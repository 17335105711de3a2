"""What is tried again while the store is away: writes whose reply was lost, and reads of those who wait anyway."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from durable_batches.clock import Clock
from durable_batches.errors import CommitUnknownError, StoreUnavailableError

__all__ = ["patiently", "repeated"]

_log = logging.getLogger("durable_batches")

_SECONDS: Final = (0.05, 0.2, 0.8, 3.2)
"""The pauses before it is tried again."""

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 5.0

T = TypeVar("T")


async def repeated(write: Callable[[], Awaitable[T]], clock: Clock, batch_id: str) -> T:
    """Write; again where the store does not know whether it was written. It answers then as it did the first time."""
    for pause in _SECONDS:
        try:
            return await write()
        except CommitUnknownError as error:
            _log.warning("a write to batch %r is repeated: %s", batch_id, error)
            await clock.sleep(pause)
    return await write()


async def patiently(read: Callable[[], Awaitable[T]], clock: Clock, batch_id: str) -> T:
    """Read, for somebody who waits for the batch to move on; where the store is away now, that takes longer."""
    pause = _FIRST_PAUSE
    while True:
        try:
            return await read()
        except StoreUnavailableError as error:
            if type(error) is not StoreUnavailableError:
                # Not one of those that pass by themselves.
                raise
            _log.warning("who waits for batch %r waits on: %s", batch_id, error)
            await clock.sleep(pause, housekeeping=True)
            pause = min(pause * 2, _LONGEST_PAUSE)
