"""`@workflow`: the function that processes one document, with its machine and its resolver."""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from functools import cache, cached_property, update_wrapper
from typing import Any, Final, Generic, Protocol, overload
from uuid import UUID, uuid4

from typing_extensions import TypeAliasType, TypeVar, deprecated

from durable_batches.codec.codec import Codec
from durable_batches.errors import ActivityDefinitionError, ForeignStageError, MachineError
from durable_batches.lifecycle.machine import BatchStateMachine, tag_of
from durable_batches.lifecycle.primitives import from_micros, problem_with_name
from durable_batches.lifecycle.states import BatchId, Counts, Stage
from durable_batches.options import check_callable, check_instance, check_names, check_subclass
from durable_batches.runtime.activity import DurableActivity, durable_activity
from durable_batches.runtime.checkpoint import Defaults
from durable_batches.runtime.context import current_clock, workflow_scope
from durable_batches.runtime.definition import annotations_of
from durable_batches.runtime.dependencies import Provider, dependencies_of
from durable_batches.runtime.discovery import activities_named_in
from durable_batches.runtime.results import DocumentFailure, DocumentSucceeded
from durable_batches.runtime.retry_policy import RetryPolicy

__all__ = [
    "ResolvedWorkflowDecorator",
    "Resolver",
    "Results",
    "Workflow",
    "WorkflowDecorator",
    "durable_now",
    "durable_uuid",
    "enter_stage",
    "workflow",
]

D = TypeVar("D")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S_co = TypeVar("S_co", bound=Stage, default=Stage, covariant=True)
V = TypeVar("V", default=None)
V_co = TypeVar("V_co", default=None, covariant=True)
Sx = TypeVar("Sx", bound=Stage)
Sx_co = TypeVar("Sx_co", bound=Stage, covariant=True)
Vx = TypeVar("Vx")
Vx_co = TypeVar("Vx_co", covariant=True)

_DEFAULT_RETRY: Final = RetryPolicy()


# Covariant, although a page is a list: each list is made for one reader, which may modify it.
class Results(Protocol[R_co]):  # type: ignore[misc]
    """The results of all documents that succeeded, streamed to the resolver in submission order.

    One page of them is in memory at a time. Every iterator over them is an async generator: close one that is left
    early with `async with aclosing(aiter(results)) as found: ...`. A unit test creates results with
    `durable_batches.testing.results_of`.
    """

    @property
    def batch_id(self) -> BatchId:
        """The batch."""
        ...

    @property
    def counts(self) -> Counts:
        """The number of documents by outcome."""
        ...

    def __aiter__(self) -> AsyncGenerator[DocumentSucceeded[R_co], None]:
        """Iterate over the results, from the first one; may be called repeatedly."""
        ...

    def reopen(self) -> Results[R_co]:
        """Open the same results again, for an iteration independent of others."""
        ...

    @deprecated("again() is called reopen() now")
    def again(self) -> Results[R_co]:
        """See `reopen`, the name it has now."""
        ...

    def pages(self, size: int) -> AsyncGenerator[list[DocumentSucceeded[R_co]], None]:
        """Iterate over the results in lists of at most `size`.

        Raises:
            ConfigurationError: `size` is no int, or less than 1; raised at the call.
        """
        ...

    def failures(self) -> AsyncGenerator[DocumentFailure, None]:
        """Iterate over the failed documents, in submission order."""
        ...


Resolver = TypeAliasType("Resolver", Callable[[Results[R]], Awaitable[V]], type_params=(R, V))
"""The step that runs once, after all documents have finished, on all of the results."""


