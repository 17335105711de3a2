"""Find what an encoded input does not show: what the serializer leaves out, because the annotation does not have it.

An activity sees an instance of a subclass whole, fields that are excluded when it is written, keys that a `TypedDict`
does not declare, whether a key is 1 or "1", and of a time its zone and `fold`. Two inputs that differ in nothing else
must not have one key; and the keys of inputs that hide nothing stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from datetime import datetime, time
from typing import Any, Final, TypeAlias

from pydantic import BaseModel, Secret, SecretBytes, SecretStr
from pydantic_core import from_json, to_json

from durable_batches.codec.comparison import equal
from durable_batches.codec.exactness import SCALARS, is_excluded, is_json
from durable_batches.codec.parts import choices_of, parts_by_ref, parts_in, types_in
from durable_batches.codec.shapes import is_data, is_deque, is_dict, is_sequence, is_set, parts_of
from durable_batches.codec.unions import class_of, classes_by_ref, without_names
from durable_batches.codec.unwritten import TYPES, unwritten
from durable_batches.errors import PayloadError

__all__ = ["Hidden", "form_of", "may_hide", "may_hide_more"]

_HIDING: Final = TYPES | frozenset("any model dataclass typed-dict dict counter defaultdict named-tuple".split())
_SEEN_SINCE_0_2_0: Final = TYPES | {"any"}
"""Types of which values may hide something that was no part of a key up to 0.2.0."""

_WRAPPERS: Final = frozenset(
    "definitions nullable default function-after function-before function-wrap custom-error model-field "
    "typed-dict-field dataclass-field named-tuple-field".split()
)
Look: TypeAlias = Callable[[Any], "Hidden | None"]
"""Return what may be hidden in values of a class; None: its schema cannot be made."""

_MISSING: Final = object()
_EXACT: Final = frozenset((str, bytes, int, bool, type(None)))
"""Classes of which values that are equal are written the same way."""

_OF_JSON: Final = frozenset((str, int, float, bool, type(None)))
_PLAIN_KEYS: Final = frozenset((str, int))


def may_hide(schema: Any) -> bool:
    """Tell whether values of this schema may hold more than is written of them."""
    return not _HIDING.isdisjoint(types_in(schema))


def may_hide_more(schema: Any) -> bool:
    """Tell whether values of this schema may hide something that was no part of a key up to 0.2.0."""
    types = types_in(schema)
    return not types.isdisjoint(_SEEN_SINCE_0_2_0) or not types.isdisjoint(("default", "named-tuple"))


class Hidden:
    """What values of one annotation hide.

    Args:
        schema: The annotation's core schema.
        what: What the values are, for messages.
        of_class: Finds this for the class of a value of which nothing else is known.
        encode: Encodes such a value.
        as_before: Find what was found up to 0.2.0: nothing of what `unwritten` says, and of two values that are equal,
            but written in two ways, nothing where one is a default.
    """

    __slots__ = ("_as_before", "_by_ref", "_changed", "_classes", "_encode", "_of_class", "_schema", "_what")

    def __init__(
        self, schema: Any, what: str, of_class: Look, encode: Callable[[Any], bytes], *, as_before: bool = False
    ) -> None:
        self._as_before = as_before
        self._schema = schema
        self._by_ref = parts_by_ref(schema)
        self._classes = classes_by_ref(schema)
        self._what = what
        self._of_class = of_class
        self._encode = encode
        self._changed: frozenset[str] = frozenset()

    def defaults(self) -> dict[str, bytes]:
        """Encode the defaults of all fields, by class and field, but for those that are others each time."""
        found: dict[str, bytes] = {}
        for part in parts_in(self._schema):
            if part["type"] not in ("model", "dataclass"):
                continue
            for name, field in (_fields_of(part) or {}).items():
                with suppress(Exception):
                    # A factory, or a default that cannot be encoded, may raise anything: such a field is not compared.
                    default, again = (_default_of(field["schema"]) for _ in range(2))
                    if default is not _MISSING and (encoded := self._encode(default)) == self._encode(again):
                        found[_label(part, name)] = encoded
        return found

    def with_changed(self, changed: frozenset[str]) -> Hidden:
        """Make a copy for which these fields (`defaults`) hide their value where it is their default."""
        copy = Hidden(self._schema, self._what, self._of_class, self._encode, as_before=self._as_before)
        copy._changed = changed
        return copy

    def inside(self, value: Any, path: str) -> Iterator[bytes]:
        """List what is hidden in a value that is at this path of another one."""
        return self.found(self._schema, value, path)

    def of(self, value: Any) -> bytes:
        """Encode what is hidden in a value; empty: nothing is.

        Raises:
            PayloadError: It cannot be encoded; or two keys of a dict are written as one.
        """
        return b"\0".join(sorted(self.found(self._schema, value, "$")))

    def found(self, part: dict[str, Any] | None, value: Any, path: str) -> Iterator[bytes]:
        """List what is hidden in a value, each with its path; `part`: its schema, None if nothing is known of it."""
        if part is None:
            yield from self._in_anything(value, path)
            return
        part = without_names(part)
        serialization: Mapping[str, Any] = part.get("serialization") or {}
        if serialization.get("type") == "any":
            yield from self._in_anything(value, path)
            return
        if "function" in serialization and isinstance(value, datetime | time):
            # A serializer of the user's own decides what is seen of it.
            return
        kind: str = part["type"]
        if kind == "json-or-python":
            yield from self.found(part["python_schema"], value, path)
        elif kind == "chain":
            yield from self.found(part["steps"][-1], value, path)
        elif kind == "lax-or-strict":
            yield from self.found(part["strict_schema"], value, path)
        elif kind in _WRAPPERS:
            yield from self.found(part["schema"], value, path)
        elif kind == "definition-ref":
            yield from self.found(self._by_ref.get(part["schema_ref"]), value, path)
        elif kind in ("model", "dataclass"):
            yield from self._in_object(part, value, path)
        elif kind == "typed-dict":
            yield from self._in_typed_dict(part, value, path)
        elif kind in TYPES and kind != "deque":
            yield from self._unwritten(value, path)
        elif kind in ("list", "set", "frozenset", "deque", "generator"):
            if kind == "deque":
                yield from self._unwritten(value, path)
            items = part.get("items_schema", _ANY)
            if items["type"] not in SCALARS:
                yield from self._in_items(lambda _: items, value, path)
        elif kind == "tuple":
            yield from self._in_tuple(part, value, path)
        elif kind == "named-tuple":
            yield from self._in_items(lambda index: _at(part["fields"], index), value, path)
            yield from self._in_named_tuple(value, path)
        elif kind in ("dict", "counter", "defaultdict", "ordered-dict"):
            yield from self._in_dict(part, value, path)
        elif kind in ("union", "tagged-union"):
            yield from self._in_union(part, value, path)
        elif kind in ("any", "is-instance"):
            yield from self._in_anything(value, path)

    # ---- by the annotation -----------------------------------------------------------------------------------

    def _in_object(self, part: dict[str, Any], value: Any, path: str) -> Iterator[bytes]:
        cls: type[Any] = part["cls"]
        if not isinstance(value, cls):
            return
        declared = _fields_of(part)
        if declared is None:
            if part.get("root_model"):
                yield from self.found(part["schema"], getattr(value, "root", None), path)
            return
        own = _values_of(value)
        if type(value) is not cls and not _is_parametrized(value, cls):
            yield self._shown(path, f"is a {type(value).__module__}.{type(value).__qualname__}")
            for name in sorted(own.keys() - declared.keys()):
                yield self._shown(f"{path}.{name}", own[name])
        for name in own.keys() & declared.keys():
            changed = bool(self._changed) and _label(part, name) in self._changed
            yield from self._in_field(declared[name], own[name], f"{path}.{name}", changed=changed)
        if isinstance(value, BaseModel):
            for name, item in (value.model_extra or {}).items():
                yield from self._in_anything(item, f"{path}.{name}")

    def _in_field(self, field: dict[str, Any], item: Any, path: str, *, changed: bool) -> Iterator[bytes]:
        default = _default_of(field["schema"])
        is_default = default is not _MISSING and equal(item, default) is True
        if is_excluded(field):
            if not (is_default and type(item) is type(default)):
                yield self._shown(path, item)
            return
        if is_default and changed:
            yield self._shown(path, item)
        elif is_default and type(item) is not type(default) and isinstance(item, bool | int | float):
            # Left out as its default, which it only equals: True and 1.
            yield self._shown(path, f"is of type {type(item).__name__}")
        elif is_default and self._is_written_otherwise(item, default):
            yield self._shown(path, item)
        yield from self.found(field["schema"], item, path)

    def _in_typed_dict(self, part: dict[str, Any], value: Any, path: str) -> Iterator[bytes]:
        if not is_dict(value):
            return
        declared: Mapping[str, dict[str, Any]] = part["fields"]
        written = part.get("extra_behavior") == "allow"
        for name, item in value.items():
            field = declared.get(name)
            where = f"{path}[{str(name)!r}]"
            if field is not None:
                if is_excluded(field):
                    yield self._shown(where, item)
                yield from self.found(field["schema"], item, where)
            elif not written:
                yield self._shown(f"{path}[{name!r}]", item)

    def _in_items(self, schema_at: Callable[[int], dict[str, Any] | None], value: Any, path: str) -> Iterator[bytes]:
        if is_set(value):
            # In no order: what is hidden goes with the item.
            for item in value:
                inside = sorted(self.found(schema_at(0), item, ""))
                if inside:
                    yield self._shown(f"{path}[]", item) + b"".join(inside)
        elif is_sequence(value) or is_deque(value):
            for index, item in enumerate(value):
                yield from self.found(schema_at(index), item, f"{path}[{index}]")

    def _in_tuple(self, part: dict[str, Any], value: Any, path: str) -> Iterator[bytes]:
        schemas: list[dict[str, Any]] = part["items_schema"]
        variadic: int | None = part.get("variadic_item_index")
        surplus = len(value) - len(schemas) if is_sequence(value) else 0

        def schema_at(index: int) -> dict[str, Any] | None:
            if variadic is not None and index > variadic:
                return schemas[variadic] if index <= variadic + surplus else schemas[index - surplus]
            return schemas[index] if index < len(schemas) else None

        yield from self._in_items(schema_at, value, path)

    def _in_named_tuple(self, value: Any, path: str) -> Iterator[bytes]:
        defaults: Mapping[str, Any] = getattr(value, "_field_defaults", {})
        for name, default in defaults.items():
            item = getattr(value, name, default)
            # One of another type is not left out.
            left_out = type(item) is type(default) and equal(item, default) is True
            if left_out and self._is_written_otherwise(item, default):
                yield self._shown(f"{path}.{name}", item)

    def _is_written_otherwise(self, item: Any, default: Any) -> bool:
        """Tell whether a value is left out as its default, which it only equals: 1.0 and 1.00, a time in two zones."""
        if self._as_before or item is default or type(item) in _EXACT:
            return False
        try:
            return self._encode(item) != self._encode(default)
        except Exception:  # noqa: BLE001  (what cannot be encoded is compared by its own class alone)
            return False

    def _unwritten(self, value: Any, path: str) -> Iterator[bytes]:
        if not self._as_before and (lost := unwritten(value)) is not None:
            yield self._shown(path, lost)

    def _in_dict(self, part: dict[str, Any], value: Any, path: str) -> Iterator[bytes]:
        if not is_dict(value):
            return
        yield from self._in_keys(value, path, known=_KEY_CLASSES.get(part.get("keys_schema", _ANY)["type"]))
        values = part.get("values_schema", _ANY)
        for key, item in value.items():
            yield from self.found(values, item, f"{path}[{str(key)!r}]")

    def _in_union(self, part: dict[str, Any], value: Any, path: str) -> Iterator[bytes]:
        choices = choices_of(part)
        classes = [class_of(choice, self._classes) for choice in choices]
        own = next((choice for choice, cls in zip(choices, classes, strict=True) if cls is type(value)), None)
        if own is not None:
            yield from self.found(own, value, path)
            return
        for choice, cls in zip(choices, classes, strict=True):
            if cls is None or isinstance(value, cls):
                yield from self.found(choice, value, path)
                return

    # ---- of any type -----------------------------------------------------------------------------------------

    def _in_anything(self, value: Any, path: str) -> Iterator[bytes]:
        if value is None or isinstance(value, str | int | float):
            return
        yield from self._unwritten(value, path)
        if is_dict(value):
            yield from self._in_keys(value, path, known=str)
            for key, item in value.items():
                yield from self._in_anything(item, f"{path}[{str(key)!r}]")
        elif is_sequence(value) or is_deque(value) or is_set(value):
            yield from self._in_items(lambda _: None, value, path)
        elif isinstance(value, BaseModel) or is_data(value):
            inner = self._of_class(type(value))
            if inner is not None:
                yield from inner.inside(value, path)

    def _in_keys(self, value: Mapping[Any, Any], path: str, known: type[Any] | None) -> Iterator[bytes]:
        """Tell keys of another type from texts that look like them; `known`: the type, None if any is told apart."""
        kinds = set(map(type, value))
        if len(kinds) > 1 and len(set(from_json(to_json(dict.fromkeys(value))))) < len(value):
            raise PayloadError(self._what, path, "two of its keys are written as the same text, and one is lost")
        for key in () if kinds <= _PLAIN_KEYS else value:
            yield from self._unwritten(key, f"{path}[{str(key)!r}]")
        if known is None or kinds <= {known}:
            return
        for key in value:
            if not isinstance(key, known):
                yield self._shown(f"{path}[{str(key)!r}]", f"is a key of type {type(key).__name__}")

    def _shown(self, path: str, value: Any) -> bytes:
        try:
            return f"{path}=".encode(errors="backslashreplace") + self._encode(value)
        except PayloadError as error:
            raise PayloadError(self._what, path + error.path[1:], error.reason) from None


def form_of(value: Any) -> str:
    """List the types in a value that its JSON does not show: a date, bytes or a model look like a text or a dict.

    They are no part of a key. Two calls of one document whose inputs have one key and not the same types are refused.
    So are those that differ in a secret, which all look the same; a secret is shown by its hash, another one in each
    process.
    """
    if is_json(value):
        return ""
    found: list[str] = []
    waiting: list[tuple[str, Any]] = [("$", value)]
    while waiting:
        path, item = waiting.pop()
        if type(item) in _OF_JSON:
            continue
        if type(item) not in (list, tuple, dict):
            found.append(f"{path}:{type(item).__module__}.{type(item).__qualname__}")
        if _is_secret(item):
            with suppress(TypeError):
                found.append(f"{path}#{hash(item)}")
        # The items of a set have no place, and are texts or numbers mostly.
        waiting += [] if is_set(item) else [(f"{path}{step}", part) for step, part in parts_of(item)]
    return "\n".join(sorted(found))


def _is_secret(item: object) -> bool:
    return isinstance(item, SecretStr | SecretBytes | Secret)


# ---- schemas -----------------------------------------------------------------------------------------------------

_ANY: Final[dict[str, Any]] = {"type": "any"}

_KEY_CLASSES: Final[Mapping[str, type[Any]]] = {"str": str, "any": str, "union": str, "int": int}
"""The class of keys that are written as what they are; any other one of the dict's could look like them."""


