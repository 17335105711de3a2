"""What states and events are made of."""

from __future__ import annotations

from dataclasses import Field, dataclass
from typing import Any, ClassVar

from typing_extensions import dataclass_transform

__all__ = ["Value"]


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Value:
    """Each subclass is a frozen dataclass with keyword-only fields, by inheriting, at run time and to type checkers.

    How values are compared, hashed and shown is written here once. `dataclass` would compile that for every class
    anew, and for as many as there are, importing the library would take noticeably longer.
    """

    # Checkers know by it what may be given to `dataclasses.asdict` and its kin.
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(frozen=True, kw_only=True, repr=False, eq=False)(cls)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__qualname__}({shown})"

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))
