from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from tests.properties import modest

from durable_batches.extraction.resolution.ids import cluster_ids, new_cluster_id

A, B = new_cluster_id("a"), new_cluster_id("b")


def test_a_new_cluster_is_named_after_its_least_member() -> None:
    assert cluster_ids([["b", "a"], ["d", "c"]], {}) == [A, new_cluster_id("c")]
    assert A == "c-ca978112ca1bbdca", "ids are kept by applications"


def test_a_cluster_that_grows_keeps_its_id_though_its_least_member_is_another() -> None:
    assert cluster_ids([["a", "b", "c"]], {"b": B, "c": B}) == [B]


def test_of_two_that_were_one_the_larger_part_keeps_the_id() -> None:
    known = dict.fromkeys("abcde", "old")
    assert cluster_ids([["a", "b"], ["c", "d", "e"]], known) == [A, "old"]
    assert cluster_ids([["a", "b"], ["c", "d"]], known) == ["old", new_cluster_id("c")]


def test_of_two_that_become_one_the_larger_ones_id_is_kept() -> None:
    assert cluster_ids([["a", "b", "c"]], {"a": "one", "b": "two", "c": "two"}) == ["two"]


def test_no_two_clusters_have_one_id_though_the_least_member_of_one_has_named_the_other() -> None:
    found = cluster_ids([["a", "x"], ["b", "c"]], {"b": A, "c": A})
    assert found[1] == A
    assert found[0] != A


PARTS = st.lists(st.integers(0, 4), min_size=10, max_size=10)


def parted(parts: Sequence[int]) -> list[list[str]]:
    members = "abcdefghij"
    return [
        [member for member, part in zip(members, parts, strict=True) if part == which] for which in sorted({*parts})
    ]


@modest(200)
@given(PARTS, PARTS)
def test_ids_are_one_each_and_of_no_order(before: list[int], after: list[int]) -> None:
    known = {
        member: f"old-{part}"
        for part, members in zip(sorted({*before}), parted(before), strict=True)
        for member in members
    }
    clusters = parted(after)
    found = cluster_ids(clusters, known)
    assert len(set(found)) == len(clusters)
    backwards = cluster_ids([members[::-1] for members in clusters[::-1]], dict(reversed(known.items())))
    assert backwards == found[::-1]
    # Named anew, they are the same: nothing moves where nothing has changed.
    again = {member: name for name, members in zip(found, clusters, strict=True) for member in members}
    assert cluster_ids(clusters, again) == found
