"""Functions by their names, under which another process finds them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import lru_cache
from importlib import import_module
from typing import Any, TypeAlias, cast

from durable_batches.errors import ActivityDefinitionError, ConfigurationError
from durable_batches.runtime.activity import DurableActivity
from durable_batches.runtime.classify import ErrorClassifier
from durable_batches.runtime.retry_policy import RetryPolicy

__all__ = [
    "PolicyReference",
    "classifier_named",
    "find_activity",
    "find_classifier",
    "find_policy",
    "policy_of_call",
    "reference_of",
]

PolicyReference: TypeAlias = tuple[Sequence[str], str | None]
"""What of a retry policy judges errors: its classes and its function, by module and qualified name."""


@lru_cache(maxsize=1024)
def reference_of(activity: DurableActivity[..., Any]) -> str:
    """Return the name under which other processes find an activity: its module and its qualified name.

    Raises:
        ActivityDefinitionError: Something else has that name.
    """
    fn = activity.definition.fn
    reference = f"{fn.__module__}:{fn.__qualname__}"
    if find_activity(reference).definition is not activity.definition:
        raise _unfindable(activity.name, reference, "is another activity")
    return reference


def find_activity(reference: str) -> DurableActivity[..., Any]:
    """Find an activity by its module and its qualified name.

    Raises:
        ActivityDefinitionError: It is not there.
    """
    name = reference.rpartition(":")[2]
    try:
        found = _found(reference)
    except (ImportError, AttributeError) as error:
        hint = (
            "; a module of a name of its own can be found by every process, and a program that is run as __main__ only "
            "by processes that are started from it"
            if reference.startswith("__main__:")
            else ""
        )
        raise _unfindable(name, reference, f"is not there ({type(error).__name__}: {error}){hint}") from error
    if not isinstance(found, DurableActivity):
        raise _unfindable(name, reference, "is no activity: decorate the function where it is defined")
    return found  # pyright: ignore[reportUnknownVariableType]  # of whichever parameters


def classifier_named(classify: ErrorClassifier) -> str:
    """Return the name under which other processes find a worker's classifier.

    Raises:
        ConfigurationError: They cannot.
    """
    reference = _name_of(classify)
    if reference is None:
        raise ConfigurationError(
            "classify of a worker with executors must be a function of a module, since it judges errors in other "
            f"processes, which find it by its name; {classify!r} is none"
        )
    return reference


def find_classifier(reference: str) -> ErrorClassifier:
    """Find a classifier by its module and its qualified name."""
    found: ErrorClassifier = _found(reference)
    return found


def policy_of_call(activity: DurableActivity[..., Any]) -> PolicyReference | None:
    """Return what judges errors of a call; None: the policy of the activity as other processes find it.

    Classes that they would not find are left to the worker, which knows the names of an error's classes.

    Raises:
        ActivityDefinitionError: They would not find the policy's function.
    """
    policy, own = activity.retry, find_activity(reference_of(activity)).retry
    if (policy.non_retryable, policy.retryable) == (own.non_retryable, own.retryable):
        return None
    classes = [name for each in policy.non_retryable if (name := _name_of(each)) is not None]
    if policy.retryable is None:
        return classes, None
    function = _name_of(policy.retryable)
    if function is None:
        raise ActivityDefinitionError(
            f"activity {activity.name!r} cannot run on an executor with its retry policy: its retryable= judges "
            f"errors in other processes, which find it by its name, and {policy.retryable!r} is no function of a module"
        )
    return classes, function


def find_policy(reference: PolicyReference) -> RetryPolicy:
    """Find what judges errors by its names."""
    classes, function = reference
    return RetryPolicy(
        non_retryable=tuple(_found(each) for each in classes),
        retryable=None if function is None else cast("Callable[[BaseException], bool | timedelta]", _found(function)),
    )


def _name_of(thing: object) -> str | None:
    """The module and the qualified name of a class or a function; None: it is not found by them."""
    reference = f"{getattr(thing, '__module__', '')}:{getattr(thing, '__qualname__', '')}"
    try:
        found: object = _found(reference)
    except (ImportError, AttributeError, ValueError, KeyError):
        return None
    return reference if found is thing else None


def _found(reference: str) -> Any:
    module, _, name = reference.partition(":")
    # The program itself cannot be imported by that name in a process that was not started from it.
    found: Any = sys.modules[module] if module == "__main__" else import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _unfindable(activity: str, reference: str, why: str) -> ActivityDefinitionError:
    return ActivityDefinitionError(f"activity {activity!r} cannot run on an executor: {reference} {why}")
