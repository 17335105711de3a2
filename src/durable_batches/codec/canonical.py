"""Encode inputs canonically, for the digests in checkpoint keys.

Fields equal to their defaults are left out, so that adding an optional field changes no digest; sets and dict keys
are sorted; members of a union are told apart by their class; what the annotation does not have, and the activity sees
all the same, is appended. Written only, never read. The keys of recorded
activities depend on every byte of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache, partial
from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, core_schema, to_json

from durable_batches.codec.exactness import certain_of
from durable_batches.codec.hidden import Hidden, may_hide, may_hide_more
from durable_batches.codec.parts import types_in
from durable_batches.codec.refusals import (
    has_secret,
    is_suspicious,
    refusal_of,
    refuse_iterator,
    refuse_unstorable,
)
from durable_batches.codec.schemas import (
    configured,
    passes_over_fields,
    rewritten,
    scalar_of,
    schema_of,
    serializer_of,
)
from durable_batches.codec.shapes import is_data, is_deque, is_dict, is_sequence, is_set, parts_of
from durable_batches.errors import ActivityDefinitionError

__all__ = ["Digester"]

_LONGEST_INT: Final = 1 << 64
_SHORTEST_INT: Final = -_LONGEST_INT
"""Between these, Python writes an int as the serializer does; there is a number of digits that it refuses to write."""


class Digester:
    """Encode the values of one parameter canonically, for a digest. There is no decoding.

    Args:
        annotation: The parameter's.
        what: What the values are, for messages.
        as_before: Encode them as up to 0.2.0, which took some fields as they are, and did not see all that a value
            hides (`had_other_form`).

    Attributes:
        had_other_form: Whether some values may have another form with `as_before`.
        encode: Encodes a value: what is written of it, and what is hidden in it. Raises PayloadError.
        hidden: What values may hide.
        loose: Whether values of several types, or with several secrets, may be written the same way.
    """

    __slots__ = ("_certain", "_scalar", "_serializer", "_what", "encode", "had_other_form", "hidden", "loose")

    def __init__(self, annotation: Any, what: str, *, as_before: bool = False) -> None:
        own = schema_of(annotation, what)
        self.had_other_form: bool = passes_over_fields(own) or may_hide_more(own)
        plain = configured(own, every_field=not as_before)
        schema = _canonical(plain, every_field=not as_before)
        self._serializer = serializer_of(schema)
        self._what = what
        self.hidden: Hidden = _hidden(plain, what, as_before=as_before)
        self.loose: bool = "any" in types_in(plain) or has_secret(plain)
        self._certain = certain_of(plain, as_before=as_before)
        # Once a call: a type that can hide nothing is not asked.
        hides = self._certain is not None and may_hide(plain)
        self.encode: Callable[[Any], bytes] = self._whole if hides else self.written
        self._scalar = scalar_of(schema)

    def _whole(self, value: Any) -> bytes:
        payload = self.written(value)
        assert self._certain is not None
        if self._certain(value):
            return payload
        try:
            hidden = self.hidden.of(value)
        except RecursionError as error:
            raise refusal_of(self._what, value, error, iterators=False) from None
        # No JSON has this byte: inputs that hide nothing have another form, and keep their keys.
        return payload + b"\0" + hidden if hidden else payload

    def encode_as_of(self, value: Any, fields: Collection[str]) -> bytes:
        """Encode a value for which some fields are not left out where they have their default: it has changed since.

        Raises:
            PayloadError: The value is not encodable.
        """
        if not fields:
            return self.encode(value)
        hidden = self.hidden.with_changed(frozenset(fields)).of(value)
        return self.written(value) + (b"\0" + hidden if hidden else b"")

    def written(self, value: Any) -> bytes:
        """Encode what the serializer writes of a value.

        Raises:
            PayloadError: The value is not encodable.
        """
        scalar = type(value) is self._scalar
        try:
            if scalar and self._scalar is int and _SHORTEST_INT < value < _LONGEST_INT:
                return b"%d" % value
            payload = self._serializer.to_json(
                value, by_alias=False, round_trip=True, exclude_defaults=True, warnings=False
            )
        except (PydanticSerializationError, ValueError, RecursionError, TypeError) as error:
            raise refusal_of(self._what, value, error, iterators=False) from None
        # Nothing has asked whether the value is of its type: only these are known to hold nothing that JSON has no
        # form for.
        if not scalar and is_suspicious(payload):
            refuse_unstorable(self._what, value)
        return payload


def _canonical(schema: Any, *, every_field: bool) -> Any:
    """Give a schema serializers that produce the same form for equal values."""

    def change(part: dict[str, Any]) -> dict[str, Any]:
        match part["type"]:
            case "set" | "frozenset":
                return _serialized_by(part, _sorted_set)
            case "dict" | "counter" | "typed-dict":
                return _serialized_by(part, _sorted_dict)
            case "named-tuple":
                return _serialized_by(part, _named_without_defaults)
            case "model" if part.get("config", {}).get("extra_fields_behavior") == "allow":
                return _serialized_by(_with_extras(part), _sorted_dict)
            case "any":
                return _serialized_by(part, _sorted_anything)
            case "generator":
                return _serialized_by(part, _listed)
            case "union" | "tagged-union":
                return _serialized_by(part, _tagged_member)
            case "default" if part["schema"].get("type") == "literal" and len(part["schema"]["expected"]) == 1:
                # A tag is what tells two classes apart: it stays, though it equals its default.
                inner: dict[str, Any] = part["schema"]
                return inner
            case _:
                return part

    return rewritten(schema, change, every_field=every_field)


def _serialized_by(part: dict[str, Any], function: Callable[[Any, Any], Any]) -> dict[str, Any]:
    own: dict[str, Any] | None = part.get("serialization")
    if own is None:
        return {**part, "serialization": core_schema.wrap_serializer_function_ser_schema(function)}
    if "function" not in own:
        return part
    serialize: Callable[..., Any] = own["function"]

    def ordered(*args: Any) -> Any:
        return _plain(serialize(*args))

    return {**part, "serialization": {**own, "function": ordered}}


def _with_extras(part: dict[str, Any]) -> dict[str, Any]:
    """Serialize a model's undeclared fields like values of any type."""
    if part["type"] == "model-fields":
        return {**part, "extras_schema": part.get("extras_schema", _ANYTHING)}
    return {**part, "schema": _with_extras(part["schema"])} if "schema" in part else part


