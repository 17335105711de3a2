"""What the rules read: metadata exactly, and running text with caution."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.extraction.examples import VOCABULARY, chunk, mentions_of, parrot, quick

from durable_batches.extraction import (
    DocumentRef,
    KnowledgeGraph,
    RuleExtractor,
    SourceDocument,
    Vocabulary,
    package_document,
)

extractor = RuleExtractor(VOCABULARY)


async def graph_of(document: SourceDocument) -> KnowledgeGraph:
    ref = DocumentRef(id=document.id, title=document.title)
    mentions = await mentions_of(document)
    entities = await extractor.make_entities(ref, mentions)
    relations = await extractor.find_relations(ref, entities, mentions)
    return KnowledgeGraph(document=ref, entities=entities, relations=relations)


async def metadata(fields: str) -> dict[str, list[tuple[str, str]]]:
    """The (kind, name) pairs of each role in a package's metadata."""
    found: dict[str, list[tuple[str, str]]] = {}
    for mention in await extractor.find_mentions(chunk(f"Name: sample\n{fields}\n", "metadata")):
        found.setdefault(mention.role, []).append((mention.kind, mention.name))
    return found


async def names_in(text: str, kind: str) -> list[str]:
    return [mention.name for mention in await extractor.find_mentions(chunk(text)) if mention.kind == kind]


async def test_the_graph_of_a_package() -> None:
    graph = await graph_of(parrot())
    subject = graph.entities[0]
    assert (subject.id, subject.name) == ("package:py-parrot", "Py.Parrot")
    assert subject.attributes["version"] == ["1.4.2"]
    relations = {(relation.kind, relation.target) for relation in graph.relations}
    assert {relation.source for relation in graph.relations} == {subject.id}
    assert relations == {
        ("mentions", "url:parrot.example-software.org"),
        ("mentions", "url:github.com/quill/parrot"),
        ("depends_on", "package:click"),
        ("depends_on", "package:numpy"),
        ("depends_on", "package:pytest"),
        ("written_by", "person:ada quill <ada@quill.dev>"),
        ("written_by", "person:bram van dijk <bram@vandijk.nl>"),
        ("written_by", "person:carla nunez <carla@nunez.es>"),
        ("licensed_under", "license:mit"),
        ("mentions", "package:click"),
        ("mentions", "url:click.palletsprojects.com"),
        ("mentions", "package:pyparrot"),
        ("mentions", "package:numpy"),
        ("mentions", "license:mit"),
        ("mentions", "person:ada quill <ada@quill.dev>"),
    }


async def test_a_relation_says_on_what_terms_and_where_it_was_read() -> None:
    relations = {(relation.kind, relation.target): relation for relation in (await graph_of(parrot())).relations}
    numpy = relations["depends_on", "package:numpy"]
    assert numpy.attributes == {"specifier": [">=1.21,<3"], "marker": ['python_version < "3.13"']}
    assert relations["depends_on", "package:pytest"].attributes["optional"] == ["true"]
    assert relations["written_by", "person:carla nunez <carla@nunez.es>"].attributes == {"role": ["maintainer"]}
    (evidence,) = numpy.evidence
    assert (evidence.section, evidence.quote) == ("metadata", 'numpy (>=1.21,<3) ; python_version < "3.13"')


async def test_offsets_lead_to_what_was_read() -> None:
    document = parrot()
    for mention in await mentions_of(document):
        if mention.section == "text" and mention.kind != "person":
            assert document.text[mention.start : mention.end].split() == mention.quote.split()


@pytest.mark.parametrize(
    ("fields", "licenses"),
    [
        (
            "License-Expression: MIT OR Apache-2.0\nClassifier: License :: OSI Approved :: BSD License",
            ["MIT", "Apache-2.0"],
        ),
        ("License: BSD\nClassifier: License :: OSI Approved :: BSD License", ["BSD", "BSD"]),
        ("License: BSD 3-Clause\nClassifier: License :: OSI Approved :: BSD License", ["BSD-3-Clause"]),
        ("License: UNKNOWN\nClassifier: License :: OSI Approved :: MIT License", ["MIT"]),
        ("License: MIT License\n        \n        Permission is granted ...", ["MIT"]),
        ("License: Parrot Public License", ["Parrot Public License"]),
        ("License: see LICENSE.txt", []),
        ("License: https://parrot.dev/license", []),
    ],
)
async def test_licences_of_metadata(fields: str, licenses: list[str]) -> None:
    assert [name for _, name in (await metadata(fields)).get("license", [])] == licenses


