"""Features are refused on stores that would lose what they write."""

from __future__ import annotations

import pytest

from durable_batches import ConfigurationError, MemoryStore, PostgresStore, SQLiteStore
from durable_batches.stores import Capabilities
from durable_batches.stores.levels import require_level


class OlderStore(MemoryStore):
    """An adapter that was written before there were levels."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(several_processes=False, durable=False, pushes=True)


def test_an_adapter_that_says_nothing_has_level_1() -> None:
    assert OlderStore().capabilities.level == 1
    require_level(OlderStore(), 1, "a batch")


def test_what_an_adapter_would_lose_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^an open batch needs a store of level 2 .* OlderStore .* level 1"):
        require_level(OlderStore(), 2, "an open batch")


def test_the_librarys_own_stores_have_all_there_is() -> None:
    for store in (MemoryStore(), SQLiteStore("batches.db"), PostgresStore("postgresql://host/database")):
        assert store.capabilities.level == 2
        require_level(store, 2, "an open batch")
