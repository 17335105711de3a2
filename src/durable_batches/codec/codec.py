"""Values to bytes and back, driven by annotations; and the digests that checkpoint keys are made of.

The format is JSON, by pydantic. Two things are made stricter than its defaults. `bytes` anywhere inside a value,
also in models with a configuration of their own, are base64, so that they come back exactly; and what JSON would
change silently (NaN, infinities, lone surrogates, values that are not of their annotated type) is refused with
the path to it. Types only: nothing that is read can make the library run code.

A digest is taken of the *canonical* form of an input: fields equal to their defaults left out, so that adding an
optional field changes no digest; sets and dict keys sorted; members of a union told apart by their class.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal
from functools import lru_cache
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation
from pydantic_core import (
    PydanticSerializationError,
    SchemaError,
    SchemaSerializer,
    SchemaValidator,
    core_schema,
    from_json,
    to_json,
)

from durable_batches.codec.unions import (
    classes_by_ref,
    is_deque,
    is_dict,
    is_iterator,
    is_sequence,
    is_set,
    with_members_named,
    without_names,
)
from durable_batches.errors import ActivityDefinitionError, PayloadError, PayloadTooLargeError

__all__ = ["MAX_PAYLOAD_BYTES", "Codec", "Digester", "payload_of"]

T = TypeVar("T")

MAX_PAYLOAD_BYTES: Final = 16 * 1024 * 1024
"""The default limit of one encoded payload."""

_MAX_DEPTH: Final = 200
"""Levels of nesting that a payload may have; far beyond any document, far below any parser's stack."""

_REPLACEMENT: Final = "\ufffd".encode()
"""What pydantic makes of a lone surrogate in a dict's key."""

_LONG: Final = 512

_USED_UP: Final = "an iterator is used up by reading it, and the activity would find it empty; pass a list"

_CONFIG: Final = core_schema.CoreConfig(
    ser_json_bytes="base64",
    val_json_bytes="base64",
    # Written as they are, so that they are found and refused rather than becoming null.
    ser_json_inf_nan="constants",
)


class Codec(Generic[T]):
    """Encodes and decodes values of one annotation.

    Args:
        annotation: The type.
        what: What the values are, for messages ("result of activity 'split'").

    Raises:
        ActivityDefinitionError: Values of this annotation cannot be recorded.
    """

    __slots__ = ("_limit", "_scalar", "_serializer", "_strict", "_validator", "_what")

    def __init__(self, annotation: Any, what: str, *, limit: int = MAX_PAYLOAD_BYTES) -> None:
        schema = _configured(_schema_of(annotation, what))
        _refuse_secrets(schema, what)
        self._serializer = SchemaSerializer(schema, _CONFIG, _use_prebuilt=False)
        self._validator = SchemaValidator(schema, _CONFIG, _use_prebuilt=False)
        self._what = what
        self._limit = limit
        self._scalar = _scalar_of(schema)
        # Only these can hold what JSON has no form for.
        self._strict = _may_be_unstorable(schema)

    def encode(self, value: T) -> bytes:
        """The value's bytes.

        Raises:
            PayloadError: The value cannot be stored exactly, or is not of the annotated type.
            PayloadTooLargeError: It is over the limit.
        """
        try:
            payload = self._serializer.to_json(value, by_alias=False, round_trip=True, warnings="error")
        except (PydanticSerializationError, ValueError, RecursionError, TypeError) as error:
            raise _refusal(self._what, value, error) from None
        if self._strict and _is_suspicious(payload):
            _refuse_unstorable(self._what, value)
        if len(payload) > self._limit:
            raise PayloadTooLargeError(self._what, len(payload), self._limit)
        return payload

    def decode(self, payload: bytes) -> T:
        """The value of these bytes, as the annotated type.

        Raises:
            PayloadError: They are not of that type (the annotation has changed, say).
        """
        return self._decoded(payload, reading=True)

    def _decoded(self, payload: bytes, *, reading: bool) -> T:
        try:
            value: T = self._validator.validate_json(payload, by_alias=False, by_name=True)
        except ValidationError as error:
            raise PayloadError(self._what, *_first_problem(error), reading=reading) from None
        except Exception as error:
            # A validator of the type's own may raise anything.
            reason = f"the type's own validation raised {type(error).__name__}"
            raise PayloadError(self._what, "$", reason, reading=reading) from error
        return value

    def recoded(self, value: T) -> tuple[bytes, T]:
        """The value's bytes, and the value as everybody else will read it: what a replay returns."""
        payload = self.encode(value)
        if type(value) is self._scalar:
            # It cannot be changed, and reads as it is.
            return payload, value
        return payload, self._decoded(payload, reading=False)


