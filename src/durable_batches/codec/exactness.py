"""Tell, from a schema, which values a serializer writes whole: quick predicates, compiled once for each type.

A serializer goes by the annotation. Of an instance of a subclass it writes the fields of the annotated class, of a
dict the text of each key, and of a field that is excluded nothing. A value that is exactly of its annotated classes
loses nothing; telling so takes a look at the class of each model in it, and for most types no look at all. All other
values have to be looked at in detail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, time
from typing import Any, Final, TypeAlias

from durable_batches.codec.comparison import equal
from durable_batches.codec.parts import choices_of, parts_by_ref, types_in
from durable_batches.codec.shapes import is_dict, is_sequence
from durable_batches.codec.unions import without_names
from durable_batches.codec.unwritten import has_fixed_zone, is_negative_zero, is_written_whole

__all__ = ["SCALARS", "Certain", "certain_of", "is_excluded", "is_json"]

Certain: TypeAlias = Callable[[Any], bool]
"""Whether a value is certainly written whole, and read as it was; False: it has to be looked at."""

SCALARS: Final = frozenset("int str bool none float bytes date timedelta uuid decimal literal enum".split())
"""Types whose values are written whole, and have no parts."""

_SCALAR_CLASSES: Final = frozenset((int, str, bool, float, bytes, type(None)))
_JSON_CLASSES: Final = frozenset((int, str, bool, float, type(None)))
_TEXT: Final = frozenset((str,))
_TEXT_CHANGES: Final = ("strip_whitespace", "to_lower", "to_upper")
_CONFIGURED_CHANGES: Final = ("str_strip_whitespace", "str_to_lower", "str_to_upper")
_KEYS: Final[Mapping[str, type[Any]]] = {"str": str, "int": int}

_LOOSELY_EQUAL: Final = frozenset("float decimal datetime time complex".split())
"""Types of which values that are equal may be written in several ways."""

_EMPTY: Final = (list, dict, set, tuple, frozenset)

_MISSING: Final = object()


def certain_of(schema: Any, *, as_before: bool = False) -> Certain | None:
    """Compile the predicate of a schema; None: all values that the serializer takes are certain.

    Args:
        schema: The schema.
        as_before: Compile the one of up to 0.2.0, which took more values for certain, and looked at nothing in them.
    """
    return _Compiler(parts_by_ref(schema), as_before=as_before).of(schema)


def is_excluded(field: Mapping[str, Any]) -> bool:
    """Tell whether a field of a schema may be left out when it is written."""
    return bool(field.get("serialization_exclude")) or "serialization_exclude_if" in field


def _never(value: Any) -> bool:
    return False


class _Compiler:
    """Make the predicates of one schema's parts; None in place of one that holds for each value."""

    def __init__(self, by_ref: Mapping[str, dict[str, Any]], *, as_before: bool) -> None:
        self._by_ref = by_ref
        self._as_before = as_before
        self._made: dict[str, Certain | None] = {}
        self._open: set[str] = set()
        # The class that a predicate asks for, and nothing else: many values are compared at once.
        self._class_of: dict[Certain, type[Any]] = {}

    def of(self, part: dict[str, Any]) -> Certain | None:
        part = without_names(part)
        kind: str = part["type"]
        if kind == "definitions":
            return self.of(part["schema"])
        if "serialization" in part:
            return _never
        if kind in SCALARS:
            return _never if any(part.get(change) for change in _TEXT_CHANGES) else None
        match kind:
            case "definition-ref":
                return self._of_ref(part["schema_ref"])
            case "nullable":
                return self._nullable(self.of(part["schema"]))
            case "default":
                return self._defaulting(part)
            case "datetime" | "time":
                return _has_fixed_zone if self._as_before else _is_whole_time
            case "any":
                return is_json
            case "model":
                return self._model(part)
            case "dataclass":
                return self._dataclass(part)
            case "typed-dict":
                return self._typed_dict(part)
            case "list":
                return self._items(list, part.get("items_schema"))
            case "tuple":
                return self._tuple(part)
            case "set" | "frozenset":
                items = part.get("items_schema")
                cls = set if kind == "set" else frozenset
                return self._exactly(cls) if items is not None and self.of(items) is None else _never
            case "dict":
                return self._dict(part)
            case "union" | "tagged-union":
                return self._union(choices_of(part))
            case _:
                return _never

    def _of_ref(self, ref: str) -> Certain | None:
        made = self._made
        if ref in self._open:
            # Within itself: the predicate is there by the time that a value is asked about.
            def later(value: Any) -> bool:
                certain = made[ref]
                return certain is None or certain(value)

            return later
        if ref not in made:
            self._open.add(ref)
            made[ref] = self.of(self._by_ref[ref]) if ref in self._by_ref else _never
            self._open.discard(ref)
        return made[ref]

    def _exactly(self, cls: type[Any]) -> Certain:
        def certain(value: Any) -> bool:
            return type(value) is cls

        self._class_of[certain] = cls
        return certain

    def _nullable(self, inner: Certain | None) -> Certain | None:
        if inner is None or inner is _never:
            return inner
        return lambda value: value is None or inner(value)

    def _defaulting(self, part: dict[str, Any]) -> Certain | None:
        # A default is left out of a key, and equals values of another type, 0 and False, or that are written in
        # another way, 1.0 and 1.00.
        inner: dict[str, Any] = part["schema"]
        certain = self.of(inner)
        types = types_in(inner)
        if certain is _never or (certain is None and "union" in types):
            return _never
        if self._as_before or types.isdisjoint(_LOOSELY_EQUAL) or part.get("default_factory") in _EMPTY:
            return certain
        default = part.get("default", _MISSING)
        if default is _MISSING:
            return _never
        if type(default) is float:
            return certain if default else _same_zero
        if default is None or (type(default) in _EMPTY and not default):
            return certain
        told_apart = _told_apart_from(default)
        return told_apart if certain is None else lambda value: told_apart(value) and certain(value)

    def _model(self, part: dict[str, Any]) -> Certain:
        config: dict[str, Any] = part.get("config") or {}
        inner: dict[str, Any] = part["schema"]
        if (
            part.get("post_init")
            or part.get("custom_init")
            or part.get("root_model")
            or inner["type"] != "model-fields"
            or "serialization" in inner
            or any(config.get(change) for change in _CONFIGURED_CHANGES)
            or "allow" in (inner.get("extra_behavior"), config.get("extra_fields_behavior"))
        ):
            return _never
        fields: Mapping[str, dict[str, Any]] = inner["fields"]
        if any(is_excluded(field) for field in fields.values()):
            return _never
        return self._fields(part["cls"], {name: self.of(field["schema"]) for name, field in fields.items()})

    def _dataclass(self, part: dict[str, Any]) -> Certain:
        inner: dict[str, Any] = part["schema"]
        if part.get("post_init") or inner["type"] != "dataclass-args" or "serialization" in inner:
            return _never
        fields: list[dict[str, Any]] = inner["fields"]
        if any(is_excluded(field) or field.get("init") is False or field.get("init_only") for field in fields):
            return _never
        config: dict[str, Any] = part.get("config") or {}
        if any(config.get(change) for change in _CONFIGURED_CHANGES):
            return _never
        return self._fields(part["cls"], {field["name"]: self.of(field["schema"]) for field in fields})

    def _fields(self, cls: type[Any], certain_of: Mapping[str, Certain | None]) -> Certain:
        if _never in certain_of.values():
            return _never
        asked = [(name, certain) for name, certain in certain_of.items() if certain is not None]
        if not asked:
            return self._exactly(cls)

        # Once for each result: a loop takes a third of the time of a generator.
        classes = [(name, self._class_of[certain]) for name, certain in asked if certain in self._class_of]
        others = [(name, certain) for name, certain in asked if certain not in self._class_of]

        def certain(value: Any) -> bool:
            if type(value) is not cls:
                return False
            for name, wanted in classes:
                if type(getattr(value, name, _MISSING)) is not wanted:
                    return False
            for name, one in others:  # noqa: SIM110  (a generator again)
                if not one(getattr(value, name, _MISSING)):
                    return False
            return True

        return certain

    def _typed_dict(self, part: dict[str, Any]) -> Certain:
        fields: Mapping[str, dict[str, Any]] = part["fields"]
        inner = {name: self.of(field["schema"]) for name, field in fields.items()}
        if _never in inner.values() or any(is_excluded(field) for field in fields.values()):
            return _never
        asked = [(name, certain) for name, certain in inner.items() if certain is not None]
        names = frozenset(fields)

        def certain(value: Any) -> bool:
            if type(value) is not dict or not value.keys() <= names:
                return False
            return all(one(value[name]) for name, one in asked if name in value)

        return certain

    def _items(self, cls: type[Any], schema: dict[str, Any] | None) -> Certain:
        inner = _never if schema is None else self.of(schema)
        if inner is None:
            return self._exactly(cls)
        if inner is _never:
            return _never
        all_certain = self._all(inner)
        return lambda value: type(value) is cls and all_certain(value)

    def _all(self, certain: Certain) -> Callable[[Iterable[Any]], bool]:
        cls = self._class_of.get(certain)
        if cls is not None:
            only = {cls}
            return lambda values: only.issuperset(map(type, values))
        return lambda values: all(map(certain, values))

    def _tuple(self, part: dict[str, Any]) -> Certain:
        schemas: list[dict[str, Any]] = part["items_schema"]
        if part.get("variadic_item_index") is not None and len(schemas) == 1:
            return self._items(tuple, schemas[0])
        inner = [self.of(schema) for schema in schemas]
        return self._exactly(tuple) if all(certain is None for certain in inner) else _never

    def _dict(self, part: dict[str, Any]) -> Certain:
        keys, values = part.get("keys_schema"), part.get("values_schema")
        if keys is None or values is None or keys["type"] not in _KEYS or self.of(keys) is not None:
            return _never
        inner = self.of(values)
        if inner is _never:
            return _never
        only = {_KEYS[keys["type"]]}
        all_certain = None if inner is None else self._all(inner)

        def certain(value: Any) -> bool:
            if not is_dict(value) or type(value) is not dict or not only.issuperset(map(type, value)):
                return False
            return all_certain is None or all_certain(value.values())

        return certain

    def _union(self, choices: list[dict[str, Any]]) -> Certain | None:
        inner = [self.of(choice) for choice in choices]
        asked = [certain for certain in inner if certain is not None and certain is not _never]
        if _never in inner:
            return _never
        if not asked:
            return None
        if None not in inner:
            return lambda value: any(certain(value) for certain in asked)
        return lambda value: type(value) in _SCALAR_CLASSES or any(certain(value) for certain in asked)


