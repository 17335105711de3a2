"""An extractor based on rules: no model, no network, deterministic."""

from __future__ import annotations

from durable_batches.extraction.grouping import group_mentions, relate
from durable_batches.extraction.metadata_rules import metadata_mentions
from durable_batches.extraction.model import Chunk, DocumentRef, Entity, Mention, Relation
from durable_batches.extraction.names import Vocabulary
from durable_batches.extraction.text_rules import text_mentions
from durable_batches.options import check_instance

__all__ = ["RuleExtractor"]


class RuleExtractor:
    """Read package metadata exactly, and prose with caution.

    Args:
        vocabulary: The packages that it can recognise in running text; by default those that are installed
        here and
            those that they require.
    """

    def __init__(self, vocabulary: Vocabulary | None = None) -> None:
        check_instance("vocabulary", vocabulary, Vocabulary, optional=True)
        self._vocabulary = Vocabulary.installed() if vocabulary is None else vocabulary

    async def find_mentions(self, chunk: Chunk) -> list[Mention]:
        """Find the mentions in a chunk, in order."""
        if chunk.section == "metadata":
            return list(metadata_mentions(chunk, self._vocabulary.spelling))
        return list(text_mentions(chunk, self._vocabulary))

    async def make_entities(self, document: DocumentRef, mentions: list[Mention]) -> list[Entity]:
        """List the entities that the mentions name, each once; the first is the document's subject."""
        return group_mentions(document, mentions)

    async def find_relations(
        self, document: DocumentRef, entities: list[Entity], mentions: list[Mention]
    ) -> list[Relation]:
        """List the relations that the mentions' roles state, each once, with its evidence."""
        return relate(document, entities, mentions)
