"""How a claim's capacity is shared between batches; what every store's candidate query has in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

__all__ = ["Share", "fair_shares"]

B = TypeVar("B")


class Share:
    """How many executions to load of one batch; say how many there were."""

    __slots__ = ("size", "taken")

    def __init__(self, size: int) -> None:
        self.size: int = size
        self.taken: int = 0

    def used(self, count: int) -> None:
        """So many were there; the rest of the share goes to the batches after it."""
        self.taken = count


def fair_shares(batches: Sequence[B], limit: int, free: Callable[[B], int]) -> Iterator[tuple[B, Share]]:
    """Go through the batches, those served longest ago first, with an equal share of what is left for each.

    The sum of the shares is at most `limit`, however many batches there are, so the work of a claim is bounded
    by what it may take. A batch that needs less leaves its share to those after it.
    """
    left = limit
    for index, batch in enumerate(batches):
        share = Share(min(free(batch), -(-left // (len(batches) - index))))
        yield batch, share
        left -= share.taken