def _fields_of(part: dict[str, Any]) -> dict[str, dict[str, Any]] | None:
    """Return the schemas of an object's fields, by name; None: its schema does not say."""
    inner: dict[str, Any] = part["schema"]
    while inner["type"] in _WRAPPERS:
        inner = inner["schema"]
    match inner["type"]:
        case "model-fields":
            fields_of: dict[str, dict[str, Any]] = inner["fields"]
            return fields_of
        case "dataclass-args":
            return {field["name"]: field for field in inner["fields"]}
        case _:
            return None


def _label(part: dict[str, Any], field: str) -> str:
    return f"{part['cls'].__qualname__}.{field}"


def _default_of(schema: dict[str, Any]) -> Any:
    if schema["type"] != "default":
        return _MISSING
    if "default" in schema:
        return schema["default"]
    if schema.get("default_factory_takes_data"):
        return _MISSING
    return schema["default_factory"]()


def _at(fields_of: list[dict[str, Any]], index: int) -> dict[str, Any] | None:
    return fields_of[index]["schema"] if index < len(fields_of) else None


# ---- values ------------------------------------------------------------------------------------------------------


def _values_of(value: Any) -> dict[str, Any]:
    names = type(value).model_fields if isinstance(value, BaseModel) else [field.name for field in fields(value)]
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _is_parametrized(value: Any, cls: type[Any]) -> bool:
    """Whether it is of the generic class, with parameters."""
    return isinstance(value, BaseModel) and type(value).__pydantic_generic_metadata__.get("origin") is cls
