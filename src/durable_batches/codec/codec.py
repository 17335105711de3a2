"""Encode values to bytes and decode them, driven by annotations.

The format is JSON, by pydantic. Two things are made stricter than its defaults. `bytes` anywhere inside a value,
also in models with a configuration of their own, are base64, so that they come back exactly; and what JSON would
change silently (NaN, infinities, lone surrogates, values that are not of their annotated type) is refused with
the path to it; so is a value that does not come back as it was. Types only: nothing that is read can make the library
run code.
"""

from __future__ import annotations

from collections import defaultdict
from types import TracebackType
from typing import Any, Final, Generic, Literal, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from durable_batches.codec.comparison import difference
from durable_batches.codec.exactness import certain_of
from durable_batches.codec.parts import parts_in
from durable_batches.codec.refusals import (
    first_problem,
    is_suspicious,
    may_be_unstorable,
    refusal_of,
    refuse_lost_fields,
    refuse_secrets,
    refuse_unstorable,
)
from durable_batches.codec.schemas import configured, scalar_of, schema_of, serializer_of, validator_of
from durable_batches.codec.unwritten import TYPES
from durable_batches.errors import PayloadError, PayloadTooLargeError

__all__ = ["MAX_PAYLOAD_BYTES", "Codec", "payload_of"]

T = TypeVar("T")

MAX_PAYLOAD_BYTES: Final = 16 * 1024 * 1024
"""The default limit of one encoded payload."""

_LONG_INT: Final = 4_000
"""Digits of an int; not many more can be read again."""


class Codec(Generic[T]):
    """Encode and decode values of one annotation.

    Args:
        annotation: The type.
        what: What the values are, for messages ("result of activity 'split'").

    Raises:
        ActivityDefinitionError: Values of this annotation cannot be recorded.
    """

    __slots__ = ("_certain", "_limit", "_loosely_equal", "_scalar", "_serializer", "_strict", "_validator", "_what")

    def __init__(self, annotation: Any, what: str, *, limit: int = MAX_PAYLOAD_BYTES) -> None:
        schema = configured(schema_of(annotation, what))
        refuse_secrets(schema, what)
        refuse_lost_fields(schema, what)
        self._serializer = serializer_of(schema)
        self._validator = validator_of(schema)
        self._what = what
        self._limit = limit
        self._scalar = scalar_of(schema)
        # Only these can hold values that JSON cannot represent.
        self._strict = may_be_unstorable(schema)
        self._certain = certain_of(schema)
        self._loosely_equal = any(map(_is_loosely_equal, parts_in(schema)))

    def encode(self, value: T) -> bytes:
        """Encode a value.

        Raises:
            PayloadError: The value cannot be stored exactly, or is not of the annotated type.
            PayloadTooLargeError: The encoded value exceeds the limit.
        """
        try:
            # Of a builtin type, it is known to be of its type without the serializer's asking.
            warnings: Literal[False, "error"] = False if type(value) is self._scalar else "error"
            payload = self._serializer.to_json(value, by_alias=False, round_trip=True, warnings=warnings)
        except (PydanticSerializationError, ValueError, RecursionError, TypeError) as error:
            raise refusal_of(self._what, value, error) from None
        if self._strict and is_suspicious(payload):
            refuse_unstorable(self._what, value)
        if len(payload) > self._limit:
            raise PayloadTooLargeError(self._what, len(payload), self._limit)
        return payload

    def decode(self, payload: bytes) -> T:
        """Decode a value of the annotated type.

        Raises:
            PayloadError: The bytes are not of that type, for example because the annotation has changed.
        """
        return self._decoded(payload, reading=True)

    def _decoded(self, payload: bytes, *, reading: bool) -> T:
        try:
            value: T = self._validator.validate_json(payload, by_alias=False, by_name=True)
        except ValidationError as error:
            raise PayloadError(self._what, *first_problem(error), reading=reading) from None
        except Exception as error:
            # A validator of the type's own may raise anything.
            reason = f"the type's own validation raised {type(error).__name__}"
            raise PayloadError(self._what, "$", reason, reading=reading) from error
        return value

    def recoded(self, value: T) -> tuple[bytes, T]:
        """Encode a value and decode it again, as a replay does.

        Raises:
            PayloadError: The value cannot be stored exactly, or does not come back as it was.
            PayloadTooLargeError: The encoded value exceeds the limit.
        """
        payload = self.encode(value)
        scalar = self._scalar
        if type(value) is scalar and (scalar is not int or len(payload) < _LONG_INT):
            # Immutable, and decoded as it is.
            return payload, value
        decoded = self._decoded(payload, reading=False)
        if self._certain is not None and not self._certain(value):
            changed = difference(value, decoded, loosely_equal=self._loosely_equal)
            if changed is not None:
                raise PayloadError(self._what, *changed)
        return payload, decoded


def _is_loosely_equal(part: dict[str, Any]) -> bool:
    """Tell whether values of a part may be equal to what has not all of them."""
    return part["type"] in TYPES or part.get("cls") is defaultdict


class payload_of:  # noqa: N801  (used like a function)
    """Add document and batch to a `PayloadError` within a `with` block.

    A class, because every activity call uses it: a generator would cost three times as much.
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
