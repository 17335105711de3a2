from __future__ import annotations

import pytest

from durable_batches import ConfigurationError
from durable_batches.extraction.resolution import Cluster, SameAsLinker

PEOPLE = Cluster(id="c-1", members=("ada", "ada l.", "lindqvist/ada"), canonical="ada l.")
BASE = "https://example.org/people/"


def test_the_cluster_says_which_record_stands_for_it_and_the_application_may_say_otherwise() -> None:
    assert list(SameAsLinker().same_as([PEOPLE])) == [("ada", "ada l."), ("lindqvist/ada", "ada l.")]
    longest = SameAsLinker(canonical=lambda cluster: max(cluster.members, key=len))
    assert longest.canonical(PEOPLE) == "lindqvist/ada"


def test_a_choice_outside_of_the_cluster_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'somebody', which is no member of cluster 'c-1'"):
        SameAsLinker(canonical=lambda _: "somebody").canonical(PEOPLE)


def test_the_closure_has_each_pair_once() -> None:
    assert list(SameAsLinker().closure([PEOPLE])) == [
        ("ada", "ada l."),
        ("ada", "lindqvist/ada"),
        ("ada l.", "lindqvist/ada"),
    ]


def test_statements_are_lines_of_n_quads_with_the_cluster_as_their_graph() -> None:
    same = "<http://www.w3.org/2002/07/owl#sameAs>"
    canonical, graph = f"<{BASE}ada%20l.>", f"<{BASE}c-1>"
    assert list(SameAsLinker().n_quads([PEOPLE], base=BASE)) == [
        f"<{BASE}ada> {same} {canonical} {graph} .",
        f"<{BASE}lindqvist%2Fada> {same} {canonical} {graph} .",
    ]


def test_no_id_breaks_out_of_its_iri() -> None:
    hostile = Cluster(id="c", members=("a> <b> .\n", "李明"), canonical="李明")
    (line,) = SameAsLinker().n_quads([hostile], base=BASE)
    assert line.count("<") == line.count(">") == 4
    assert "\n" not in line
    assert line.isascii()


@pytest.mark.parametrize("base", ["", "people/", "1:x", "https:", "https://example.org/ people/", "https://a<b/"])
def test_a_base_that_begins_no_iri_is_refused_at_the_call(base: str) -> None:
    with pytest.raises(ConfigurationError, match="absolute IRI"):
        SameAsLinker().n_quads([PEOPLE], base=base)
