"""Functions by their names, under which another process finds them."""

from __future__ import annotations

import sys
from functools import lru_cache
from importlib import import_module
from typing import Any

from durable_batches.errors import ActivityDefinitionError, ConfigurationError
from durable_batches.runtime.activity import DurableActivity
from durable_batches.runtime.classify import ErrorClassifier

__all__ = ["classifier_named", "find_activity", "find_classifier", "reference_of"]


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
    reference = f"{getattr(classify, '__module__', '')}:{getattr(classify, '__qualname__', '')}"
    try:
        found: object = _found(reference)
    except (ImportError, AttributeError, ValueError):
        found = None
    if found is not classify:
        raise ConfigurationError(
            "classify of a worker with executors must be a function of a module, since it judges errors in other "
            f"processes, which find it by its name; {classify!r} is none"
        )
    return reference


def find_classifier(reference: str) -> ErrorClassifier:
    """Find a classifier by its module and its qualified name."""
    found: ErrorClassifier = _found(reference)
    return found


def _found(reference: str) -> Any:
    module, _, name = reference.partition(":")
    # The program itself cannot be imported by that name in a process that was not started from it.
    found: Any = sys.modules[module] if module == "__main__" else import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _unfindable(activity: str, reference: str, why: str) -> ActivityDefinitionError:
    return ActivityDefinitionError(f"activity {activity!r} cannot run on an executor: {reference} {why}")
