"""Refuse values that cannot be stored exactly, with the path and the reason, and without showing the value.

JSON has no form for NaN and the infinities, for a lone surrogate, for what is nested without an end, and for objects
that pydantic does not know. Some of these the serializer refuses itself, and then this finds out where they are;
others it writes in another form, and then this finds them by what their form looks like. An iterator could be
written, but is used up by it. A secret is masked when it is written, so its type is refused at once.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any, Final

from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from durable_batches.codec.parts import parts_in
from durable_batches.codec.shapes import is_data, is_dict, is_iterator, parts_of
from durable_batches.errors import ActivityDefinitionError, PayloadError

__all__ = [
    "first_problem",
    "has_secret",
    "is_suspicious",
    "may_be_unstorable",
    "refusal_of",
    "refuse_iterator",
    "refuse_lost_fields",
    "refuse_secrets",
    "refuse_unstorable",
]

_MAX_DEPTH: Final = 200
"""Levels of nesting that a payload may have; far beyond any document, far below any parser's stack."""

_REPLACEMENT: Final = "\ufffd".encode()
"""What pydantic makes of a lone surrogate in a dict's key."""

_LONG: Final = 512
"""Bytes from which on reading a payload takes less time than looking for words in it."""

_USED_UP: Final = "an iterator is used up by reading it, and the activity would find it empty; pass a list"

_STORABLE: Final = frozenset(
    "int str bool none list nullable literal default definitions definition-ref model model-fields model-field "
    "dataclass dataclass-args dataclass-field typed-dict-field".split()
)
"""The core schemas whose values, and whose parts' names, JSON can always hold."""


# ---- types -------------------------------------------------------------------------------------------------------


def refuse_secrets(schema: Any, what: str) -> None:
    """Refuse a schema that has a secret in it.

    Raises:
        ActivityDefinitionError: It has.
    """
    if has_secret(schema):
        raise ActivityDefinitionError(
            f"{what} cannot be recorded: a secret (SecretStr and its kin) is masked when it is written; "
            "leave it out, and fetch it where it is used"
        )


def has_secret(schema: Any) -> bool:
    """Tell whether values of this schema may have a secret in them."""
    return any(map(_is_secret, parts_in(schema)))


def _is_secret(part: dict[str, Any]) -> bool:
    cls: object = part.get("cls")
    if part["type"] == "is-instance" and isinstance(cls, type):
        return issubclass(cls, SecretStr | SecretBytes)
    # A `Secret[...]` shows its class nowhere; only pydantic's own function, which masks it, tells.
    function = part.get("serialization", {}).get("function")
    name: str = getattr(function, "__name__", "")
    return name.startswith("_serialize_secret") and getattr(function, "__module__", "") == "pydantic.types"


def refuse_lost_fields(schema: Any, what: str) -> None:
    """Refuse a schema with a field that is never written, and that no value can be read without.

    Raises:
        ActivityDefinitionError: It has one.
    """
    for part in parts_in(schema):
        inner: Any = part.get("schema")
        if part["type"] == "model" and is_dict(inner) and inner["type"] == "model-fields":
            for name, field in inner["fields"].items():
                if field.get("serialization_exclude") and field["schema"]["type"] != "default":
                    raise ActivityDefinitionError(
                        f"{what} cannot be recorded: field {name!r} of {part['cls'].__name__} is required, and never "
                        "written (exclude=True); give it a default, or write it"
                    )


def may_be_unstorable(schema: Any) -> bool:
    """Tell whether values may hold NaN, an infinity, or a key that is no Unicode: floats, dicts, anything."""
    return any(map(_holds_unstorable, parts_in(schema)))


def _holds_unstorable(part: dict[str, Any]) -> bool:
    config: dict[str, Any] = part.get("config") or {}
    return (
        part["type"] not in _STORABLE
        or (part["type"] == "literal" and any(isinstance(value, float) for value in part["expected"]))
        or "serialization" in part
        or part.get("extra_behavior") == "allow"
        or config.get("extra_fields_behavior") == "allow"
    )