def is_json(value: Any) -> bool:
    """Tell whether a value, which holds no cycle, consists of what JSON has, of exactly these classes."""
    if type(value) in _JSON_CLASSES:
        return True
    waiting: list[Any] = [value]
    while waiting:
        item = waiting.pop()
        parts: Iterable[Any]
        if is_dict(item) and type(item) is dict and _TEXT.issuperset(map(type, item)):
            parts = item.values()
        elif is_sequence(item) and type(item) is list:
            parts = item
        else:
            return False
        waiting += [part for part in parts if type(part) not in _JSON_CLASSES]
    return True


def _is_whole_time(value: Any) -> bool:
    """See `is_written_whole`; what is no time is the serializer's concern."""
    return not isinstance(value, datetime | time) or is_written_whole(value)


def _has_fixed_zone(value: Any) -> bool:
    """See `has_fixed_zone`, of what was looked at up to 0.2.0."""
    return not isinstance(value, datetime | time) or has_fixed_zone(value)


def _told_apart_from(default: Any) -> Certain:
    """Make a predicate of what is a default, or not equal to it."""
    return lambda value: value is default or equal(value, default) is False


def _same_zero(value: Any) -> bool:
    """Whether a number is certainly not one that only equals a default of 0.0."""
    return bool(value) or not isinstance(value, float) or not is_negative_zero(value)
