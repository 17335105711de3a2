"""`@workflow`: the function that takes one document to its result, and what belongs to it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping
from datetime import datetime
from functools import cache, update_wrapper
from typing import Any, Final, Generic, Protocol, overload
from uuid import UUID, uuid4

from typing_extensions import TypeAliasType, TypeVar, deprecated

from durable_batches.codec.codec import Codec
from durable_batches.errors import ActivityDefinitionError, ForeignStageError
from durable_batches.lifecycle.machine import BatchStateMachine, tag_of
from durable_batches.lifecycle.policies import RetryPolicy
from durable_batches.lifecycle.primitives import from_micros, problem_with_name
from durable_batches.lifecycle.states import BatchId, Counts, Stage
from durable_batches.runtime.activity import DurableActivity, durable_activity
from durable_batches.runtime.context import current_clock, workflow_scope
from durable_batches.runtime.definition import annotations_of
from durable_batches.runtime.dependencies import Provider, dependencies_of
from durable_batches.runtime.discovery import activities_named_in
from durable_batches.runtime.results import DocumentFailure, DocumentSucceeded

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


# Covariant, although a page is a list: each is made for its one reader, who may do with it as it likes.
class Results(Protocol[R_co]):  # type: ignore[misc]
    """What a resolver gets: the results of all documents that succeeded, in submission order, streamed.

    However many there are, a page of them is in memory at a time. Every way through them is an async generator: one
    that is left early is best closed, `async with aclosing(aiter(results)) as found: ...`. A unit test makes some
    with `durable_batches.testing.results_of`.
    """

    @property
    def batch_id(self) -> BatchId:
        """The batch."""
        ...

    @property
    def counts(self) -> Counts:
        """Where its documents ended."""
        ...

    def __aiter__(self) -> AsyncGenerator[DocumentSucceeded[R_co], None]:
        """The results, from the first; can be iterated again."""
        ...

    def reopen(self) -> Results[R_co]:
        """Open the same results from the first one: for a pass of its own, whatever other passes are under way."""
        ...

    @deprecated("again() is called reopen() now")
    def again(self) -> Results[R_co]:
        """See `reopen`, the name it has now."""
        ...

    def pages(self, size: int) -> AsyncGenerator[list[DocumentSucceeded[R_co]], None]:
        """The results in lists of at most `size`.

        Raises:
            ValueError: `size` is less than 1; at the call already.
        """
        ...

    def failures(self) -> AsyncGenerator[DocumentFailure, None]:
        """The documents that failed, in submission order."""
        ...


Resolver = TypeAliasType("Resolver", Callable[[Results[R]], Awaitable[V]], type_params=(R, V))
"""The step that runs once a run, after all documents have ended, over all of the results."""


class Workflow(Generic[D, R_co, S_co, V_co]):
    """A workflow: called outside an orchestrator it is the plain function, for unit tests.

    Attributes:
        name: What batches name it by; the function's own name by default.
        version: Recorded with each batch.
        accepts: Older versions of a batch that this code can run, too.
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
        self.fn = fn
        self.name: str = fn.__name__ if name is None else name
        self.version: str = version
        self.accepts: tuple[str, ...] = accepts
        for what, given in (("name", self.name), *(("version", each) for each in (version, *accepts))):
            if (problem := problem_with_name(given)) is not None:
                raise ActivityDefinitionError(f"the {what} of a workflow {problem}")
        # Its first use, at which a machine that is not what its type says is refused at the latest.
        _ = machine.tags
        self.machine: BatchStateMachine[S_co] = machine
        self.resolver = resolver
        self.resolver_retry: RetryPolicy = resolver_retry
        self._namespace = namespace
        self._indexes: dict[type[Stage], int] = {}
        self._codecs: tuple[Codec[D], Codec[R_co], Codec[V_co | None]] | None = None
        update_wrapper(self, fn)

    def __call__(self, document: D) -> Coroutine[Any, Any, R_co]:
        """Run it on a document; its activities are plain calls unless an orchestrator runs it."""
        return _coroutine(self.fn(document))

    def __repr__(self) -> str:
        return f"<workflow {self.name!r}>"

    @property
    def versions(self) -> frozenset[tuple[str, str]]:
        """The (name, version) pairs of the batches that it can run."""
        return frozenset((self.name, version) for version in (self.version, *self.accepts))

    @property
    def document_codec(self) -> Codec[D]:
        """What encodes its documents."""
        return self._prepared()[0]

    @property
    def result_codec(self) -> Codec[R_co]:
        """What encodes its results."""
        return self._prepared()[1]

    @property
    def resolution_codec(self) -> Codec[V_co | None]:
        """What encodes its resolver's result."""
        return self._prepared()[2]

    def check(self) -> None:
        """Find now what would otherwise fail later: annotations, and stages that the machine does not have.

        Raises:
            ActivityDefinitionError: The document, the result or the resolution cannot be recorded.
            ForeignStageError: The function names an activity whose stage is foreign.
        """
        self._prepared()
        activities = _told_apart(self.fn, f"workflow {self.name!r}")
        for activity in activities:
            if activity.stage is not None:
                self.stage_index(activity.stage, activity.name)
        if self.resolver is not None:
            _told_apart(self.resolver, f"the resolver of workflow {self.name!r}")

    def providers(self) -> Iterator[Provider]:
        """What a worker opens for it before it begins: what its activities and its resolver name as dependencies.

        An activity that only a variable leads to is not found here; what it depends on is opened at its first call.
        """
        functions: list[Callable[..., Any]] = [self.fn]
        if self.resolver is not None:
            functions.append(self.resolver)
            yield from (wanted.provider for wanted in dependencies_of(self.resolver).values())
        for function in functions:
            for activity in activities_named_in(function):
                yield from (wanted.provider for wanted in activity.definition.missing((), {}).values())

    def stage_index(self, stage: type[Stage], activity: str | None = None) -> int:
        """The stage's place in the machine.

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

    def _prepared(self) -> tuple[Codec[D], Codec[R_co], Codec[V_co | None]]:
        if self._codecs is None:
            self._codecs = self._prepare()
            self._namespace = None
        return self._codecs

    def _prepare(self) -> tuple[Codec[D], Codec[R_co], Codec[V_co | None]]:
        hints = self._annotations(self.fn, f"workflow {self.name!r}")
        parameters = list(inspect.signature(self.fn).parameters)
        if len(parameters) != 1 or parameters[0] not in hints or "return" not in hints:
            raise ActivityDefinitionError(
                f"workflow {self.name!r} must have one parameter, the document, and annotate it and its result"
            )
        resolution: Any = type(None)
        if self.resolver is not None:
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


def _told_apart(fn: Callable[..., Any], what: str) -> list[DurableActivity[..., Any]]:
    """The activities that a function names, of which no two have one name."""
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
    """What `workflow(machine)` returns."""

    def __call__(self, fn: Callable[[D], Coroutine[Any, Any, R]], /) -> Workflow[D, R, Sx_co, None]:
        """Make the function a workflow."""
        ...


class ResolvedWorkflowDecorator(Protocol[R, Sx_co, Vx_co]):
    """What `workflow(machine, resolver=...)` returns: the function's result is what the resolver reads."""

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
    """Make an async function of one document a workflow.

    Args:
        machine: The states that its batches go through.
        resolver: The step that runs once, after all documents have ended, over all of the results.
        name: What batches name it by; the function's own name by default.
        version: Recorded with each batch; a worker runs a batch only if it has this version or accepts it.
        accepts: Older versions of a batch that this code can run, too.
        resolver_retry: How often and when a failing resolver is tried again.

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
    """Within a workflow: the document is in `stage` from here on. It rides on the next commit; no waiting.

    Outside an orchestrator, in a unit test of the workflow, it does nothing.

    Raises:
        ForeignStageError: The workflow's machine does not have the stage.
    """
    current = workflow_scope()
    if current is not None:
        current.enter_stage(stage)


async def durable_now() -> datetime:
    """The time (aware, UTC) at which the workflow first came here; the same on every replay."""
    return await _now_activity()()


async def durable_uuid() -> UUID:
    """A random UUID, the same on every replay."""
    return await _uuid_activity()()


# Made at the first call: making an activity builds a schema, and importing the library stays quick.


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
