from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.properties import modest

from durable_batches.stores.fair_share import fair_shares


def shared(batches: list[tuple[int, int]], limit: int) -> tuple[list[int], int]:
    """What each batch of (free, due) gives; and how many rows were read for it."""
    taken, read = [0] * len(batches), 0
    for index, share in fair_shares(range(len(batches)), limit, lambda index: batches[index][0]):
        found = min(batches[index][1], share.size)
        read += found
        share.used(found)
        taken[index] = found
    return taken, read


sizes = st.integers(0, 20)


@given(batches=st.lists(st.tuples(sizes, sizes), max_size=8), limit=sizes)
@modest(300)
def test_a_claim_is_filled_and_never_overfull(batches: list[tuple[int, int]], limit: int) -> None:
    taken, read = shared(batches, limit)
    there = [min(free, due) for free, due in batches]
    assert all(some <= most for some, most in zip(taken, there, strict=True))
    assert sum(taken) == min(sum(there), limit), "nothing is left that there is room for"
    assert read <= 2 * limit, "the work is bounded by the claim, not by the batches"


@given(few=st.integers(1, 5), others=st.integers(1, 5), limit=st.integers(1, 20))
@modest(100)
def test_those_who_want_little_get_it(few: int, others: int, limit: int) -> None:
    """A batch gets at least its equal share, or all that it wants, wherever it stands in the row."""
    for place in range(others + 1):
        batches = [(100, 100)] * others
        batches.insert(place, (few, few))
        taken, _ = shared(batches, limit)
        assert taken[place] >= min(few, limit // (others + 1))
