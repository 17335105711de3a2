"""The user's record model: a pydantic model whose fields say how they are compared.

    class Person(BaseModel):
        id: str
        given: Annotated[str | None, NameField()] = None
        born: Annotated[date | None, DateField()] = None

A value that is missing (None, an empty text, an empty collection) is no evidence: neither for nor against.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from pydantic import BaseModel

from durable_batches import ConfigurationError
from durable_batches.options import check_flag, check_integer, check_number, check_subclass

__all__ = [
    "Comparison",
    "DateField",
    "EmailField",
    "EmbeddingField",
    "ExactField",
    "IdentifierField",
    "NameField",
    "NumberField",
    "SetField",
    "TextField",
    "fields_of",
]

_RECORD_ID: Final = "id"


@dataclass(frozen=True, kw_only=True)
class _Field:
    """A comparison of one field.

    Attributes:
        block: Whether equal or similar values make two records candidates for a comparison.
    """

    block: bool = True

    def __post_init__(self) -> None:
        check_flag(f"block of {type(self).__name__}", self.block)


@dataclass(frozen=True, kw_only=True)
class NameField(_Field):
    """Compare names of people, places and things: equal, a typing error, similar, or an initial of the other."""


@dataclass(frozen=True, kw_only=True)
class TextField(_Field):
    """Compare texts of several words by the words that they share. The first 1,000 characters count."""


@dataclass(frozen=True, kw_only=True)
class ExactField(_Field):
    """Compare values of a list or a scheme, such as a postcode or a category: equal, or one typing error."""


@dataclass(frozen=True, kw_only=True)
class IdentifierField(_Field):
    """Compare identifiers that machines make, such as a domain or an ORCID: equal, or different."""


@dataclass(frozen=True, kw_only=True)
class EmailField(_Field):
    """Compare e-mail addresses: equal, or one typing error in a local part of the same domain."""


@dataclass(frozen=True, kw_only=True)
class DateField(_Field):
    """Compare dates (or texts of one form that begin with the year): equal, a typing error, or the same year."""


@dataclass(frozen=True, kw_only=True)
class NumberField(_Field):
    """Compare numbers: equal, near, or close.

    Attributes:
        near: The difference up to which two numbers are near.
        close: The difference up to which two numbers are close; no less than `near`.
        relative: Whether both are shares of the larger number, in place of absolute differences.
        block: Whether equal numbers make two records candidates for a comparison.
    """

    near: float = 0.0
    close: float = 0.0
    relative: bool = False
    block: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("near", self.near)
        check_number("close", self.close)
        check_flag("relative", self.relative)
        if not 0 <= self.near <= self.close < float("inf"):
            raise ConfigurationError("near must be 0 or more, and close no less than near")


@dataclass(frozen=True, kw_only=True)
class SetField(_Field):
    """Compare collections of texts by the members that they share: two or more, or one. 200 members count."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingField(_Field):
    """Compare vectors by their cosine.

    Attributes:
        dimensions: The length of each vector.
        same: The cosine from which two vectors count as the same.
        similar: The cosine from which they are similar; no more than `same`.
        block: Whether vectors of about one direction make two records candidates for a comparison.
    """

    dimensions: int
    same: float = 0.95
    similar: float = 0.8
    block: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("dimensions", self.dimensions)
        check_number("same", self.same)
        check_number("similar", self.similar)
        if self.dimensions < 1:
            raise ConfigurationError("dimensions must be 1 or more")
        if not -1 < self.similar <= self.same <= 1:
            raise ConfigurationError("similar must be above -1, and same no less than similar and no more than 1")


Comparison: TypeAlias = (
    NameField
    | TextField
    | ExactField
    | IdentifierField
    | EmailField
    | DateField
    | NumberField
    | SetField
    | EmbeddingField
)
"""How the values of a field are compared."""


def fields_of(model: type[BaseModel]) -> Mapping[str, Comparison]:
    """Find the comparisons of a record model, by the names of its fields, in their order.

    Raises:
        ConfigurationError: It is no pydantic model, has no `id: str`, compares nothing, or compares a field twice.
    """
    check_subclass("a record model", model, BaseModel)
    name = model.__name__
    identity = model.model_fields.get(_RECORD_ID)
    if identity is None or identity.annotation is not str:
        raise ConfigurationError(f"{name} must have a field `id: str`, which tells its records apart")
    found: dict[str, Comparison] = {}
    for field, info in model.model_fields.items():
        comparisons = [entry for entry in info.metadata if isinstance(entry, Comparison)]
        if not comparisons:
            continue
        if len(comparisons) > 1:
            raise ConfigurationError(f"field {field!r} of {name} must have one comparison, not {len(comparisons)}")
        if field == _RECORD_ID:
            raise ConfigurationError(f"the id of {name} tells records apart, and is not compared")
        found[field] = comparisons[0]
    if not found:
        raise ConfigurationError(
            f"{name} compares nothing: give a field a comparison, as in "
            f"`surname: Annotated[str | None, NameField()] = None`"
        )
    return found
