"""Which state of a batch may follow which.

Rules
-----

1. A batch is `pending` until its first document starts.
2. It is then in one of its machine's stages, and moves only forward; it may skip stages.
3. Once every document has finished it is `resolving`, where its workflow has a resolver.
4. `completed`, `failed` and `cancelled` end the run, and absorb: nothing leaves them but `redrive`, which starts
   the next run at `pending`.
5. `failed` and `cancelled` can be reached from everything that has not ended.
6. `completed` is reached from `resolving`, or, without a resolver, from wherever the last document finished.

`transitions()` is these rules as a table; the documentation's diagram is drawn from it, and a test enumerates it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from durable_batches.errors import InvalidTransitionError

__all__ = ["check_transition", "transitions"]


@lru_cache(maxsize=256)
def transitions(stages: tuple[str, ...]) -> Mapping[str, frozenset[str]]:
    """List each state of a machine with these stage tags, and the states that may follow it within a run."""
    leaving = frozenset({"resolving", "completed", "failed", "cancelled"})
    table: dict[str, frozenset[str]] = {"pending": frozenset(stages) | leaving}
    for index, stage in enumerate(stages):
        table[stage] = frozenset(stages[index + 1 :]) | leaving
    table["resolving"] = frozenset({"completed", "failed", "cancelled"})
    for ended in ("completed", "failed", "cancelled"):
        table[ended] = frozenset()
    return table


def check_transition(batch_id: str, stages: tuple[str, ...], current: str, following: str) -> None:
    """Raise `InvalidTransitionError` unless the table has this move."""
    table = transitions(stages)
    possible = table.get(current, frozenset())
    if following not in possible:
        # In the table's order, which is that of a batch's life.
        raise InvalidTransitionError(batch_id, current, following, [state for state in table if state in possible])