def _sorted_set(value: Any, handler: Callable[[Any], Any]) -> Any:
    return sorted((item for item in handler(value)), key=_canonical_text)


def _sorted_dict(value: Any, handler: Callable[[Any], Any]) -> Any:
    plain: Mapping[Any, Any] = handler(value)
    return {key: plain[key] for key in sorted(plain, key=str)}


def _listed(value: Any, handler: Callable[[Any], Any]) -> Any:
    refuse_iterator(value)
    return _sorted_set(value, handler) if is_set(value) else list(handler(value))


def _named_without_defaults(value: Any, handler: Callable[[Any], Any]) -> Any:
    defaults: Mapping[str, Any] = value._field_defaults
    written = zip(value._fields, value, handler(value), strict=True)
    return {name: plain for name, item, plain in written if name not in defaults or not _equal(item, defaults[name])}


def _equal(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and bool(one == other))


def _sorted_anything(value: Any, handler: Callable[[Any], Any]) -> Any:
    return json.loads(_canonical_text(handler(_plain(value))))


def _tagged_member(value: Any, handler: Callable[[Any], Any]) -> Any:
    return [type(value).__name__, handler(value)]


def _plain(value: Any) -> Any:
    """Order the unordered parts of a value deterministically."""
    if value is None or isinstance(value, str | int | float):
        return value
    if is_set(value):
        return sorted((_plain(item) for item in value), key=_canonical_text)
    if is_dict(value):
        return {key: _plain(item) for key, item in value.items()}
    if is_sequence(value) or is_deque(value):
        return [_plain(item) for item in value]
    if isinstance(value, BaseModel) or is_data(value):
        digester = _digester_of(type(value))
        if digester is not None:
            return json.loads(digester.written(value))
        # Its class cannot be recorded, because of an annotation; its values perhaps can.
        return {name: _plain(part) for name, part in parts_of(value)}
    refuse_iterator(value)
    return value


def _hidden(schema: Any, what: str, *, as_before: bool) -> Hidden:
    def encoded(value: Any) -> bytes:
        return _of_anything(as_before).encode(value)

    return Hidden(schema, what, partial(_hidden_in, as_before), encoded, as_before=as_before)


@lru_cache(maxsize=2)
def _of_anything(as_before: bool) -> Digester:
    return Digester(Any, "it", as_before=as_before)


@lru_cache(maxsize=1024)
def _hidden_in(as_before: bool, cls: type[Any]) -> Hidden | None:
    what = f"a value of {cls.__name__}"
    try:
        return _hidden(configured(schema_of(cls, what)), what, as_before=as_before)
    except ActivityDefinitionError:
        return None


@lru_cache(maxsize=1024)
def _digester_of(cls: type[Any]) -> Digester | None:
    try:
        # As before, since nothing would tell that values of unknown classes had another form.
        return Digester(cls, f"a value of {cls.__name__}", as_before=True)
    except ActivityDefinitionError:
        return None


def _canonical_text(value: Any) -> str:
    return json.dumps(json.loads(to_json(value, bytes_mode="base64")), sort_keys=True)


_ANYTHING: Final = _serialized_by(dict(core_schema.any_schema()), _sorted_anything)
