"""Events as JSON and back: what a stream sends as `data`, by the schema that is published."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Final, TypeVar, get_args

from pydantic import Discriminator, JsonValue, TypeAdapter, ValidationError

from durable_batches.errors import PayloadError
from durable_batches.lifecycle.events import BatchEvent, DocumentSuspended, UnknownEvent

__all__ = ["EVENTS", "event_bytes", "event_json", "event_of"]

T = TypeVar("T")

EVENTS: Final[TypeAdapter[BatchEvent]] = TypeAdapter(Annotated[BatchEvent, Discriminator("tag")])

_OBJECT: Final[TypeAdapter[dict[str, JsonValue]]] = TypeAdapter(dict[str, JsonValue])
_TAGS: Final = frozenset(
    kind.__dataclass_fields__["tag"].default for kind in get_args(BatchEvent) if kind is not UnknownEvent
)


def event_json(event: BatchEvent) -> str:
    """Return an event as a JSON object: `batch_id`, `seq`, `at` (RFC 3339, UTC), `tag` and its own fields."""
    return event_bytes(event).decode()


def event_bytes(event: BatchEvent) -> bytes:
    """Return `event_json` encoded."""
    # By its own class, which takes half of what finding it in the union would take.
    return _adapter_of(type(event)).dump_json(event)


def event_of(text: str | bytes) -> BatchEvent:
    """Return the event of a JSON object; `event_of(event_json(event)) == event`.

    An event of a newer library becomes an `UnknownEvent`, with its own fields as a JSON object. Fields that are not
    known are left out.

    Raises:
        PayloadError: It is no event.
    """
    try:
        found = _OBJECT.validate_json(text)
        if found.get("tag") not in _TAGS and found.get("tag") != "unknown":
            return _unknown(found)
        event = EVENTS.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(map(str, ("$", *first["loc"])))
        raise PayloadError("an event", path, first["msg"], reading=True) from None
    if isinstance(event, DocumentSuspended):
        return replace(event, waits_for=tuple(event.waits_for))
    return event


def _unknown(found: dict[str, JsonValue]) -> UnknownEvent:
    own = {name: value for name, value in found.items() if name not in ("batch_id", "seq", "at", "tag")}
    fields: dict[str, Any] = {name: found[name] for name in ("batch_id", "seq", "at") if name in found}
    data = _OBJECT.dump_json(own).decode()
    return _adapter_of(UnknownEvent).validate_python({**fields, "name": found.get("tag"), "data": data})


def _adapter_of(kind: type[T]) -> TypeAdapter[T]:
    adapter = _ADAPTERS.get(kind)
    if adapter is None:
        adapter = _ADAPTERS[kind] = TypeAdapter(kind)
    return adapter


_ADAPTERS: Final[dict[type[Any], TypeAdapter[Any]]] = {}
