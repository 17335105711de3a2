"""Knowledge extraction: the packages, people, licences and URLs in documents, and their relations.

A workflow over `EXTRACTION`'s five stages, written with the library's public names only, and a resolver
that links the same person or package across documents::

    extract = extraction_workflow(RuleExtractor())
    async with BatchOrchestrator(extract, store=SQLiteStore("batches.db")) as batches:
        batch_id = await batches.submit(installed_packages(), document_id=lambda document: document.id)
        resolution = (await batches.result(batch_id)).value

Two seams: an `Extractor` reads documents (`RuleExtractor` by rules, offline), and `link_documents` is the
resolver. Needs the extra `extraction`.
"""

from __future__ import annotations

from durable_batches.extraction.chunking import chunk_document
from durable_batches.extraction.document_links import Ranked, Resolution, Summary, link_documents
from durable_batches.extraction.documents import (
    SourceDocument,
    installed_packages,
    package_document,
    text_files,
)
from durable_batches.extraction.extractor import Extractor
from durable_batches.extraction.graph import Edge, GraphBuilder, MergedGraph, Node, write_graph
from durable_batches.extraction.linking import PersonCluster
from durable_batches.extraction.model import (
    Chunk,
    DocumentRef,
    Entity,
    EntityKind,
    Evidence,
    KnowledgeGraph,
    Mention,
    Relation,
    RelationKind,
    Role,
    Section,
)
from durable_batches.extraction.names import Vocabulary, canonical_package_name
from durable_batches.extraction.rules import RuleExtractor
from durable_batches.extraction.workflow import ExtractionWorkflow, extraction_workflow

__all__ = [
    "Chunk",
    "DocumentRef",
    "Edge",
    "Entity",
    "EntityKind",
    "Evidence",
    "ExtractionWorkflow",
    "Extractor",
    "GraphBuilder",
    "KnowledgeGraph",
    "Mention",
    "MergedGraph",
    "Node",
    "PersonCluster",
    "Ranked",
    "Relation",
    "RelationKind",
    "Resolution",
    "Role",
    "RuleExtractor",
    "Section",
    "SourceDocument",
    "Summary",
    "Vocabulary",
    "canonical_package_name",
    "chunk_document",
    "extraction_workflow",
    "installed_packages",
    "link_documents",
    "package_document",
    "text_files",
    "write_graph",
]
