"""Batches over HTTP: JSON, progress as server-sent events, and a page (the extra `web`)."""

from __future__ import annotations

from importlib.util import find_spec

from durable_batches.errors import MissingExtraError

if find_spec("starlette") is None:
    raise MissingExtraError("web", "starlette")

from durable_batches.web.access import Access, Action, Authorize
from durable_batches.web.app import WebApp, create_app
from durable_batches.web.event_json import event_json, event_of
from durable_batches.web.schemas import event_schema, openapi, snapshot_schema

__all__ = [
    "Access",
    "Action",
    "Authorize",
    "WebApp",
    "create_app",
    "event_json",
    "event_of",
    "event_schema",
    "openapi",
    "snapshot_schema",
]
