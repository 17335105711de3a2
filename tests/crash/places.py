"""Where a child of the crash tests finds its database; imports little, since children are started often."""

from __future__ import annotations

import json

from durable_batches import stores
from durable_batches.clock import Clock
from durable_batches.stores import Store


def store_at(place: str, *, clock: Clock | None = None) -> Store:
    """The store that a database's `place` names; not open yet."""
    if place.startswith("{"):
        named = json.loads(place)
        return stores.PostgresStore(named["dsn"], schema=named["schema"], clock=clock)
    return stores.SQLiteStore(place, clock=clock)
