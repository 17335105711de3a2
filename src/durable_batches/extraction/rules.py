"""An extractor made of rules: no model, no network, the same answer every time."""

from __future__ import annotations

from durable_batches.extraction.grouping import group_mentions, relate
from durable_batches.extraction.metadata_rules import metadata_mentions
from durable_batches.extraction.model import Chunk, DocumentRef, Entity, Mention, Relation
from durable_batches.extraction.names import Vocabulary
from durable_batches.extraction.text_rules import text_mentions

__all__ = ["RuleExtractor"]


class RuleExtractor:
    """Reads package metadata exactly, and running text with caution.

    Args:
        vocabulary: The packages that it can recognise in running text; by default those that are installed
        here and
            those that they require.
    """

    def __init__(self, vocabulary: Vocabulary | None = None) -> None:
        self._vocabulary = Vocabulary.installed() if vocabulary is None else vocabulary

    async def find_mentions(self, chunk: Chunk) -> list[Mention]:
        """The places in one chunk that name something, in order."""
        if chunk.section == "metadata":
            return list(metadata_mentions(chunk, self._vocabulary.spelling))
        return list(text_mentions(chunk, self._vocabulary))

    async def make_entities(self, document: DocumentRef, mentions: list[Mention]) -> list[Entity]:
        """What the mentions name, each thing once; the first is what the document is about."""
        return group_mentions(document, mentions)

    async def find_relations(
        self, document: DocumentRef, entities: list[Entity], mentions: list[Mention]
    ) -> list[Relation]:
        """The relations that the mentions' roles state, each once, with its evidence."""
        return relate(document, entities, mentions)
