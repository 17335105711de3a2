"""Whether a cluster is there: calls wait while it is away, one of them connects it, and the log says so once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from durable_batches.clock import Clock
from durable_batches.errors import ConfigurationError, DurableBatchesError, ExecutorError
from durable_batches.executors.beginning import Beginning
from durable_batches.outage import Backoff

__all__ = ["Availability"]

_log = logging.getLogger("durable_batches")


class Availability:
    """The outages of a cluster, as one worker sees them.

    Args:
        name: The executor's name.
        clock: The worker's.
        connect: Connects the cluster, also again; raises an `ExecutorError` while it is away.
    """

    def __init__(self, name: str, clock: Clock, connect: Callable[[], Awaitable[object]]) -> None:
        self.connections: int = 0
        """How often it was connected again."""
        self._name: Final = name
        self._clock: Final = clock
        self._connect: Final = connect
        self._connecting = asyncio.Lock()
        self._away_since: float | None = None
        self._said = ""

    async def reconnect(self, beginning: Beginning, connections: int, reason: str) -> None:
        """Wait until the cluster is there again, with options that fit; one call connects it for all.

        Args:
            beginning: Of the call that waits.
            connections: `connections`, when the call was refused.
            reason: Why it was, for the log.
        """
        self.is_gone(reason)
        await beginning.give_way()
        pauses = Backoff(0.5, 30.0)
        with beginning.waiting():
            async with self._connecting:
                while connections == self.connections:
                    try:
                        await self._connect()
                    except (ConfigurationError, ExecutorError) as error:
                        self._not_there(error)
                        await self._clock.sleep(pauses.pause())
                    else:
                        self.connections += 1

    def is_gone(self, reason: str) -> None:
        """Log that the cluster is away, once in an outage."""
        if self._away_since is None:
            self._away_since = self._clock.boot()
            _log.warning(
                "executor %r is away: %s; its calls wait until it is back, and use no attempt",
                self._name,
                reason,
                extra={"executor": self._name},
            )

    def _not_there(self, error: DurableBatchesError) -> None:
        """Log why it cannot be connected: that it has come back with other options, once."""
        said, self._said = self._said, str(error)
        is_news = isinstance(error, ConfigurationError) and said != self._said
        _log.log(logging.WARNING if is_news else logging.DEBUG, "%s", error, extra={"executor": self._name})

    def answers(self) -> None:
        """Log that the cluster answers again, if it was away."""
        if self._away_since is not None:
            seconds, self._away_since = self._clock.boot() - self._away_since, None
            _log.warning(
                "executor %r answers again after %.1f s",
                self._name,
                seconds,
                extra={"executor": self._name, "outage_seconds": seconds},
            )
