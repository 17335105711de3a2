from __future__ import annotations

import itertools
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.extraction.examples import quick

from durable_batches.extraction.linking import (
    Link,
    PersonCluster,
    PersonRecord,
    certain_links,
    cluster,
    compare,
    name_blocks,
)
from durable_batches.extraction.unionfind import UnionFind


def person(key: str, name: str = "", *emails: str, documents: str = "") -> PersonRecord:
    return PersonRecord(id=key, names=[name or emails[0]], emails=list(emails), documents=documents.split())


def linked(*people: PersonRecord) -> list[PersonCluster]:
    compared = [link for block in name_blocks(people) for link in compare(block)]
    return cluster(people, [*certain_links(people), *compared])


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        (person("1", "Ada Quill"), person("2", "ADA  Quill", "ada@quill.dev"), "same name"),
        (person("1", "Ada Quill", "a@quill.dev"), person("2", "Ada Quill", "ada@work.example"), "same name"),
        (
            person("1", "Ada Quill", "a@quill.dev"),
            person("2", "Ada Quill-Dijk", "a@quill.dev"),
            "same e-mail address",
        ),
        (person("1", "Ada Quill", "a@quill.dev"), person("2", "", "a@quill.dev"), "same e-mail address"),
        (person("1", "adaq", "a@quill.dev"), person("2", "adaq", "a@quill.dev"), "same e-mail address"),
        (
            person("1", "A. Quill", "x@quill.dev"),
            person("2", "Ada Quill", "y@quill.dev"),
            "similar name and same e-mail domain",
        ),
        (
            person("1", "Ada Quill", documents="parrot"),
            person("2", "Ada Maria Quill", documents="cage parrot"),
            "similar name and same package",
        ),
        (
            person("1", "Hyacint Schlaubmeyer", "hs@meyer.example"),
            person("2", "Hyacint Schlaubmayer", "x@meyer.example"),
            "similar name and same e-mail domain",
        ),
        (
            person("1", "Hyacint Schlaubmeyr", "hyacintschlaubmeyer@gmail.com"),
            person("2", "Hyacint Schlaubmeyer"),
            "similar name and an e-mail address made of the other's name",
        ),
    ],
)
def test_one_person_is_recognised(one: PersonRecord, other: PersonRecord, reason: str) -> None:
    for people in ([one, other], [other, one]):
        (found,) = linked(*people)
        assert found.members == ["1", "2"]
        assert reason in found.reasons


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # A similar name alone is not enough,
        (person("1", "Hyacint Schlaubmeyer"), person("2", "Hyacint Schlaubmayer")),
        (person("1", "A. Quill"), person("2", "Ada Quill")),
        # nor with a domain at which everybody is,
        (person("1", "A. Quill", "x@gmail.com"), person("2", "Ada Quill", "y@gmail.com")),
        # nor where two co-authors or relatives have similar names.
        (person("1", "Daniel Webermann", documents="p"), person("2", "Daniela Webermann", documents="p")),
        (
            person("1", "Daniel Weber", "daniel@weber.example"),
            person("2", "Daniela Weber", "daniela@weber.example"),
        ),
        # A project's mailbox belongs to several people.
        (
            person("1", "Ada Quill", "parrot@birds.example"),
            person("2", "Bram van Dijk", "parrot@birds.example"),
        ),
        # A single name is shared by many.
        (person("1", "ada"), person("2", "ada")),
        (person("1", "Ada Quill", documents="p"), person("2", "Bram van Dijk", documents="p")),
    ],
)
def test_two_people_stay_two(one: PersonRecord, other: PersonRecord) -> None:
    assert linked(one, other) == []


def test_links_join_to_clusters_with_the_name_that_most_use() -> None:
    people = [
        person("1", "Ada Quill", "a@quill.dev"),
        person("2", "ada quill", "b@quill.dev"),
        person("3", "Ada Quill"),
        person("4", "", "b@quill.dev"),
    ]
    (found,) = linked(*people)
    assert found.id == "1"
    assert found.name == "Ada Quill"
    assert found.members == ["1", "2", "3", "4"]
    assert found.emails == ["a@quill.dev", "b@quill.dev"]


def test_only_people_who_share_a_name_are_compared() -> None:
    people = [
        person("1", "Ada Quill"),
        person("2", "Ada Quine"),
        person("3", "Bram van Dijk"),
        person("4", "ada"),
    ]
    assert [[member.id for member in block.people] for block in name_blocks(people)] == [["1", "2"]]


firsts = st.sampled_from(["Ada", "Adam", "A.", "Bram"])
lasts = st.sampled_from(["Quill", "Quil", "Dijk"])
emails = st.lists(st.sampled_from(["a@quill.dev", "ada@quill.dev", "x@gmail.com"]), max_size=2, unique=True)
records = st.lists(st.tuples(firsts, lasts, emails, st.sampled_from(["", "p", "p q"])), max_size=8).map(
    lambda drawn: [
        person(str(index), f"{first} {last}", *emails, documents=documents)
        for index, (first, last, emails, documents) in enumerate(drawn)
    ]
)


@quick
@given(records, st.randoms(use_true_random=False))
def test_the_order_makes_no_difference(people: list[PersonRecord], random: Random) -> None:
    expected = linked(*people)
    shuffled = list(people)
    random.shuffle(shuffled)
    assert linked(*shuffled) == expected
    members = [member for found in expected for member in found.members]
    assert len(members) == len(set(members))
    assert all(len(found.members) > 1 for found in expected)


@quick
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh"))))
def test_groups_are_the_closure_of_the_pairs(pairs: list[tuple[str, str]]) -> None:
    joined = UnionFind("abcdefgh")
    for pair in pairs:
        joined.union(*pair)
    reachable = {letter: {letter} for letter in "abcdefgh"}
    for _ in range(8):
        for one, other in itertools.chain(pairs, [(other, one) for one, other in pairs]):
            reachable[one] |= reachable[other]
    assert joined.groups() == sorted({tuple(sorted(group)): sorted(group) for group in reachable.values()}.values())
    assert all(joined.find(letter) == min(reachable[letter]) for letter in "abcdefgh")


def test_a_cluster_of_nobody_is_none() -> None:
    assert cluster([], []) == []
    assert cluster([person("1", "Ada Quill")], list[Link]()) == []
