"""Unions whose members look alike in JSON: each value is written with the name of its class.

`1 | "one"` is told apart by JSON itself. Two models with the same fields, a date and a text, a set and a list are
not: read again, they would silently become another member of the union. So a union that has such members is
written as `[class name, value]`. What an earlier version of the code wrote without a name (the annotation had one
member only, say) is read as the union reads it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import NoneType
from typing import Any, Final, cast
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import core_schema

from durable_batches.codec.parts import choices_of, parts_by_ref
from durable_batches.codec.shapes import is_sequence

__all__ = ["class_of", "classes_by_ref", "with_members_named", "without_names"]

_CLASSES: Final[Mapping[str, type[Any]]] = {
    "bool": bool,
    "bytes": bytes,
    "complex": complex,
    "counter": Counter,
    "date": date,
    "datetime": datetime,
    "decimal": Decimal,
    "defaultdict": defaultdict,
    "deque": deque,
    "dict": dict,
    "float": float,
    "frozenset": frozenset,
    "int": int,
    "list": list,
    "none": NoneType,
    "ordered-dict": OrderedDict,
    "set": set,
    "str": str,
    "time": time,
    "timedelta": timedelta,
    "tuple": tuple,
    "typed-dict": dict,
    "uuid": UUID,
}

_OTHER: Final = ""
_ANY: Final = "?"
"""The name of a member whose class is unknown (`Any`), whose values may look like those of any other."""


def with_members_named(union: dict[str, Any], classes: Mapping[str, type[Any]]) -> dict[str, Any]:
    """Change the schema of a union whose members could be mistaken for each other.

    `classes` are those of the schema's definitions, by reference.
    """
    choices = choices_of(union)
    if _is_part_of_a_type(union, choices):
        return union
    members: dict[type[Any], list[Any]] = {}
    unknown: list[Any] = []
    for choice in choices:
        cls = class_of(choice, classes)
        if cls is None:
            unknown.append(choice)
        else:
            members.setdefault(cls, []).append(choice)
    if not _look_alike(members, unknown=bool(unknown)):
        return union
    names = _names(members)
    named: dict[Any, Any] = {names[cls]: _with_name(alternatives) for cls, alternatives in members.items()}
    if unknown:
        named[_ANY] = _with_name(unknown)
    name_in = _name_in(frozenset(named))
    named[_OTHER] = union
    return {
        "type": "json-or-python",
        "json_schema": core_schema.tagged_union_schema(named, name_in),
        "python_schema": union,
        "serialization": core_schema.wrap_serializer_function_ser_schema(
            _name_giver(names, _ANY if unknown else None), schema=cast(core_schema.CoreSchema, union)
        ),
    }


def without_names(schema: dict[str, Any]) -> dict[str, Any]:
    """Undo `with_members_named`; return any other schema unchanged."""
    named = schema.get("type") == "json-or-python" and schema["json_schema"].get("type") == "tagged-union"
    union: dict[str, Any] = schema["python_schema"] if named else schema
    return union


def classes_by_ref(schema: Any) -> dict[str, type[Any]]:
    """List the classes of a schema's definitions, by reference."""
    classes = {ref: class_of(part, {}) for ref, part in parts_by_ref(schema).items()}
    return {ref: cls for ref, cls in classes.items() if cls is not None}


def _is_part_of_a_type(union: dict[str, Any], choices: list[Any]) -> bool:
    """Whether it is how a single type is validated (a path: itself, or a text), and no union of the user's."""
    return "custom_error_type" in union or any(
        choice.get("type") == "is-instance"
        or (choice.get("type") == "json-or-python" and choice["python_schema"].get("type") == "is-instance")
        for choice in choices
    )


def _look_alike(members: Mapping[type[Any], Any], unknown: bool) -> bool:
    kinds = [_json_kind(cls) for cls in members]
    if unknown:
        kinds.append(None)
    return len(kinds) > 1 and (None in kinds or len(set(kinds)) < len(kinds))


def _json_kind(cls: type[Any]) -> str | None:
    """Return the kind of JSON value of a schema; None: it depends on the value."""
    if cls in (bool, int, float, NoneType):
        return cls.__name__
    if cls in (list, tuple, set, frozenset, deque):
        return "array"
    if issubclass(cls, BaseModel) and cls.__pydantic_root_model__:
        return None
    if issubclass(cls, dict | BaseModel) or is_dataclass(cls):
        return "object"
    return "string" if cls in _CLASSES.values() else None


def class_of(schema: Any, classes: Mapping[str, type[Any]]) -> type[Any] | None:
    """Return the class of a schema's values; None if it is unknown."""
    match schema.get("type"):
        case "model" | "dataclass" | "enum" | "is-instance" | "named-tuple" if isinstance(schema["cls"], type):
            cls: type[Any] = schema["cls"]
            return cls
        case "definition-ref":
            return classes.get(schema["schema_ref"])
        case "lax-or-strict":
            return class_of(schema["strict_schema"], classes)
        case "json-or-python":
            return class_of(schema["python_schema"], classes)
        case "function-after" | "function-before" | "function-wrap" | "default" | "custom-error":
            # An address (AnyUrl) serializes itself; what it wraps is one of pydantic's core.
            own: object = getattr(schema.get("serialization", {}).get("function"), "__self__", None)
            return own if isinstance(own, type) else class_of(schema["schema"], classes)
        case "literal":
            kinds: set[type[Any]] = {type(value) for value in schema["expected"]}
            return kinds.pop() if len(kinds) == 1 else None
        case kind:
            return _CLASSES.get(kind)


def _names(members: Mapping[type[Any], Any]) -> dict[type[Any], str]:
    """Return the classes' names, qualified if two are the same."""
    counts = Counter(cls.__name__ for cls in members)
    return {
        cls: cls.__name__ if counts[cls.__name__] == 1 else f"{cls.__module__}.{cls.__qualname__}" for cls in members
    }


def _with_name(alternatives: list[Any]) -> Any:
    """Make the schema of a pair: the name, and a value of one of these."""
    member = alternatives[0] if len(alternatives) == 1 else core_schema.union_schema(alternatives)
    pair = core_schema.tuple_schema([core_schema.str_schema(), member], strict=False)
    return core_schema.no_info_after_validator_function(_second, pair)


def _name_giver(names: Mapping[type[Any], str], otherwise: str | None) -> Callable[[Any, Callable[[Any], Any]], Any]:
    def serialized(value: Any, handler: Callable[[Any], Any]) -> Any:
        written = handler(value)
        name = next((names[cls] for cls in type(value).__mro__ if cls in names), otherwise)
        return written if name is None else [name, written]

    return serialized


def _name_in(names: frozenset[str]) -> Callable[[Any], str]:
    def name_in(data: Any) -> str:
        if is_sequence(data) and len(data) == 2 and isinstance(data[0], str) and data[0] in names:
            return data[0]
        return _OTHER

    return name_in


def _second(pair: tuple[str, Any]) -> Any:
    return pair[1]
