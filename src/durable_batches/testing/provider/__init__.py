"""A hostile provider of a paid API, for tests: it refuses, fails, hangs and cuts answers, and keeps a ledger."""

from __future__ import annotations

from durable_batches.testing.provider.answers import FAULTS, Fault, ProviderError
from durable_batches.testing.provider.ledger import Ledger, LedgerEntry
from durable_batches.testing.provider.provider import HostileProvider

__all__ = ["FAULTS", "Fault", "HostileProvider", "Ledger", "LedgerEntry", "ProviderError"]
