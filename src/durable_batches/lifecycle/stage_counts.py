"""Count a batch's unfinished documents by the stages that they have entered."""

from __future__ import annotations

from itertools import count
from operator import mul
from typing import Final

__all__ = ["NO_STAGE", "StageCounts"]

NO_STAGE: Final = -1
"""In place of a stage's index: no stage has been entered yet."""


class StageCounts:
    """Count unfinished documents by the latest stage that each has entered; stages go by their index.

    Stored as a list of numbers: the documents that have entered no stage, then those of each stage in order. The
    list is changed in place.
    """

    __slots__ = ("passed", "stored")

    def __init__(self, stored: list[int]) -> None:
        self.stored: list[int] = stored
        self.passed: int = sum(map(mul, stored[2:], count(1)))
        """The stages that each document has passed, which are those before its own, added up."""

    @classmethod
    def empty(cls, stages: int) -> StageCounts:
        """Make the counts of a machine with this number of stages, without a document."""
        return cls([0] * (stages + 1))

    # ---- reading -------------------------------------------------------------------------------------------

    @property
    def unfinished(self) -> int:
        """Count all documents."""
        return sum(self.stored)

    def earliest(self) -> int:
        """Find the earliest stage that a document is in; one that has entered none counts as in the first."""
        for place, documents in enumerate(self.stored):
            if documents:
                return place - 1 if place else 0
        raise ValueError("there is no unfinished document")

    def entered(self, stage: int) -> int:
        """Count the documents that have entered this stage."""
        return sum(self.stored[stage + 1 :])

    def past(self, stage: int) -> int:
        """Count the documents that have entered a stage after this one."""
        return sum(self.stored[stage + 2 :])

    # ---- changing ------------------------------------------------------------------------------------------

    def add(self, documents: int) -> None:
        """Add documents that have entered no stage."""
        self.stored[0] += documents

    def enter(self, previous: int, stage: int) -> None:
        """Move a document from its previous stage (or `NO_STAGE`) to a later one."""
        stored = self.stored
        stored[previous + 1] -= 1
        stored[stage + 1] += 1
        self.passed += stage - previous if previous > 0 else stage

    def leave(self, stage: int) -> None:
        """Remove a document that has finished in this stage (or in `NO_STAGE`)."""
        self.stored[stage + 1] -= 1
        if stage > 0:
            self.passed -= stage

    def clear(self) -> None:
        """Remove all documents: the run has ended."""
        self.stored = [0] * len(self.stored)
        self.passed = 0