# ---- payloads ----------------------------------------------------------------------------------------------------


def is_suspicious(payload: bytes) -> bool:
    """Tell whether it may hold what JSON has no form for. A search for one byte is fast, and mostly enough."""
    if b"\xef" in payload and _REPLACEMENT in payload:
        return True
    if len(payload) < _LONG:
        return (b"N" in payload and b"NaN" in payload) or (b"I" in payload and b"Infinity" in payload)
    if b"N" not in payload and b"I" not in payload:
        return False
    try:
        from_json(payload, allow_inf_nan=False, cache_strings="none")
    except ValueError:
        return True
    return False


# ---- values ------------------------------------------------------------------------------------------------------


def refusal_of(what: str, value: Any, error: Exception, *, iterators: bool = True) -> PayloadError:
    """Say what the serializer refused a value for, and where that is.

    Args:
        what: What the value is.
        value: It.
        error: What the serializer raised.
        iterators: Whether iterators are written, as lists.
    """
    path, reason = _find_unstorable(value, iterators=iterators) or ("$", _without_values(error))
    return PayloadError(what, path, reason)


def refuse_unstorable(what: str, value: Any) -> None:
    """Refuse a value that its payload holds in another form; a text may only look so."""
    culprit = _find_unstorable(value)
    if culprit is not None:
        raise PayloadError(what, *culprit)


def _find_unstorable(value: Any, *, iterators: bool = True) -> tuple[str, str] | None:
    """Find the path to the first part of a value that JSON cannot hold, and the reason.

    `iterators` are read and written as lists, or are none of what can be held.
    """
    open_paths: list[tuple[str, Any, int]] = [("$", value, 0)]
    while open_paths:
        path, item, depth = open_paths.pop()
        if depth > _MAX_DEPTH:
            return path, f"nested deeper than {_MAX_DEPTH} levels (or within itself)"
        if isinstance(item, float | Decimal) and not math.isfinite(item):
            return path, f"{item} is no JSON number"
        if is_iterator(item) and not iterators:
            return path, _USED_UP
        if isinstance(item, str) and not _is_encodable(item):
            return path, "the text has a lone surrogate, which UTF-8 cannot encode"
        if is_dict(item):
            bad = next((key for key in item if isinstance(key, str) and not _is_encodable(key)), None)
            if bad is not None:
                return path, "a key has a lone surrogate, which UTF-8 cannot encode"
        open_paths += [(f"{path}{step}", part, depth + 1) for step, part in reversed(list(parts_of(item)))]
        if _is_foreign(item):
            return path, f"values of type {type(item).__name__!r} cannot be encoded"
    return None


def refuse_iterator(value: Any) -> None:
    """Refuse an iterator: reading it would use it up, and the activity would find it empty."""
    if is_iterator(value):
        raise PydanticSerializationError(_USED_UP)


def _is_foreign(item: Any) -> bool:
    """Tell whether not even pydantic's serializer for anything knows this single value."""
    if isinstance(item, BaseModel | dict | list | tuple | set | frozenset | str | float | int | bool | None):
        return False
    if is_data(item):
        return False
    try:
        to_json(item, bytes_mode="base64")
    except (PydanticSerializationError, ValueError, TypeError, RecursionError):
        return True
    return False


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- errors ------------------------------------------------------------------------------------------------------


def first_problem(error: ValidationError) -> tuple[str, str]:
    """Find the path to the first part that is not of its type, and the reason."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    return path, first["msg"]


def _without_values(error: Exception) -> str:
    """Cut the error's message off where it would show a value."""
    lines = [line.strip() for line in str(error).splitlines()]
    reason = next((line for line in lines if "Expected" in line), lines[0] if lines else type(error).__name__)
    return reason.partition(" [input_value=")[0].partition("- serialized value")[0][:200]
