"""The states of a batch: frozen dataclasses, each with a literal tag.

A user's own stages subclass `Stage` with a tag of their own and nothing else; the subclass becomes a frozen
dataclass by inheriting, and type checkers see it as one.
"""

from __future__ import annotations

from dataclasses import Field, dataclass
from typing import Any, ClassVar, Final, Literal, NewType, TypeAlias

from typing_extensions import TypeAliasType, TypeVar, dataclass_transform

from durable_batches.lifecycle.primitives import Value

__all__ = [
    "ENDED_TAGS",
    "RESERVED_TAGS",
    "Assembling",
    "BatchId",
    "BatchState",
    "Cancelled",
    "Chunking",
    "Completed",
    "Counts",
    "Ended",
    "ExtractingEntities",
    "ExtractingMentions",
    "ExtractingRelations",
    "ExtractionStage",
    "Failed",
    "Pending",
    "Resolving",
    "Stage",
]

BatchId = NewType("BatchId", str)
"""The id of a batch, as `submit` returns it. Every method that takes one takes any `str`."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Counts(Value):
    """The documents of a batch by their status; the parts sum to `total`."""

    total: int = 0
    pending: int = 0
    running: int = 0
    waiting: int = 0
    """Suspended: a retry's delay, a timer or a signal. They hold no slot."""
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def unfinished(self) -> int:
        """Documents that have not finished."""
        return self.pending + self.running + self.waiting

    @property
    def ended(self) -> int:
        """Documents that have finished, with any outcome."""
        return self.succeeded + self.failed + self.cancelled


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Pending(Value):
    """All documents are stored, and none has started."""

    total: int
    tag: Literal["pending"] = "pending"


@dataclass_transform(frozen_default=True, kw_only_default=True)
class _Tagged(Value):
    """Makes checkers treat each subclass of `Stage` as the frozen dataclass that it is."""

    # Without it they would not let a stage be given to `dataclasses.asdict` and its kin.
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Stage(_Tagged):
    """Base of every stage state; a subclass adds a `tag: Literal[...]` and is a frozen dataclass by inheriting.

    The batch is in the earliest stage that any of its unfinished documents is in; `done` of `total` documents
    are past it.
    """

    done: int
    total: int
    tag: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(frozen=True, kw_only=True, repr=False, eq=False)(cls)


class Chunking(Stage):
    """Documents are being split."""

    tag: Literal["chunking"] = "chunking"


class ExtractingMentions(Stage):
    """Mentions are being found in the chunks."""

    tag: Literal["extracting_mentions"] = "extracting_mentions"


class ExtractingEntities(Stage):
    """Mentions are being grouped into entities."""

    tag: Literal["extracting_entities"] = "extracting_entities"


class ExtractingRelations(Stage):
    """Relations between the entities are being found."""

    tag: Literal["extracting_relations"] = "extracting_relations"


class Assembling(Stage):
    """Each document's result is being assembled."""

    tag: Literal["assembling"] = "assembling"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Resolving(Value):
    """Every document has finished; the resolver runs on all of the results."""

    counts: Counts
    tag: Literal["resolving"] = "resolving"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Completed(Value):
    """Every document has finished, and the resolver, if there is one, has succeeded."""

    counts: Counts
    tag: Literal["completed"] = "completed"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Failed(Value):
    """The batch ended early; `error` says why."""

    counts: Counts
    error: str
    tag: Literal["failed"] = "failed"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Cancelled(Value):
    """The batch was cancelled; `reason` says why."""

    counts: Counts
    reason: str
    tag: Literal["cancelled"] = "cancelled"


S = TypeVar("S", bound=Stage, default=Stage)

BatchState = TypeAliasType("BatchState", Pending | S | Resolving | Completed | Failed | Cancelled, type_params=(S,))
"""The state of a batch whose machine has the stages `S`: a closed union, to `match` on."""

Ended: TypeAlias = Completed | Failed | Cancelled

ExtractionStage: TypeAlias = Chunking | ExtractingMentions | ExtractingEntities | ExtractingRelations | Assembling
"""The stages of `EXTRACTION`."""

ENDED_TAGS: Final = frozenset({"completed", "failed", "cancelled"})
RESERVED_TAGS: Final = ENDED_TAGS | {"pending", "resolving"}
