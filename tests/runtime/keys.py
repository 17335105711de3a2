"""The keys of calls that are not made."""

from __future__ import annotations

from typing import Any

from durable_batches.runtime.activity import DurableActivity
from durable_batches.runtime.bound_call import BoundCall


def bound(activity: DurableActivity[..., Any], *args: Any, **kwargs: Any) -> BoundCall:
    return BoundCall(activity, activity.definition, args, kwargs)


def key(activity: DurableActivity[..., Any], *args: Any, **kwargs: Any) -> str:
    return bound(activity, *args, **kwargs).base_key()