class payload_of:  # noqa: N801  (used like a function)
    """Within: a payload that cannot be stored or read is said to be this document's, or this batch's resolver's.

    A class, since every activity call goes through it: a generator would cost three times as much.
    """

    __slots__ = ("_batch_id", "_document_id")

    def __init__(self, batch_id: str, document_id: str) -> None:
        self._batch_id = batch_id
        self._document_id = document_id

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, PayloadError):
            error.locate(self._batch_id, self._document_id)


class Digester:
    """Encodes one parameter's values canonically, for a digest. One way only."""

    __slots__ = ("_scalar", "_serializer", "_strict", "_what")

    def __init__(self, annotation: Any, what: str) -> None:
        schema = _canonical(_configured(_schema_of(annotation, what)))
        self._serializer = SchemaSerializer(schema, _CONFIG, _use_prebuilt=False)
        self._what = what
        self._scalar = _scalar_of(schema)
        self._strict = _may_be_unstorable(schema)

    def encode(self, value: Any) -> bytes:
        """The canonical bytes.

        Raises:
            PayloadError: The value is not encodable.
        """
        if type(value) is int and self._scalar is int:
            return b"%d" % value
        try:
            payload = self._serializer.to_json(
                value, by_alias=False, round_trip=True, exclude_defaults=True, warnings=False
            )
        except (PydanticSerializationError, ValueError, RecursionError, TypeError) as error:
            raise _refusal(self._what, value, error, iterators=False) from None
        if self._strict and _is_suspicious(payload):
            _refuse_unstorable(self._what, value)
        return payload


# ---- schemas ---------------------------------------------------------------------------------------------------


def _schema_of(annotation: Any, what: str) -> Any:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        if not is_dict(adapter.core_schema):
            # A stand-in: a name in it is not defined. This says which.
            adapter.rebuild(raise_errors=True)
        return adapter.core_schema
    except (PydanticUserError, PydanticUndefinedAnnotation, SchemaError, NameError) as error:
        reason = str(error).partition("\n")[0]
        raise ActivityDefinitionError(f"{what} cannot be recorded: {reason}") from None


_SCALARS: Final[Mapping[str, type[Any]]] = {"int": int, "str": str, "bool": bool}
_STORABLE: Final = frozenset(
    "int str bool none list nullable literal default definitions definition-ref model model-fields model-field "
    "dataclass dataclass-args dataclass-field typed-dict-field".split()
)


def _is_suspicious(payload: bytes) -> bool:
    """Whether it may hold what JSON has no form for. A search for one byte is fast, and mostly enough."""
    if b"\xef" in payload and _REPLACEMENT in payload:
        return True
    if len(payload) < _LONG:
        return (b"N" in payload and b"NaN" in payload) or (b"I" in payload and b"Infinity" in payload)
    if b"N" not in payload and b"I" not in payload:
        return False
    try:
        # Reading all of it takes less time than looking for a word in it.
        from_json(payload, allow_inf_nan=False, cache_strings="none")
    except ValueError:
        return True
    return False


def _scalar_of(schema: Any) -> type[Any] | None:
    """The builtin type, where that is all that the schema says."""
    plain = schema.keys() <= {"type", "metadata"}
    return _SCALARS.get(schema["type"]) if plain else None


def _may_be_unstorable(schema: Any) -> bool:
    """Whether values may hold NaN, an infinity, or a key that is no Unicode: numbers with a point, dicts, anything."""
    found = False

    def look(part: dict[str, Any]) -> dict[str, Any]:
        nonlocal found
        config: dict[str, Any] = part.get("config") or {}
        if (
            part["type"] not in _STORABLE
            or "serialization" in part
            or part.get("extra_behavior") == "allow"
            or config.get("extra_fields_behavior") == "allow"
        ):
            found = True
        return part

    _rewritten(schema, look)
    return found