async def test_people_of_metadata() -> None:
    found = await metadata(
        "Author: Ada Quill\nAuthor-email: a@quill.dev\nMaintainer: Parrot Team\nMaintainer-email: team@x.org"
    )
    assert found["author"] == [("person", "Ada Quill")]
    assert found["maintainer"] == [("organization", "Parrot Team")]


async def test_a_single_word_is_nobody_in_particular() -> None:
    mentions = await extractor.find_mentions(chunk("Name: x\nAuthor: adaq\n", "metadata"))
    assert [mention.key for mention in mentions if mention.role == "author"] == ["adaq (sample)"]


async def test_field_names_are_compared_without_case() -> None:
    assert (await metadata("home-page: https://parrot.dev\nREQUIRES-DIST: click"))["dependency"] == [
        ("package", "click")
    ]


@pytest.mark.parametrize(
    ("text", "packages"),
    [
        # Names that are nothing else are recognised anywhere.
        ("It uses numpy, PYTEST and Python-DateUtil.", ["numpy", "pytest", "python-dateutil"]),
        ("numpy's arrays (numpy) and **numpy**", ["numpy", "numpy", "numpy"]),
        # Names that are words are not ...
        ("A rich set of commands; click the black button.", []),
        # ... unless what is around them says so.
        ("pip install rich", ["rich"]),
        ("$ python -m pip install -U rich 'black[jupyter]>=23' # both", ["rich", "black"]),
        ("uv add click\npoetry add rich", ["click", "rich"]),
        ("The rich library, the `black` formatter.", ["rich", "black"]),
        (
            "[Click](https://click.palletsprojects.com) and `Rich <https://forge.dev/x/rich>`_",
            ["click", "rich"],
        ),
        ("[coverage](https://codecov.io/x) and [black](https://colors.dev)", []),
        (
            ">>> import click\n>>> from rich.console import Console\nimport numpy as np, parrot",
            ["click", "rich", "numpy", "PyParrot"],
        ),
        ("import yaml", ["PyYAML"]),
        # An unknown name counts only where it must be a package's.
        ("pip install unheard-of and more", ["unheard-of"]),
        ("pip install -r requirements.txt", []),
        ("pip install it with care, pip install your-package", []),
        # Parts of other things are no names.
        ("numpy.ini /usr/numpy numpy/core @numpy numpy@x.org --numpy numpy=1 numpy(x)", []),
        ("https://numpy.org/numpy and numpydoc", []),
        # A module of the standard library is no package.
        ("import dataclasses, `dataclasses`", []),
    ],
)
async def test_packages_in_text(text: str, packages: list[str]) -> None:
    assert await names_in(text, "package") == packages


@pytest.mark.parametrize(
    ("text", "role", "licenses"),
    [
        ("It is licensed under the terms of the MIT license.", "license", ["MIT"]),
        ("Released under Apache 2.0. The MIT is a school.", "license", ["Apache-2.0"]),
        ("Dual-licensed under MIT or Apache-2.0", "license", ["MIT", "Apache-2.0"]),
        ("## License\n\nBSD-3-Clause", "license", ["BSD-3-Clause"]),
        ("License\n=======\n\nThis is free software: GPLv3.", "license", ["GPL-3.0"]),
        ("See the Apache License 2.0 for more.", "text", ["Apache-2.0"]),
        ("A BSD-3-Clause file", "text", ["BSD-3-Clause"]),
        ("We met at MIT; Apache helicopters; a mit of permits.", "text", []),
    ],
)
async def test_licences_in_text(text: str, role: str, licenses: list[str]) -> None:
    mentions = [mention for mention in await extractor.find_mentions(chunk(text)) if mention.kind == "license"]
    assert [mention.name for mention in mentions] == licenses
    assert {mention.role for mention in mentions} <= {role}


