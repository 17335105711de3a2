"""What resolution says: links with their reasons, clusters, and what people have decided."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, model_validator

__all__ = ["Cluster", "Decision", "FieldWeight", "LinkStatus", "SameAsLink"]

LinkStatus: TypeAlias = Literal["joined", "decided", "contradicted", "ambiguous"]
"""What became of a link. `joined`: both records are in one cluster. `decided`: a decision keeps them apart.
`contradicted`: the pairs between the two groups speak against it. `ambiguous`: one of the two groups fits another group
as well, which cannot be the same."""


class _Model(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")


class FieldWeight(_Model):
    """What one field says of a pair.

    Attributes:
        field: The field of the record model.
        level: How the two values agree, such as "same", "typo" or "different".
        weight: The evidence in bits: above 0 for a match, below 0 against it.
    """

    field: str
    level: str
    weight: float


class SameAsLink(_Model):
    """Two records that are probably the same, and why.

    Attributes:
        a: The id of the one record, which is less than the other one's.
        b: The id of the other record.
        probability: The probability that they are the same.
        weight: The same in bits, with the prior: 0 is one half.
        reasons: What each field says, strongest first; fields with a missing value are left out.
        status: What became of the link.
    """

    a: str
    b: str
    probability: float
    weight: float
    reasons: tuple[FieldWeight, ...] = ()
    status: LinkStatus = "joined"

    @property
    def because(self) -> str:
        """The reasons in one line, such as "surname same (+9.1), city different (-2.0)"."""
        return ", ".join(f"{reason.field} {reason.level} ({reason.weight:+.1f})" for reason in self.reasons)


class Cluster(_Model):
    """Records that are the same.

    Attributes:
        id: The cluster's id, which it keeps when later batches change it.
        members: The ids of its records, sorted; two or more.
        canonical: The member that stands for all.
        links: The links among its members that joined them.
    """

    id: str
    members: tuple[str, ...]
    canonical: str
    links: tuple[SameAsLink, ...] = ()


class Decision(_Model):
    """That two records are the same, or are not, whatever is computed. Kept by the application; every run reads all.

    Attributes:
        a: The id of the one record; the two may be given in any order.
        b: The id of the other record.
        verdict: `apart` keeps them in different clusters, `together` joins them unless others keep them apart.
        by: Who decided.
        at: When; an aware time. Of two decisions on one pair the later one holds.
    """

    a: str
    b: str
    verdict: Literal["apart", "together"]
    by: str | None = None
    at: datetime | None = None

    @model_validator(mode="after")
    def _of_two_records(self) -> Self:
        if self.a == self.b:
            raise ValueError("a decision is on two records")
        if self.at is not None and self.at.tzinfo is None:
            raise ValueError("the time of a decision must have a zone")
        return self

    @property
    def pair(self) -> tuple[str, str]:
        """The two ids, the lesser one first."""
        return (self.a, self.b) if self.a < self.b else (self.b, self.a)
