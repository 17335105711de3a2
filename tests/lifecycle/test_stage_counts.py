"""Counts of documents by stage, against a model that keeps every document."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.properties import modest

from durable_batches.lifecycle.stage_counts import NO_STAGE, StageCounts


class Documents(RuleBasedStateMachine):
    """The stage that each unfinished document has entered last, written down one by one."""

    stages: int
    counts: StageCounts
    documents: dict[int, int]

    @initialize(stages=st.integers(1, 5), documents=st.integers(0, 6))
    def load(self, stages: int, documents: int) -> None:
        self.stages = stages
        self.counts = StageCounts.empty(stages)
        self.counts.add(documents)
        self.documents = dict.fromkeys(range(documents), NO_STAGE)

    # ---- what happens ----------------------------------------------------------------------------------------

    def movable(self) -> list[int]:
        return [document for document, stage in self.documents.items() if stage < self.stages - 1]

    @precondition(lambda self: self.movable())
    @rule(data=st.data())
    def enter(self, data: st.DataObject) -> None:
        document = data.draw(st.sampled_from(self.movable()))
        previous = self.documents[document]
        stage = data.draw(st.integers(previous + 1, self.stages - 1))
        self.counts.enter(previous, stage)
        self.documents[document] = stage

    @precondition(lambda self: self.documents)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        document = data.draw(st.sampled_from(sorted(self.documents)))
        self.counts.leave(self.documents.pop(document))

    @rule(documents=st.integers(1, 3))
    def add(self, documents: int) -> None:
        first = max(self.documents, default=-1) + 1
        self.counts.add(documents)
        self.documents.update(dict.fromkeys(range(first, first + documents), NO_STAGE))

    @rule()
    def clear(self) -> None:
        self.counts.clear()
        self.documents.clear()

    @rule()
    def store_and_load(self) -> None:
        self.counts = StageCounts(list(self.counts.stored))

    # ---- what always holds -----------------------------------------------------------------------------------

    @invariant()
    def everything_is_as_counted(self) -> None:
        entered = list(self.documents.values())
        assert self.counts.stored == [entered.count(stage) for stage in range(NO_STAGE, self.stages)]
        assert self.counts.unfinished == len(entered)
        assert self.counts.passed == sum(stage for stage in entered if stage != NO_STAGE)
        for stage in range(self.stages):
            assert self.counts.entered(stage) == sum(latest >= stage for latest in entered)
            assert self.counts.past(stage) == sum(latest > stage for latest in entered)
        if entered:
            assert self.counts.earliest() == min(0 if stage == NO_STAGE else stage for stage in entered)
        else:
            with pytest.raises(ValueError, match=r"^there is no unfinished document$"):
                self.counts.earliest()


Documents.TestCase.settings = modest(100, steps=30)
TestStageCounts = Documents.TestCase


def test_counts_are_stored_in_a_form_that_stays() -> None:
    counts = StageCounts.empty(3)
    counts.add(5)
    for previous, stage in ((NO_STAGE, 0), (NO_STAGE, 2), (0, 1), (NO_STAGE, 1)):
        counts.enter(previous, stage)
    assert counts.stored == [2, 0, 2, 1]
    assert StageCounts([2, 0, 2, 1]).passed == counts.passed == 4
