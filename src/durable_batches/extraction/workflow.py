"""The workflow: five durable steps per document, and the resolver on all of the results."""

from __future__ import annotations

from typing import TypeAlias

from durable_batches import (
    EXTRACTION,
    Assembling,
    Chunking,
    ExtractingEntities,
    ExtractingMentions,
    ExtractingRelations,
    ExtractionStage,
    Workflow,
    durable_activity,
    map_activity,
    workflow,
)
from durable_batches.extraction.chunking import chunk_document
from durable_batches.extraction.document_links import Resolution, link_documents
from durable_batches.extraction.documents import SourceDocument
from durable_batches.extraction.extractor import Extractor
from durable_batches.extraction.model import Chunk, DocumentRef, Entity, KnowledgeGraph, Mention, Relation
from durable_batches.options import check_callable

__all__ = ["ExtractionWorkflow", "extraction_workflow"]

ExtractionWorkflow: TypeAlias = Workflow[SourceDocument, KnowledgeGraph, ExtractionStage, Resolution]

CHUNKS_AT_ONCE = 4
"""Chunks of one document that are read concurrently."""


def extraction_workflow(extractor: Extractor) -> ExtractionWorkflow:
    """Make the workflow `knowledge-extraction`, which reads documents with this extractor.

    Its activities have the same names for every extractor: a batch that was started with one extractor can be
    continued with another, and keeps the recorded results.

    Raises:
        ConfigurationError: `extractor` is none.
    """
    for method in ("find_mentions", "make_entities", "find_relations"):
        check_callable(f"{method} of the extractor", getattr(extractor, method, None))

    @durable_activity(stage=Chunking)
    async def split(document: SourceDocument) -> list[Chunk]:
        return chunk_document(document)

    @durable_activity(stage=ExtractingMentions)
    async def find_mentions(chunk: Chunk) -> list[Mention]:
        return await extractor.find_mentions(chunk)

    @durable_activity(stage=ExtractingEntities)
    async def make_entities(document: DocumentRef, mentions: list[Mention]) -> list[Entity]:
        return await extractor.make_entities(document, mentions)

    @durable_activity(stage=ExtractingRelations)
    async def find_relations(document: DocumentRef, entities: list[Entity], mentions: list[Mention]) -> list[Relation]:
        return await extractor.find_relations(document, entities, mentions)

    @durable_activity(stage=Assembling)
    async def assemble(document: DocumentRef, entities: list[Entity], relations: list[Relation]) -> KnowledgeGraph:
        return KnowledgeGraph(document=document, entities=entities, relations=relations)

    @workflow(EXTRACTION, name="knowledge-extraction", resolver=link_documents)
    async def extract_knowledge(document: SourceDocument) -> KnowledgeGraph:
        chunks = await split(document)
        found = await map_activity(find_mentions, chunks, concurrency=CHUNKS_AT_ONCE)
        mentions = [mention for of_chunk in found for mention in of_chunk]
        ref = DocumentRef(id=document.id, title=document.title)
        entities = await make_entities(ref, mentions)
        relations = await find_relations(ref, entities, mentions)
        return await assemble(ref, entities, relations)

    return extract_knowledge