class Workflow(Generic[D, R_co, S_co, V_co]):
    """A workflow. Called outside an orchestrator, for example in a unit test, it is the plain function.

    Attributes:
        name: The workflow's name in batches; by default the function's name.
        version: The version that is recorded with each batch.
        accepts: Older versions of batches that this code can also run.
        machine: The states of its batches.
    """

    def __init__(
        self,
        fn: Callable[[D], Awaitable[R_co]],
        machine: BatchStateMachine[S_co],
        *,
        name: str | None = None,
        version: str = "1",
        accepts: tuple[str, ...] = (),
        resolver: Callable[[Results[R_co]], Awaitable[V_co]] | None = None,
        resolver_retry: RetryPolicy = _DEFAULT_RETRY,
        namespace: Mapping[str, Any] | None = None,
    ) -> None:
        if not inspect.iscoroutinefunction(fn):
            raise ActivityDefinitionError(f"a workflow is an async function; {fn!r} is none")
        subject, error = f"workflow {fn.__name__!r}:", ActivityDefinitionError
        check_instance(f"{subject} machine", machine, BatchStateMachine, error=error)
        check_names(f"{subject} accepts", accepts, error=error)
        check_callable(f"{subject} resolver", resolver, optional=True, error=error)
        check_instance(f"{subject} resolver_retry", resolver_retry, RetryPolicy, error=error)
        self.fn = fn
        self.name: str = fn.__name__ if name is None else name
        self.version: str = version
        self.accepts: tuple[str, ...] = accepts
        for what, given in (("name", self.name), *(("version", each) for each in (version, *accepts))):
            if (problem := problem_with_name(given)) is not None:
                raise ActivityDefinitionError(f"the {what} of a workflow {problem}")
        # The first use, which refuses a machine that does not match its type argument.
        _ = machine.tags
        self.machine: BatchStateMachine[S_co] = machine
        self.resolver = resolver
        self.resolver_retry: RetryPolicy = resolver_retry
        self._namespace = namespace
        self._indexes: dict[type[Stage], int] = {}
        update_wrapper(self, fn)

    def __call__(self, document: D) -> Coroutine[Any, Any, R_co]:
        """Run it on a document; its activities are plain calls unless an orchestrator runs it."""
        return _coroutine(self.fn(document))

    def __repr__(self) -> str:
        return f"<workflow {self.name!r}>"

    @property
    def versions(self) -> frozenset[tuple[str, str]]:
        """Return the (name, version) pairs of the batches that it can run."""
        return frozenset((self.name, version) for version in (self.version, *self.accepts))

    @property
    def document_codec(self) -> Codec[D]:
        """Return the codec of its documents."""
        return self._codecs[0]

    @property
    def result_codec(self) -> Codec[R_co]:
        """Return the codec of its results."""
        return self._codecs[1]

    @property
    def resolution_codec(self) -> Codec[V_co | None]:
        """Return the codec of its resolver's result."""
        return self._codecs[2]

    @cached_property
    def defaults(self) -> dict[str, Defaults]:
        """The defaults of its activities, by name and version: recorded with a batch, because keys leave them out.

        Activities that are reached through variables only are not found, unless a dict, list or tuple holds them.
        """
        found: dict[str, Defaults] = {}
        unclear: set[str] = set()
        for function in (self.fn, self.resolver):
            for activity in () if function is None else activities_named_in(function, containers=True):
                definition = activity.definition
                # One that is defined later fails at its first call.
                with suppress(ActivityDefinitionError):
                    defaults = definition.keys.defaults
                    if found.setdefault(definition.label, defaults) != defaults:
                        unclear.add(definition.label)
        return {label: defaults for label, defaults in found.items() if defaults and label not in unclear}

    def check(self) -> None:
        """Verify annotations and stages now, which would otherwise fail later.

        Raises:
            ActivityDefinitionError: The document, the result or the resolution cannot be recorded.
            ForeignStageError: The function names an activity whose stage is foreign.
        """
        _ = self._codecs
        activities = _told_apart(self.fn, f"workflow {self.name!r}")
        for activity in activities:
            if activity.stage is not None:
                self.stage_index(activity.stage, activity.name)
        if self.resolver is not None:
            _told_apart(self.resolver, f"the resolver of workflow {self.name!r}")

    def providers(self) -> Iterator[Provider]:
        """List the dependencies of its activities and its resolver, which a worker opens before it starts.

        Activities that are reached only through variables are not found; their dependencies open at the first call.
        """
        functions: list[Callable[..., Any]] = [self.fn]
        if self.resolver is not None:
            functions.append(self.resolver)
            yield from (wanted.provider for wanted in dependencies_of(self.resolver).values())
        for function in functions:
            for activity in activities_named_in(function):
                yield from (wanted.provider for wanted in activity.definition.missing((), {}).values())

    def activities(self) -> Iterator[DurableActivity[..., Any]]:
        """List its activities, as far as they are named in its code."""
        for function in (self.fn, self.resolver):
            if function is not None:
                yield from activities_named_in(function)

    def stage_index(self, stage: type[Stage], activity: str | None = None) -> int:
        """Return the index of a stage in the machine.

        Raises:
            ForeignStageError: The machine does not have it.
        """
        index = self._indexes.get(stage)
        if index is None:
            tag = tag_of(stage)
            index = self.machine.index(tag)
            if index is None:
                raise ForeignStageError(tag, self.name, self.machine.tags, activity)
            self._indexes[stage] = index
        return index

    @cached_property
    def _codecs(self) -> tuple[Codec[D], Codec[R_co], Codec[V_co | None]]:
        codecs = self._prepare()
        self._namespace = None
        return codecs

    def _prepare(self) -> tuple[Codec[D], Codec[R_co], Codec[V_co | None]]:
        hints = self._annotations(self.fn, f"workflow {self.name!r}")
        parameters = list(inspect.signature(self.fn).parameters)
        if len(parameters) != 1 or parameters[0] not in hints or "return" not in hints:
            raise ActivityDefinitionError(
                f"workflow {self.name!r} must have one parameter, the document, and annotate it and its result"
            )
        resolution: Any = type(None)
        if self.resolver is not None:
            _check_resolver(self.resolver, f"the resolver of workflow {self.name!r}")
            resolution = self._annotations(self.resolver, "its resolver").get("return", _MISSING)
            if resolution is _MISSING:
                raise ActivityDefinitionError(f"the resolver of workflow {self.name!r} has no return annotation")
        return (
            Codec(hints[parameters[0]], f"a document of workflow {self.name!r}"),
            Codec(hints["return"], f"the result of workflow {self.name!r}"),
            Codec(resolution, f"the resolution of workflow {self.name!r}"),
        )

    def _annotations(self, fn: Callable[..., Any], what: str) -> dict[str, Any]:
        try:
            return annotations_of(fn, self._namespace)
        except NameError as error:
            raise ActivityDefinitionError(f"{what} has an annotation that cannot be resolved: {error}") from None


