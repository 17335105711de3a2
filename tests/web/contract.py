"""Whether the OpenAPI document describes an answer; every answer to the client of the tests is held against it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from durable_batches.web import openapi

_METHODS: Final = frozenset({"get", "put", "post", "delete", "options", "head", "patch", "trace"})
_PAGE: Final = re.compile(r"/|/static/.*")
_DOCUMENT: Final = openapi()
_PATHS: Final = [
    (re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), operations) for path, operations in _DOCUMENT["paths"].items()
]
_SCHEMAS: Final = _DOCUMENT["components"]["schemas"]
_PROBLEM: Final = "application/problem+json"


def check_answer(method: str, path: str, status: int, headers: Mapping[str, str], body: bytes | None) -> None:
    """Fail where the document does not describe this answer.

    Args:
        method: Of the request.
        path: Of the request, without its query.
        status: Of the answer.
        headers: Of the answer.
        body: Of the answer; None: of a stream, which is still being sent.
    """
    if method == "OPTIONS" and "access-control-allow-methods" in headers:
        return  # what a browser asks before a page of another origin may ask
    answered = (method, path, status, dict(headers), body)
    media_type = headers.get("content-type", "").partition(";")[0]
    operations = next((each for pattern, each in _PATHS if pattern.fullmatch(path)), None)
    if operations is None:
        assert _PAGE.fullmatch(path) or (status in (401, 403, 404, 413, 503) and media_type == _PROBLEM), answered
        operation = None
    else:
        operation = operations.get("get" if method == "HEAD" else method.lower())
        if operation is None:
            assert status in (401, 403, 405, 413), answered
            allowed = set(headers["allow"].lower().split(", ")) if status == 405 else set[str]()
            # HEAD is GET without the body, also where it is not named.
            assert allowed <= {*operations, "head"}, answered
    if operation is not None:
        described = operation["responses"].get(str(status))
        assert described is not None, answered
        content: Mapping[str, Any] = described.get("content", {})
        assert media_type in content or (not content and not body), answered
        schema: Mapping[str, Any] = content[media_type]["schema"] if content else {}
        if body and "$ref" in schema and method != "HEAD":
            fields: Mapping[str, Any] = _SCHEMAS[schema["$ref"].rpartition("/")[2]]
            found = json.loads(body).keys()
            assert set(fields["required"]) <= found <= fields["properties"].keys(), answered
    if media_type == _PROBLEM and method != "HEAD":
        assert body is not None
        problem = json.loads(body)
        assert problem.keys() == set(_SCHEMAS["Problem"]["required"]), answered
        assert problem["status"] == status, answered
        assert problem["type"], answered
