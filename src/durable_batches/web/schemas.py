"""The published schemas: OpenAPI 3.1 of the routes, JSON Schema of events and snapshots, all made of the types.

Within version 1, fields are added, never removed, renamed or given another type; a set of literals grows only where
the schema says `x-open: true`. Clients ignore fields and tags that they do not know.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias, get_args

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from durable_batches.lifecycle.config import ConfigChanges
from durable_batches.lifecycle.events import PauseScope
from durable_batches.lifecycle.records import ExecutionStatus
from durable_batches.version import VERSION
from durable_batches.web.event_json import EVENTS
from durable_batches.web.models import (
    BATCH,
    BATCHES,
    CANCELLATION,
    CONFIG,
    DOCUMENTS,
    ERRORS,
    EXPLANATION,
    PAUSING,
    PROBLEM,
    RESUMPTION,
    SPENDING,
    TIMELINE,
)

__all__ = [
    "EXAMPLES",
    "LARGEST",
    "MOST_EXAMPLES",
    "MOST_ON_A_PAGE",
    "ON_A_PAGE",
    "SCHEMA_HEADER",
    "event_schema",
    "openapi",
    "snapshot_schema",
]

Schema: TypeAlias = dict[str, Any]

SCHEMA_HEADER: Final = {"Durable-Batches-Schema": "1"}
"""Of every answer that a published schema describes."""

MOST_ON_A_PAGE: Final = 200
ON_A_PAGE: Final = 50
MOST_EXAMPLES: Final = 5
EXAMPLES: Final = 3
LARGEST: Final = 2**53 - 1
"""The largest number that every client reads exactly."""

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

_ADAPTERS: Final[Mapping[str, TypeAdapter[Any]]] = {
    "BatchEvent": EVENTS,
    "Batch": BATCH,
    "BatchPage": BATCHES,
    "DocumentPage": DOCUMENTS,
    "ErrorDigest": ERRORS,
    "Explanation": EXPLANATION,
    "Spending": SPENDING,
    "Timeline": TIMELINE,
    "BatchConfig": CONFIG,
    "Cancellation": CANCELLATION,
    "Pausing": PAUSING,
    "Resumption": RESUMPTION,
    "Problem": PROBLEM,
}


class _AlwaysThere(GenerateJsonSchema):
    """Every field is there in what is sent, also one that has a default; a title that repeats a name says nothing."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        return True

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def event_schema() -> Mapping[str, Any]:
    """Return the JSON Schema of an event, as `data` of the stream has it: a `oneOf` by `tag`."""
    return copy.deepcopy(_published("BatchEvent"))


def snapshot_schema() -> Mapping[str, Any]:
    """Return the JSON Schema of a snapshot."""
    return copy.deepcopy(_published("Batch"))


def openapi() -> Mapping[str, Any]:
    """Return the OpenAPI 3.1 document of the routes; paths are relative to where the application is mounted."""
    return copy.deepcopy(_openapi())


@lru_cache
def _published(name: str) -> Schema:
    schema = _named(_ADAPTERS[name].json_schema(mode="serialization", schema_generator=_AlwaysThere))
    _open_up(schema.get("$defs", {}))
    return {"$schema": _DIALECT, "title": name, **schema}


def _named(schema: Schema) -> Schema:
    """Give the union of states, which is generic, a name of its own."""
    named: Schema = json.loads(json.dumps(schema).replace("BatchState__S_co_", "BatchState"))
    return named


def _open_up(definitions: Mapping[str, Schema]) -> None:
    """Say which sets of literals may grow."""
    for definition in definitions.values():
        for name, field in definition.get("properties", {}).items():
            # Tags of events are constants of their classes; the union of these may grow.
            if "enum" in field and name in ("reason", "state", "what", "status"):
                field["x-open"] = True