_MISSING: Final = object()


def _check_resolver(resolver: Callable[..., Any], what: str) -> None:
    """Refuse what could not be called and awaited once all documents are done, and paid for."""
    function = inspect.unwrap(resolver)
    if inspect.isfunction(function) and not inspect.iscoroutinefunction(function):
        raise ActivityDefinitionError(f"{what} is an async function; {resolver!r} is none")
    given = dependencies_of(resolver)
    try:
        # Of the function itself: what it wraps may take more, which it fills in.
        inspect.signature(resolver, follow_wrapped=False).bind(None, **given)
    except ValueError:
        return  # one that cannot be looked into
    except TypeError as error:
        raise ActivityDefinitionError(f"{what} must take one argument, the results: {error}") from None


def _told_apart(fn: Callable[..., Any], what: str) -> list[DurableActivity[..., Any]]:
    """List the activities that a function names, and refuse two with the same name."""
    known: dict[tuple[str, str], DurableActivity[..., Any]] = {}
    found = list(activities_named_in(fn))
    for activity in found:
        other = known.setdefault((activity.name, activity.version), activity)
        if other.definition is not activity.definition:
            raise ActivityDefinitionError(
                f"{what} calls two activities of the name {activity.name!r}, whose recorded results could not be "
                "told apart; give one of them another name: durable_activity(name=...)"
            )
    return found