@pytest.mark.parametrize(
    ("text", "role", "people"),
    [
        ("Parrot was written by Ada Quill and Bram van Dijk.", "author", ["Ada Quill", "Bram van Dijk"]),
        ("created and maintained by [Ada Quill](https://quill.dev)", "author", ["Ada Quill"]),
        ("Author: Ada Quill <ada@quill.dev>", "author", ["Ada Quill"]),
        ("Maintainers: Ada Quill, Bram van Dijk", "maintainer", ["Ada Quill", "Bram van Dijk"]),
        ("Copyright (c) 2019-2031 Ada Quill and contributors", "text", ["Ada Quill"]),
        ("© 2031 Ada Q. Quill", "text", ["Ada Q. Quill"]),
        ("Please write to Ada Quill <ada@quill.dev>.", "text", ["Ada Quill"]),
        ("written by hand, maintained by the community, created by Parrot Software Inc.", "text", []),
        ("Copyright 2031 The Parrot Authors", "text", []),
    ],
)
async def test_people_in_text(text: str, role: str, people: list[str]) -> None:
    mentions = [mention for mention in await extractor.find_mentions(chunk(text)) if mention.kind == "person"]
    assert [mention.name for mention in mentions] == people
    assert {mention.role for mention in mentions} <= {role}


async def test_a_text_states_relations_of_what_it_names() -> None:
    text = "PyParrot depends on numpy and python-dateutil. It is fast.\n\nPyParrot was written by Ada Quill."
    graph = await graph_of(SourceDocument(id="notes.txt", title="notes.txt", text=text))
    assert graph.entities[0].id == "document:notes.txt"
    assert {(relation.source, relation.kind, relation.target) for relation in graph.relations} == {
        ("document:notes.txt", "mentions", "package:pyparrot"),
        ("package:pyparrot", "depends_on", "package:numpy"),
        ("package:pyparrot", "depends_on", "package:python-dateutil"),
        ("package:pyparrot", "written_by", "person:ada quill"),
    }


async def test_a_readme_does_not_overrule_the_metadata() -> None:
    document = package_document(
        "Name: parrot\nLicense: MIT\n\nThe logo is licensed under Apache 2.0. It requires numpy."
    )
    kinds = {(relation.kind, relation.target) for relation in (await graph_of(document)).relations}
    assert kinds == {
        ("licensed_under", "license:mit"),
        ("mentions", "license:apache-2.0"),
        ("mentions", "package:numpy"),
    }


async def test_one_person_has_one_entity_in_a_document() -> None:
    document = package_document(
        "Name: parrot\nAuthor-email: Ada Quill <ada@quill.dev>\n"
        "Maintainer: Ada Quill\nMaintainer-email: ADA@quill.dev\n\n"
        "Written by Ada Quill. Mail: Dr. Ada Quill <ada@quill.dev>"
    )
    people = [entity for entity in (await graph_of(document)).entities if entity.kind == "person"]
    assert [person.id for person in people][:1] == ["person:ada quill <ada@quill.dev>"]
    assert people[0].attributes["email"] == ["ada@quill.dev"]


async def test_an_empty_document_is_its_own_subject() -> None:
    graph = await graph_of(SourceDocument(id="d", title="Nothing", text=""))
    assert [(entity.id, entity.name) for entity in graph.entities] == [("document:d", "Nothing")]
    assert graph.relations == []


words = st.sampled_from(
    ["numpy", "`rich`", "pip install", "depends on", "licensed under", "MIT", "License", "by", "Ada", "Quill",
     "written", "<a@b.co>", "https://x.dev/y", "[a](http://b.co)", "import", "\n", "\n\n", ".", "## License",
     "(c)", "2031", "and"]
)  # fmt: skip


@quick
@given(st.lists(words | st.text(max_size=5), max_size=60).map(" ".join))
async def test_any_text_is_answered(text: str) -> None:
    graph = await graph_of(SourceDocument(id="d", title="d", text=text))
    ids = [entity.id for entity in graph.entities]
    assert len(ids) == len(set(ids))
    for relation in graph.relations:
        assert relation.source in ids
        assert relation.target in ids
        assert relation.source != relation.target
        assert relation.evidence
    for mention in await extractor.find_mentions(chunk(text)):
        assert 0 <= mention.start <= mention.end <= len(text)


def test_the_vocabulary_of_what_is_installed() -> None:
    vocabulary = Vocabulary.installed()
    assert "pydantic" in vocabulary
    assert "typing_extensions" in vocabulary
    assert "dataclasses" not in vocabulary
    assert vocabulary.spelling("RAPIDFUZZ") == "RapidFuzz"
    assert vocabulary.package_of_module("rapidfuzz.fuzz") == "RapidFuzz"
    assert vocabulary.package_of_module("no_such_module") is None
    assert len(vocabulary) > 10