def _rewritten(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A copy of a core schema, each of its parts changed, the inner ones first."""
    if is_dict(schema):
        part: dict[str, Any] = {
            key: value if key in ("metadata", "cls", "default") else _rewritten(value, change)
            for key, value in schema.items()
        }
        return change(part) if "type" in part else part
    if is_sequence(schema):
        items = (_rewritten(item, change) for item in schema)
        return tuple(items) if isinstance(schema, tuple) else list(items)
    return schema


def _configured(schema: Any) -> Any:
    """The schema with our configuration in every model and dataclass, where their own would win over an outer one.

    And with unions whose members come back as what they were.
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

    return _rewritten(schema, change)


def _refuse_secrets(schema: Any, what: str) -> None:
    def look(part: dict[str, Any]) -> dict[str, Any]:
        function = part.get("serialization", {}).get("function")
        name: str = getattr(function, "__name__", "")
        if name.startswith("_serialize_secret") and getattr(function, "__module__", "") == "pydantic.types":
            raise ActivityDefinitionError(
                f"{what} cannot be recorded: a secret (SecretStr and its kin) is masked when it is written; "
                "leave it out, and fetch it where it is used"
            )
        return part

    _rewritten(schema, look)


def _canonical(schema: Any) -> Any:
    """The schema with serializers that have one form only for equal values."""

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

    return _rewritten(schema, change)


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
    """A model's schema, the fields that it does not declare serialized as anything is."""
    if part["type"] == "model-fields":
        return {**part, "extras_schema": part.get("extras_schema", _ANYTHING)}
    return {**part, "schema": _with_extras(part["schema"])} if "schema" in part else part


def _sorted_set(value: Any, handler: Callable[[Any], Any]) -> Any:
    return sorted((item for item in handler(value)), key=_canonical_text)


def _sorted_dict(value: Any, handler: Callable[[Any], Any]) -> Any:
    plain: Mapping[Any, Any] = handler(value)
    return {key: plain[key] for key in sorted(plain, key=str)}


def _listed(value: Any, handler: Callable[[Any], Any]) -> Any:
    _refuse_iterator(value)
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
    """The value with everything that has an order of its own, or none, put in one that depends on nothing else."""
    if value is None or isinstance(value, str | int | float):
        return value
    if is_set(value):
        return sorted((_plain(item) for item in value), key=_canonical_text)
    if is_dict(value):
        return {key: _plain(item) for key, item in value.items()}
    if is_sequence(value) or is_deque(value):
        return [_plain(item) for item in value]
    if isinstance(value, BaseModel) or (is_dataclass(value) and not isinstance(value, type)):
        digester = _digester_of(type(value))
        if digester is not None:
            return json.loads(digester.encode(value))
        # Its class cannot be recorded, because of an annotation; its values perhaps can.
        return {name: _plain(part) for name, part in _parts_of(value)}
    _refuse_iterator(value)
    return value


def _refuse_iterator(value: Any) -> None:
    """Reading an iterator uses it up: the activity would find it empty."""
    if is_iterator(value):
        raise PydanticSerializationError(_USED_UP)


@lru_cache(maxsize=1024)
def _digester_of(cls: type[Any]) -> Digester | None:
    try:
        return Digester(cls, f"a value of {cls.__name__}")
    except ActivityDefinitionError:
        return None


def _canonical_text(value: Any) -> str:
    return json.dumps(json.loads(to_json(value, bytes_mode="base64")), sort_keys=True)


_ANYTHING: Final = _serialized_by(dict(core_schema.any_schema()), _sorted_anything)


# ---- what went wrong, without showing it -------------------------------------------------------------------------


def _refusal(what: str, value: Any, error: Exception, *, iterators: bool = True) -> PayloadError:
    path, reason = _find_unstorable(value, iterators=iterators) or ("$", _without_values(error))
    return PayloadError(what, path, reason)


def _refuse_unstorable(what: str, value: Any) -> None:
    """Refuse what the payload may hold in another form; or it is text that looks so."""
    culprit = _find_unstorable(value)
    if culprit is not None:
        raise PayloadError(what, *culprit)


def _find_unstorable(value: Any, *, iterators: bool = True) -> tuple[str, str] | None:
    """The path to the first part of a value that JSON cannot hold, and why not.

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
        open_paths += [(f"{path}{step}", part, depth + 1) for step, part in reversed(list(_parts_of(item)))]
        if _is_foreign(item):
            return path, f"values of type {type(item).__name__!r} cannot be encoded"
    return None


def _parts_of(item: Any) -> list[tuple[str, Any]]:
    if isinstance(item, BaseModel):
        names = [*type(item).model_fields, *(item.model_extra or {})]
        return [(f".{name}", getattr(item, name, None)) for name in names]
    if is_dataclass(item) and not isinstance(item, type):
        return [(f".{field.name}", getattr(item, field.name, None)) for field in fields(item)]
    if is_dict(item):
        return [(f"[{str(key).encode(errors='replace').decode()[:40]!r}]", part) for key, part in item.items()]
    if is_sequence(item) or is_set(item):
        return [(f"[{index}]", part) for index, part in enumerate(item)]
    return []


def _is_foreign(item: Any) -> bool:
    """Whether not even pydantic's serializer for anything knows this single value."""
    if isinstance(item, BaseModel | dict | list | tuple | set | frozenset | str | float | int | bool | None):
        return False
    if is_dataclass(item):
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


def _first_problem(error: ValidationError) -> tuple[str, str]:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    return path, first["msg"]


def _without_values(error: Exception) -> str:
    """The error's message up to where it would show a value."""
    lines = [line.strip() for line in str(error).splitlines()]
    reason = next((line for line in lines if "Expected" in line), lines[0] if lines else type(error).__name__)
    return reason.partition(" [input_value=")[0].partition("- serialized value")[0][:200]
