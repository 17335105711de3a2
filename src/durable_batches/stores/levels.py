"""Levels of the persistence protocol: what a feature needs of a store, and a store has to declare."""

from __future__ import annotations

from durable_batches.errors import ConfigurationError
from durable_batches.stores.protocol import Store

__all__ = ["require_level"]


def require_level(store: Store, level: int, feature: str) -> None:
    """Refuse a feature on a store of a lower level, which would lose or ignore in silence what the feature asks for.

    Args:
        store: The store of the batch.
        level: The level that the feature came with.
        feature: What is refused, as the subject of a sentence: "an open batch".

    Raises:
        ConfigurationError: The store declares a lower level.
    """
    declared = store.capabilities.level
    if declared < level:
        raise ConfigurationError(
            f"{feature} needs a store of level {level} of the protocol, and {type(store).__name__} declares level "
            f"{declared} (Capabilities.level), which does not know it; upgrade the adapter, or use another store"
        )
