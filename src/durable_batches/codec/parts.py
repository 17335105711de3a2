"""Walk through core schemas, whose form pydantic does not document."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from durable_batches.codec.shapes import is_dict, is_sequence

__all__ = ["OPAQUE", "choices_of", "is_part", "parts_by_ref", "parts_in", "types_in"]

OPAQUE: Final = ("metadata", "cls", "default")
"""Keys of a part whose values are no schemas."""


def is_part(schema: dict[Any, Any]) -> bool:
    """Tell a part of a schema from a mapping of names to parts, in which `type` may be the name of a field."""
    return isinstance(schema.get("type"), str)


def parts_in(schema: Any) -> Iterable[dict[str, Any]]:
    """List all parts of a schema."""
    waiting: list[Any] = [schema]
    while waiting:
        part = waiting.pop()
        if is_sequence(part):
            waiting += part
        elif is_dict(part) and is_part(part):
            yield part
            waiting += [value for key, value in part.items() if key not in OPAQUE]
        elif is_dict(part):
            waiting += part.values()


def parts_by_ref(schema: Any) -> dict[str, dict[str, Any]]:
    """List the parts of a schema that other parts refer to."""
    return {part["ref"]: part for part in parts_in(schema) if isinstance(part.get("ref"), str)}


def types_in(schema: Any) -> set[str]:
    """List the types of all parts of a schema."""
    return {part["type"] for part in parts_in(schema)}


def choices_of(union: dict[str, Any]) -> list[Any]:
    """List the schemas of the members of a union, tagged or not."""
    if union["type"] == "tagged-union":
        # One that is no schema is another name of one that is.
        return [choice for choice in union["choices"].values() if is_dict(choice)]
    return [choice[0] if is_sequence(choice) else choice for choice in union["choices"]]
