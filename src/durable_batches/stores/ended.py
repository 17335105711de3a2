"""The error of a store whose thread has ended."""

from __future__ import annotations

from durable_batches.errors import StoreUnavailableError

__all__ = ["ThreadEndedError"]


class ThreadEndedError(StoreUnavailableError):
    """The thread that a store works on has ended, and never comes back: nobody would answer.

    The interpreter exits, or this is a child that was forked while the store was open, which has none of its threads.
    """

    transient = False

    def __init__(self, where: str) -> None:
        super().__init__(
            f"the thread of the database {where} has ended: this process was forked while the store was open, or it "
            "exits; open a store of its own after the fork"
        )
