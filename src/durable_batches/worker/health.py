"""How a worker is at one moment, for supervisors and for the page of an operator."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from durable_batches.lifecycle.primitives import Value
from durable_batches.markup import block, table

__all__ = ["NotReady", "WorkerHealth"]

NotReady: TypeAlias = Literal["closed", "starting", "draining", "lease-lost"]
"""Why a worker begins nothing: it is not entered, or being closed; it registers, for the first time or under a new id;
it drains; its lease has run out, or may have."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class WorkerHealth(Value):
    """A worker at one moment."""

    ready: bool
    """Whether it holds its lease and may begin work."""
    not_ready: NotReady | None
    """Why it is not ready; None: it is."""
    lease_left: timedelta
    """How long its lease lasts yet, if it is not renewed; 0: it has none."""
    last_commit: datetime | None
    """When its current session asked for the last commit that is through; None: none is yet."""
    loop_lag: timedelta
    """For how long the event loop has not turned though it should have."""
    in_flight: int
    """Documents and resolvers that it runs."""
    store_away_since: datetime | None
    """Since when the store has not answered; None: it does."""

    def _repr_html_(self) -> str:
        """Return it as notebooks show it."""
        named = {name.replace("_", " "): value for name, value in vars(self).items() if value is not None}
        return block(
            "the worker is ready" if self.ready else f"the worker is not ready: {self.not_ready}",
            table(("", ""), [(name, str(value)) for name, value in named.items() if not name.endswith("ready")]),
        )
