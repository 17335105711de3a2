"""Where a child finds its database."""

from __future__ import annotations

import json
from datetime import timedelta

from durable_batches import stores
from durable_batches.clock import Clock
from durable_batches.stores import Store


def store_at(place: str, *, clock: Clock | None = None, lock_timeout: float | None = None) -> Store:
    """The store that a database's `place` names; not open yet."""
    if place.startswith("{"):
        named = json.loads(place)
        if lock_timeout is None:
            return stores.PostgresStore(named["dsn"], schema=named["schema"], clock=clock)
        return stores.PostgresStore(
            named["dsn"], schema=named["schema"], clock=clock, lock_timeout=timedelta(seconds=lock_timeout)
        )
    return stores.SQLiteStore(place, clock=clock)
