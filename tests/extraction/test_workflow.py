"""The whole workflow: as plain functions, and run by an orchestrator."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.extraction.examples import VOCABULARY, parrot

from durable_batches import (
    BatchOrchestrator,
    Completed,
    DocumentFailure,
    DocumentSucceeded,
    ExtractionStage,
    MemoryStore,
    NonRetryableError,
    SQLiteStore,
    Store,
)
from durable_batches.extraction import (
    DocumentRef,
    Entity,
    ExtractionWorkflow,
    GraphBuilder,
    KnowledgeGraph,
    Mention,
    MergedGraph,
    Resolution,
    RuleExtractor,
    SourceDocument,
    extraction_workflow,
    link_documents,
    package_document,
    write_graph,
)
from durable_batches.testing import results_of

CAGE = """\
Metadata-Version: 2.1
Name: cage
Version: 2.0
Author: A. Quill, Bram van Dijk
Author-email: a.quill@quill.dev, bram@work.example
License-Expression: MIT OR Apache-2.0
Requires-Dist: py_parrot
Requires-Dist: Click

Keeps a py.parrot. It was written by Ada Quill.
"""
SEED = """\
Metadata-Version: 2.1
Name: seed
Version: 1
License: MIT
Maintainer: Bram van Dijk
Requires-Dist: click; extra == 'x'
"""


def documents() -> list[SourceDocument]:
    return [parrot(), package_document(CAGE), package_document(SEED)]


@pytest.fixture
def workflow() -> ExtractionWorkflow:
    return extraction_workflow(RuleExtractor(VOCABULARY))


async def test_the_workflow_is_a_plain_function(workflow: ExtractionWorkflow) -> None:
    graph = await workflow(parrot())
    assert graph.document == DocumentRef(id="py-parrot", title="Py.Parrot 1.4.2")
    assert graph.entities[0].id == "package:py-parrot"
    assert {relation.kind for relation in graph.relations} == {
        "depends_on",
        "written_by",
        "licensed_under",
        "mentions",
    }


async def test_the_resolver_is_a_plain_function(workflow: ExtractionWorkflow) -> None:
    resolution = await link_documents(results_of([await workflow(document) for document in documents()]))
    check(resolution)


async def test_no_documents_are_resolved_to_nothing() -> None:
    resolution = await link_documents(results_of([]))
    assert resolution.people == []
    assert resolution.summary.documents == 0
    assert resolution.summary.entities == {}


def check(resolution: Resolution) -> None:
    names = {person.name: person for person in resolution.people}
    assert set(names) == {"Ada Quill", "Bram van Dijk"}
    assert names["Ada Quill"].members == [
        "person:a quill <a.quill@quill.dev>",
        "person:ada quill",
        "person:ada quill <ada@quill.dev>",
    ]
    assert set(names["Ada Quill"].reasons) == {
        "same name",
        "similar name and same e-mail domain",
        "similar name and same package",
    }
    assert resolution.canonical("person:ada quill") == names["Ada Quill"].id
    assert resolution.canonical("package:cage") == "package:cage"
    summary = resolution.summary
    assert summary.documents == 3
    assert summary.occurrences["person"] == 7
    assert summary.entities["person"] == 3
    assert [(ranked.name, ranked.count) for ranked in summary.most_required] == [
        ("click", 2),
        ("numpy", 1),
        ("Py.Parrot", 1),
    ]
    assert (summary.most_depended_on[0].name, summary.most_depended_on[0].count) == ("click", 3)
    assert [(ranked.name, ranked.count) for ranked in summary.most_packages] == [
        ("Bram van Dijk", 3),
        ("Ada Quill", 2),
        ("Carla Núñez", 1),
    ]
    assert [(ranked.name, ranked.count) for ranked in summary.licenses] == [("MIT", 3), ("Apache-2.0", 1)]


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "batches.db")


async def test_a_batch(workflow: ExtractionWorkflow, store: Store, tmp_path: Path) -> None:
    async with BatchOrchestrator(workflow, store=store) as batches:
        batch_id = await batches.submit(documents(), document_id=lambda document: document.id)
        result = (await batches.result(batch_id)).raise_for_failures()
        assert isinstance(result.state, Completed)
        check(result.value)
        graph = await merged(batches, batch_id, result.value)
        stages = (await batches.snapshot(batch_id)).stages
        assert [(stage.done, stage.total) for stage in stages] == [(3, 3)] * 5
        recorded = await batches.count_checkpoints(batch_id)
        assert recorded == batches.stats.activities_run

    assert {document.id for document in graph.documents} == {"py-parrot", "cage", "seed"}
    nodes = {node.id: node for node in graph.nodes}
    assert nodes["package:py-parrot"].name == "Py.Parrot"
    assert nodes["package:py-parrot"].documents == ["py-parrot", "cage"]
    assert not nodes.keys() & {"person:ada quill", "person:bram van dijk"} - set(result.value.links.values())
    edges = {(edge.source, edge.kind, edge.target): edge for edge in graph.edges}
    assert len(edges) == len(graph.edges) == sum(result.value.summary.relations.values())
    assert len(nodes) == sum(result.value.summary.entities.values())
    assert all(edge.source in nodes and edge.target in nodes and edge.evidence for edge in graph.edges)
    assert "optional" not in edges["package:cage", "depends_on", "package:click"].attributes
    assert edges["package:seed", "depends_on", "package:click"].attributes["optional"] == ["true"]

    write_graph(graph, tmp_path / "graph.json")
    assert MergedGraph.model_validate_json((tmp_path / "graph.json").read_text(encoding="utf-8")) == graph
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".graph")] == []


async def merged(
    batches: BatchOrchestrator[SourceDocument, KnowledgeGraph, ExtractionStage, Resolution],
    batch_id: str,
    resolution: Resolution,
) -> MergedGraph:
    graph = GraphBuilder(resolution)
    async for outcome in batches.results(batch_id):
        assert isinstance(outcome, DocumentSucceeded)
        graph.add(outcome.value)
    return graph.build()


class Refusing(RuleExtractor):
    """An extractor whose service refuses one document."""

    async def make_entities(self, document: DocumentRef, mentions: list[Mention]) -> list[Entity]:
        if document.id == "cage":
            raise NonRetryableError("the service refuses")
        return await super().make_entities(document, mentions)


async def test_the_resolver_works_with_what_succeeded() -> None:
    workflow = extraction_workflow(Refusing(VOCABULARY))
    async with BatchOrchestrator(workflow, store=MemoryStore()) as batches:
        batch_id = await batches.submit(documents(), document_id=lambda document: document.id)
        result = await batches.result(batch_id)
        outcomes = [outcome async for outcome in batches.results(batch_id)]
    assert (result.counts.succeeded, result.counts.failed) == (2, 1)
    assert result.value.summary.documents == 2
    assert [outcome.document_id for outcome in outcomes if isinstance(outcome, DocumentFailure)] == ["cage"]


def test_a_graph_is_not_written_in_part(tmp_path: Path) -> None:
    graph = MergedGraph(documents=[], nodes=[], edges=[])
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_graph(graph, tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    with pytest.raises(FileNotFoundError):
        write_graph(graph, tmp_path / "missing" / "graph.json")
