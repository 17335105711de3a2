"""Entity resolution across documents: which records are the same, with a score and a reason for each link."""

from __future__ import annotations

from durable_batches.extraction.resolution.fields import (
    Comparison,
    DateField,
    EmailField,
    EmbeddingField,
    ExactField,
    IdentifierField,
    NameField,
    NumberField,
    SetField,
    TextField,
)
from durable_batches.extraction.resolution.incremental import IncrementalClusterer, MemberGroup
from durable_batches.extraction.resolution.links import Cluster, Decision, FieldWeight, LinkStatus, SameAsLink
from durable_batches.extraction.resolution.same_as import SameAsLinker
from durable_batches.extraction.resolution.service import EntityResolution, EntityResolutionService, ResolutionPage

__all__ = [
    "Cluster",
    "Comparison",
    "DateField",
    "Decision",
    "EmailField",
    "EmbeddingField",
    "EntityResolution",
    "EntityResolutionService",
    "ExactField",
    "FieldWeight",
    "IdentifierField",
    "IncrementalClusterer",
    "LinkStatus",
    "MemberGroup",
    "NameField",
    "NumberField",
    "ResolutionPage",
    "SameAsLink",
    "SameAsLinker",
    "SetField",
    "TextField",
]
