"""Core schemas: had from annotations, walked through, set to the library's configuration, and built.

What pydantic does not document is used in this package only: the form of core schemas, and `_use_prebuilt`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from threading import RLock
from typing import Any, Final

from pydantic import PydanticUserError, TypeAdapter
from pydantic.errors import PydanticUndefinedAnnotation
from pydantic_core import SchemaError, SchemaSerializer, SchemaValidator, core_schema

from durable_batches.codec.parts import OPAQUE, is_part, parts_in
from durable_batches.codec.shapes import is_dict, is_sequence
from durable_batches.codec.unions import classes_by_ref, with_members_named, without_names
from durable_batches.errors import ActivityDefinitionError

__all__ = [
    "configured",
    "passes_over_fields",
    "rewritten",
    "scalar_of",
    "schema_of",
    "serializer_of",
    "validator_of",
]

_CONFIG: Final = core_schema.CoreConfig(
    ser_json_bytes="base64",
    val_json_bytes="base64",
    # Written as they are, so that they are found and refused rather than becoming null.
    ser_json_inf_nan="constants",
)

_SCALARS: Final[Mapping[str, type[Any]]] = {"int": int, "str": str, "bool": bool}


def schema_of(annotation: Any, what: str) -> Any:
    """Have pydantic make the core schema of an annotation.

    Raises:
        ActivityDefinitionError: It can make none.
    """
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        if not is_dict(adapter.core_schema):
            # A stand-in: a name in it is not defined. This says which.
            adapter.rebuild(raise_errors=True)
        return adapter.core_schema
    except (PydanticUserError, PydanticUndefinedAnnotation, SchemaError, NameError) as error:
        reason = str(error).partition("\n")[0]
        raise ActivityDefinitionError(f"{what} cannot be recorded: {reason}") from None


def rewritten(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]], *, every_field: bool) -> Any:
    """Copy a core schema, each of its parts changed, the inner ones first.

    Args:
        schema: The schema, or something within one.
        change: Returns what a part becomes.
        every_field: Also within fields that are named as that is called in a part what holds no schema. They were
            passed over up to 0.2.0, and what is stored of them, and the keys of what has them, depend on that.
    """
    if is_dict(schema):
        opaque = OPAQUE if is_part(schema) or not every_field else ()
        part: dict[str, Any] = {
            key: value if key in opaque else rewritten(value, change, every_field=every_field)
            for key, value in schema.items()
        }
        return change(part) if is_part(part) else part
    if is_sequence(schema):
        items = (rewritten(item, change, every_field=every_field) for item in schema)
        return tuple(items) if isinstance(schema, tuple) else list(items)
    return schema


def passes_over_fields(schema: Any) -> bool:
    """Whether `rewritten` does something else with `every_field`."""
    if is_sequence(schema):
        return any(map(passes_over_fields, schema))
    if not is_dict(schema):
        return False
    if is_part(schema):
        return any(passes_over_fields(value) for key, value in schema.items() if key not in OPAQUE)
    return not schema.keys().isdisjoint(OPAQUE) or any(map(passes_over_fields, schema.values()))


def configured(schema: Any, *, every_field: bool = False) -> Any:
    """Set the library's configuration in every model and dataclass, where their own would win over an outer one.

    The members of a union are told apart, so that they come back as what they were. Of fields that `rewritten` passes
    over neither is done where values are stored: bytes and unions in them are stored in another form, which has to be
    read as it was written. Nothing comes back as something else: what does not come back equal is refused.
    """
    classes = classes_by_ref(schema)

    def change(part: dict[str, Any]) -> dict[str, Any]:
        match part["type"]:
            case "model" | "dataclass" | "typed-dict":
                return {**part, "config": {**(part.get("config") or {}), **_CONFIG}}
            case "union":
                return with_members_named(part, classes)
            case "dict" if "keys_schema" in part:
                # A key is a text in JSON, whatever it is.
                return {**part, "keys_schema": without_names(part["keys_schema"])}
            case _:
                return part

    return rewritten(schema, change, every_field=every_field)


def scalar_of(schema: Any) -> type[Any] | None:
    """Find the builtin type, where that is all that the schema says."""
    plain = schema.keys() <= {"type", "metadata"}
    return _SCALARS.get(schema["type"]) if plain else None


# ---- building ----------------------------------------------------------------------------------------------------


def serializer_of(schema: Any) -> SchemaSerializer:
    """Build a schema's serializer."""
    if _CAN_BUILD_ANEW:
        return SchemaSerializer(schema, _CONFIG, _use_prebuilt=False)
    with _without_prebuilt(schema):
        return SchemaSerializer(schema, _CONFIG)


def validator_of(schema: Any) -> SchemaValidator:
    """Build a schema's validator."""
    if _CAN_BUILD_ANEW:
        return SchemaValidator(schema, _CONFIG, _use_prebuilt=False)
    with _without_prebuilt(schema):
        return SchemaValidator(schema, _CONFIG)


def _can_build_anew() -> bool:
    try:
        SchemaSerializer(core_schema.any_schema(), None, _use_prebuilt=False)
    except TypeError:
        return False
    return True


_CAN_BUILD_ANEW: Final = _can_build_anew()
"""Whether pydantic-core can rebuild the parts of a model; it cannot before pydantic 2.13."""

_building: Final = RLock()


@contextmanager
def _without_prebuilt(schema: Any) -> Generator[None]:
    """Make pydantic-core rebuild all parts of a schema.

    Otherwise it would reuse the prebuilt parts of models and dataclasses, whose configuration is not the library's,
    unless the class is marked as incomplete.
    """
    with _building:
        complete = [cls for cls in _classes_in(schema) if vars(cls).get(_COMPLETE) is True]
        for cls in complete:
            type.__setattr__(cls, _COMPLETE, False)
        try:
            yield
        finally:
            for cls in complete:
                type.__setattr__(cls, _COMPLETE, True)


_COMPLETE: Final = "__pydantic_complete__"


def _classes_in(schema: Any) -> set[type[Any]]:
    return {part["cls"] for part in parts_in(schema) if part["type"] in ("model", "dataclass")}