async def _coroutine(awaitable: Awaitable[R]) -> R:
    return await awaitable


class WorkflowDecorator(Protocol[Sx_co]):
    """The decorator that `workflow(machine)` returns."""

    def __call__(self, fn: Callable[[D], Coroutine[Any, Any, R]], /) -> Workflow[D, R, Sx_co, None]:
        """Make the function a workflow."""
        ...


class ResolvedWorkflowDecorator(Protocol[R, Sx_co, Vx_co]):
    """The decorator that `workflow(machine, resolver=...)` returns: the resolver reads the function's results."""

    def __call__(self, fn: Callable[[D], Coroutine[Any, Any, R]], /) -> Workflow[D, R, Sx_co, Vx_co]:
        """Make the function a workflow."""
        ...


@overload
def workflow(
    machine: BatchStateMachine[Sx],
    *,
    resolver: Resolver[R, Vx],
    name: str | None = None,
    version: str = "1",
    accepts: tuple[str, ...] = (),
    resolver_retry: RetryPolicy = ...,
) -> ResolvedWorkflowDecorator[R, Sx, Vx]: ...
@overload
def workflow(
    machine: BatchStateMachine[Sx],
    *,
    name: str | None = None,
    version: str = "1",
    accepts: tuple[str, ...] = (),
) -> WorkflowDecorator[Sx]: ...
def workflow(
    machine: BatchStateMachine[Any],
    *,
    resolver: Callable[[Results[Any]], Awaitable[Any]] | None = None,
    name: str | None = None,
    version: str = "1",
    accepts: tuple[str, ...] = (),
    resolver_retry: RetryPolicy = _DEFAULT_RETRY,
) -> Any:
    """Make a workflow from an async function of one document.

    Args:
        machine: The states of its batches.
        resolver: The step that runs once, after all documents have finished, on all of the results.
        name: The workflow's name in batches; by default the function's name.
        version: The version that is recorded with each batch; a worker runs a batch only if it accepts its version.
        accepts: Older versions of batches that this code can also run.
        resolver_retry: The retry policy of the resolver.

    Raises:
        ActivityDefinitionError: The function is not async.
    """
    namespace = dict(sys._getframe(1).f_locals)  # pyright: ignore[reportPrivateUsage]

    def decorate(fn: Callable[[Any], Awaitable[Any]]) -> Workflow[Any, Any, Any, Any]:
        return Workflow(
            fn,
            machine,
            name=name,
            version=version,
            accepts=accepts,
            resolver=resolver,
            resolver_retry=resolver_retry,
            namespace=namespace,
        )

    return decorate


# ---- within a workflow -------------------------------------------------------------------------------------------


def enter_stage(stage: type[Stage]) -> None:
    """Move the document to `stage`, within a workflow. Does not wait: the next commit records it.

    Outside an orchestrator, in a unit test of the workflow, it does nothing.

    Raises:
        MachineError: `stage` is no subclass of `Stage`.
        ForeignStageError: The workflow's machine does not have the stage.
    """
    check_subclass("stage", stage, Stage, error=MachineError)
    current = workflow_scope()
    if current is not None:
        current.enter_stage(stage)


async def durable_now() -> datetime:
    """Return the time (aware, UTC) of the first call; the same on every replay."""
    return await _now_activity()()


async def durable_uuid() -> UUID:
    """Return a random UUID; the same on every replay."""
    return await _uuid_activity()()


# Created at the first call, because creating an activity builds a schema, which would slow down the import.


@cache
def _now_activity() -> DurableActivity[[], datetime]:
    @durable_activity(name="durable_now")
    async def now() -> datetime:
        return from_micros(current_clock().now())

    return now


@cache
def _uuid_activity() -> DurableActivity[[], UUID]:
    @durable_activity(name="durable_uuid")
    async def uuid() -> UUID:
        return uuid4()

    return uuid
