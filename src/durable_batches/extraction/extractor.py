"""The seam between the workflow and whatever reads the text: rules, a model, a service."""

from __future__ import annotations

from typing import Protocol

from durable_batches.extraction.model import Chunk, DocumentRef, Entity, Mention, Relation

__all__ = ["Extractor"]


class Extractor(Protocol):
    """Reads documents, in three steps. The workflow records the result of each call.

    The methods are asynchronous, so that an extractor may call a service. Each must give the same kind of
    answer for the same input at any time: a document that is resumed mixes recorded answers with new ones.
    """

    async def find_mentions(self, chunk: Chunk) -> list[Mention]:
        """The places in one chunk that name something, in order."""
        ...

    async def make_entities(self, document: DocumentRef, mentions: list[Mention]) -> list[Entity]:
        """What the mentions of all of a document's chunks name, each thing once."""
        ...

    async def find_relations(
        self, document: DocumentRef, entities: list[Entity], mentions: list[Mention]
    ) -> list[Relation]:
        """How a document's entities relate; every end of a relation is one of the entities."""
        ...