@lru_cache
def _openapi() -> Schema:
    inputs: Sequence[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = [
        (name, "serialization", adapter) for name, adapter in _ADAPTERS.items()
    ]
    references, definitions = TypeAdapter.json_schemas(
        inputs, ref_template="#/components/schemas/{model}", schema_generator=_AlwaysThere
    )
    schemas: dict[str, Schema] = _named(definitions["$defs"])
    _open_up(schemas)
    schemas["BatchEvent"] = references["BatchEvent", "serialization"]
    schemas["ConfigChanges"] = _changes(schemas["BatchConfig"])
    bodies = {name: references[name, "serialization"] for name in _ADAPTERS}
    return {
        "openapi": "3.1.0",
        "info": {"title": "durable_batches", "version": VERSION},
        "security": [{"bearer": []}, {}],
        "paths": _paths(bodies),
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _changes(config: Schema) -> Schema:
    """Make the schema of the options that are to be changed: each may be there, and at least one is."""
    options = {name: copy.deepcopy(config["properties"][name]) for name in ConfigChanges.__annotations__}
    for option in options.values():
        # What is left out stays as it is.
        option.pop("default", None)
    return {"type": "object", "properties": options, "additionalProperties": False, "minProperties": 1}


def _paths(bodies: Mapping[str, Schema]) -> Schema:
    batch = _path_parameter("batch", "The id; where it is not plain, `~` and its base64url without padding")
    limit = _parameter("limit", {"type": "integer", "minimum": 1, "maximum": MOST_ON_A_PAGE, "default": ON_A_PAGE})
    number = {"type": "integer", "minimum": 0, "maximum": LARGEST}
    resume = {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string", "pattern": "^[0-9]{1,16}$"}}
    after = _parameter("after", {**number, "default": 0})

    def get(name: str, answer: Schema, *parameters: Schema, refused: Sequence[str]) -> Schema:
        return {"get": _operation(name, answer, parameters, refused, bodies["Problem"])}

    def body(name: str) -> Schema:
        return {"200": {"description": "OK", "content": {"application/json": {"schema": bodies[name]}}}}

    def probe(name: str, field: str, *, may_fail: bool) -> Schema:
        content = {
            "application/json": {
                "schema": {"type": "object", "properties": {field: {"type": "boolean"}}, "required": [field]}
            }
        }
        answers = {"200": {"description": "Yes", "content": content}}
        if may_fail:
            answers["503"] = {"description": "Not now", "content": content}
        return {"get": {"operationId": name, "parameters": [], "security": [], "responses": answers}}

    def schema(name: str, description: str) -> Schema:
        ok = {"200": {"description": description, "content": {"application/json": {"schema": {"type": "object"}}}}}
        return get(name, ok, refused=["401", "413", "503"])

    of_batch = ["401", "403", "404", "413", "503"]
    some = ["400", *of_batch]
    status = {"type": "string", "enum": list(get_args(ExecutionStatus))}
    cancel = _operation(
        "cancelBatch", body("Cancellation"), [batch, _parameter("reason", {"type": "string"})], [*of_batch, "415"],
        bodies["Problem"],
    )  # fmt: skip
    pause = _operation(
        "pauseBatch",
        body("Pausing"),
        [
            batch,
            _parameter("note", {"type": "string"}),
            _parameter("running", {"type": "string", "enum": list(get_args(PauseScope)), "default": "calls"}),
        ],
        ["400", *of_batch, "409", "415"],
        bodies["Problem"],
    )
    update = _operation("updateBatch", body("BatchConfig"), [batch], [*some, "409", "415"], bodies["Problem"])
    changes = {"$ref": "#/components/schemas/ConfigChanges"}
    update["requestBody"] = {"required": True, "content": {"application/json": {"schema": changes}}}
    resume_ = _operation("resumeBatch", body("Resumption"), [batch], [*of_batch, "409", "415"], bodies["Problem"])
    return {
        "/batches": get(
            "listBatches",
            body("BatchPage"),
            _parameter("workflow", {"type": "string"}),
            _parameter("state", {"type": "array", "items": {"type": "string"}}),
            _parameter("label", {"type": "array", "items": {"type": "string", "pattern": "^[^=]+=.*$"}}),
            _parameter("after", {"type": "string"}),
            limit,
            refused=["400", "401", "403", "413", "503"],
        ),
        "/batches/{batch}": get("getBatch", body("Batch"), batch, refused=of_batch),
        "/batches/{batch}/documents": get(
            "listDocuments",
            body("DocumentPage"),
            batch,
            _parameter("status", status),
            _parameter("fingerprint", {"type": "string"}),
            _parameter("payloads", {"type": "boolean", "default": False}),
            _parameter("after", {"type": "integer", "minimum": -1, "maximum": LARGEST, "default": -1}),
            limit,
            refused=some,
        ),
        "/batches/{batch}/errors": get(
            "listErrors",
            body("ErrorDigest"),
            batch,
            _parameter("examples", {"type": "integer", "minimum": 0, "maximum": MOST_EXAMPLES, "default": EXAMPLES}),
            refused=some,
        ),
        "/batches/{batch}/explain": get("explainBatch", body("Explanation"), batch, refused=of_batch),
        "/batches/{batch}/spent": get("getSpending", body("Spending"), batch, refused=of_batch),
        "/batches/{batch}/timeline": get("getTimeline", body("Timeline"), batch, refused=of_batch),
        "/batches/{batch}/config": get("getConfig", body("BatchConfig"), batch, refused=of_batch),
        "/batches/{batch}/progress": get(
            "followProgress",
            _stream("Every event of the batch, once, in order", bodies["BatchEvent"]),
            batch,
            after,
            resume,
            refused=some,
        ),
        "/batches/{batch}/snapshots": get(
            "followSnapshots", _stream("The latest snapshot, when it has changed", bodies["Batch"]), batch, resume,
            refused=some,
        ),
        "/batches/{batch}/cancel": {"post": cancel},
        "/batches/{batch}/pause": {"post": pause},
        "/batches/{batch}/resume": {"post": resume_},
        "/batches/{batch}/update": {"post": update},
        "/health": probe("isAlive", "alive", may_fail=False),
        "/ready": probe("isReady", "ready", may_fail=True),
        "/openapi.json": schema("getOpenAPI", "This document"),
        "/schemas/events/1": schema("getEventSchema", "The JSON Schema of an event"),
        "/schemas/snapshot/1": schema("getSnapshotSchema", "The JSON Schema of a snapshot"),
    }  # fmt: skip


_REFUSALS: Final = {
    "400": "It was not understood",
    "401": "The sender is not known",
    "403": "The sender may not do this, or not from this page",
    "404": "There is no such batch",
    "409": "The batch has ended",
    "413": "The body is too large",
    "415": "A command has a body, or that of an update is no JSON",
    "503": "The store or the sender's rights cannot be looked up now, or there are too many streams",
}


def _operation(
    name: str, answer: Schema, parameters: Sequence[Schema], refused: Sequence[str], problem: Schema
) -> Schema:
    refusals = {
        status: {"description": _REFUSALS[status], "content": {"application/problem+json": {"schema": problem}}}
        for status in refused
    }
    return {"operationId": name, "parameters": list(parameters), "responses": {**answer, **refusals}}


def _stream(description: str, data: Schema) -> Schema:
    message = {
        "type": "object",
        "description": "Of one message",
        "properties": {
            "id": {"type": "string", "pattern": "^[0-9]+$"},
            "event": {"type": "string"},
            "retry": {"type": "integer"},
            "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": data},
        },
    }
    return {
        "200": {"description": description, "content": {"text/event-stream": {"schema": message}}},
        "204": {"description": "The batch has ended, and there is nothing more"},
    }


def _parameter(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _path_parameter(name: str, description: str) -> Schema:
    schema = {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}
