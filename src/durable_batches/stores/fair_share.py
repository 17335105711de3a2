"""Fair shares: how a claim's capacity is divided between batches, the same in every store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from durable_batches.lifecycle.batch import BatchInProgress
from durable_batches.lifecycle.records import BatchRecord, Micros

__all__ = ["MOST_BATCHES_A_CLAIM", "Share", "claimable_slots", "fair_shares", "overdue", "turn_of"]

B = TypeVar("B")

MOST_BATCHES_A_CLAIM: Final = 64
"""How many batches a claim looks at, of each kind: the work of a claim is bounded."""


class Share:
    """One batch's share of a claim: load `size` executions at most, and say with `used` how many there were."""

    __slots__ = ("size", "taken")

    def __init__(self, size: int) -> None:
        self.size: int = size
        self.taken: int = 0

    def used(self, count: int) -> None:
        """Note how many executions were there; the rest of the share goes to the batches after this one."""
        self.taken = count


def overdue(batch: BatchRecord, now: Micros) -> bool:
    """Return whether the batch's deadline has passed: a claim ends the batch, and takes nothing from it."""
    return batch.wake is not None and batch.wake <= now


def turn_of(batch: BatchRecord) -> tuple[str, int, int]:
    """Return the batch's place among those that are served: the smallest come first, then the oldest."""
    return batch.partition, -batch.priority, batch.served


def claimable_slots(batch: BatchRecord, now: Micros) -> int:
    """Compute how many executions a claim may take of the batch: for stores of level 2, in place of its `free`."""
    if overdue(batch, now):
        return 0
    if batch.free == 0 and batch.next_due is not None and batch.next_due <= now:
        opened = BatchInProgress(batch, now, check=False)
        # One that cannot be worked on is a candidate all the same: the plan sets it aside.
        return opened.open_slots if opened.contradiction is None else 1
    return batch.free


def fair_shares(batches: Sequence[B], limit: int, free: Callable[[B], int]) -> Iterator[tuple[B, Share]]:
    """Go through the batches, in the order in which they are served, with an equal share of what is left for each.

    The sum of the shares is at most `limit`, however many batches there are, so the work of a claim is bounded
    by what it may take. A batch that needs less leaves its share to those after it; what is left over in the end
    goes to those before it, which come a second time then, with a larger share instead of their first one.
    """
    left = limit
    cut: list[tuple[B, Share]] = []
    for index, batch in enumerate(batches):
        share = Share(min(free(batch), -(-left // (len(batches) - index))))
        yield batch, share
        left -= share.taken
        if share.taken == share.size < free(batch):
            cut.append((batch, share))
    for batch, first in cut:
        if left == 0:
            return
        share = Share(min(free(batch), first.taken + left))
        yield batch, share
        left -= share.taken - first.taken
