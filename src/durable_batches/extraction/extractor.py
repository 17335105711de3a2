"""The protocol between the workflow and a reader of text: rules, a model, a service."""

from __future__ import annotations

from typing import Protocol

from durable_batches.extraction.model import Chunk, DocumentRef, Entity, Mention, Relation

__all__ = ["Extractor"]


class Extractor(Protocol):
    """Read documents in three steps. The workflow records the result of each call.

    The methods are asynchronous, so that an extractor may call a service. Each must give the same kind of
    answer for the same input at any time: a document that is resumed mixes recorded answers with new ones.
    """

    async def find_mentions(self, chunk: Chunk) -> list[Mention]:
        """Find the mentions in a chunk, in order."""
        ...

    async def make_entities(self, document: DocumentRef, mentions: list[Mention]) -> list[Entity]:
        """List the entities that the mentions of all chunks of a document name, each once."""
        ...

    async def find_relations(
        self, document: DocumentRef, entities: list[Entity], mentions: list[Mention]
    ) -> list[Relation]:
        """Find the relations of a document's entities; both ends of a relation are among the entities."""
        ...
