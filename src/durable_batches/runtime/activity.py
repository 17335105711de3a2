"""`@durable_activity`: functions whose results are checkpointed."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from datetime import timedelta
from functools import update_wrapper
from typing import Any, Final, Generic, ParamSpec, Protocol, TypeVar, get_args, get_origin, get_type_hints, overload

from durable_batches.errors import ActivityDefinitionError
from durable_batches.lifecycle.machine import tag_of
from durable_batches.lifecycle.policies import RetryPolicy
from durable_batches.lifecycle.states import Stage
from durable_batches.runtime.checkpoint import CallKeys
from durable_batches.runtime.codec import Codec
from durable_batches.runtime.scope import workflow_scope

__all__ = [
    "ActivityDecorator",
    "DurableActivity",
    "KeyedActivityDecorator",
    "durable_activity",
    "map_activity",
]

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
X = TypeVar("X")

_DEFAULT_RETRY: Final = RetryPolicy()


class DurableActivity(Generic[P, T_co]):
    """Callable like the function it wraps; a sync function becomes awaitable, and runs in a thread.

    In a workflow that an orchestrator runs, a call is recorded: its result is in the store before the workflow
    goes on, and no later attempt runs it again. Anywhere else, and inside another activity, it is the plain call.

    Attributes:
        name: Part of every checkpoint's key; the function's own name by default.
        version: Part of every checkpoint's key; a new one invalidates what was recorded, on purpose.
        stage: The stage that a document is in from the first call on.
        retry: What to do about an error.
        timeout: Of one attempt.
    """

    def __init__(
        self,
        fn: Callable[P, T_co] | Callable[P, Awaitable[T_co]],
        *,
        stage: type[Stage] | None = None,
        name: str | None = None,
        version: str = "1",
        key: Callable[..., str] | None = None,
        ignore: tuple[str, ...] = (),
        retry: RetryPolicy = _DEFAULT_RETRY,
        timeout: timedelta | None = None,
        namespace: Mapping[str, Any] | None = None,
    ) -> None:
        self.fn: Callable[P, Any] = fn
        self.name: str = name or getattr(fn, "__name__", "") or type(fn).__name__
        self.version: str = version
        self.stage: type[Stage] | None = stage
        self.retry: RetryPolicy = retry
        self.timeout: timedelta | None = timeout
        self.is_async: bool = inspect.iscoroutinefunction(fn)
        self._key = key
        self._ignore = ignore
        self._namespace = namespace
        self._keys: CallKeys | None = None
        self._codec: Codec[T_co] | None = None
        self._check()
        update_wrapper(self, fn)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T_co]:
        """The call: awaits to the function's result.

        Raises:
            ActivityFailedError: Recorded calls only: the attempts are used up.
            PayloadError: Recorded calls only: an argument cannot be encoded.
        """
        workflow = workflow_scope()
        if workflow is None:
            return self._plain(args, kwargs)
        return workflow.call(self, args, kwargs)

    def __repr__(self) -> str:
        return f"<durable activity {self.name!r}>"

    async def _plain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> T_co:
        function: Callable[..., Any] = self.fn
        result = function(*args, **kwargs) if self.is_async else await asyncio.to_thread(function, *args, **kwargs)
        if inspect.isawaitable(result):
            result = await result
        value: T_co = result
        return value

    @property
    def keys(self) -> CallKeys:
        """What makes the keys of its calls."""
        if self._keys is None:
            self._prepare()
        assert self._keys is not None
        return self._keys

    @property
    def codec(self) -> Codec[T_co]:
        """What encodes its results."""
        if self._codec is None:
            self._prepare()
        assert self._codec is not None
        return self._codec

    def _check(self) -> None:
        if inspect.isgeneratorfunction(self.fn) or inspect.isasyncgenfunction(self.fn):
            raise ActivityDefinitionError(
                f"activity {self.name!r} is a generator; an activity returns one result, a list for example"
            )
        if self.stage is not None:
            tag_of(self.stage)
        if self.timeout is not None and self.timeout <= timedelta(0):
            raise ActivityDefinitionError(f"activity {self.name!r}: timeout must be positive")
        unknown = [name for name in self._ignore if name not in inspect.signature(self.fn).parameters]
        if unknown:
            raise ActivityDefinitionError(f"activity {self.name!r} has no parameter {unknown[0]!r} to ignore")
        # A name that is defined further down in the module is looked up at the first call.
        self._prepare(tolerate_missing_names=True)

    def _prepare(self, *, tolerate_missing_names: bool = False) -> None:
        try:
            hints = annotations_of(self.fn, self._namespace)
        except NameError as error:
            if tolerate_missing_names:
                return
            raise ActivityDefinitionError(
                f"activity {self.name!r} has an annotation that cannot be resolved: {error}"
            ) from None
        if "return" not in hints:
            raise ActivityDefinitionError(
                f"activity {self.name!r} has no return annotation; its results are recorded and read as that type"
            )
        returned = hints.pop("return")
        signature = inspect.signature(self.fn)
        digested = {name: hint for name, hint in hints.items() if name not in self._ignore}
        missing = [name for name in signature.parameters if name not in hints and name not in self._ignore]
        if missing and self._key is None:
            raise ActivityDefinitionError(
                f"parameter {missing[0]!r} of activity {self.name!r} has no annotation; annotate it, or leave it "
                f"out of the checkpoint's key with ignore=({missing[0]!r},)"
            )
        if self._key is not None:
            # The input's digest only backs up the explicit key: parameters that cannot have one are left out.
            digested = {name: hint for name, hint in digested.items() if _is_encodable(hint)}
        self._keys = CallKeys(self.name, self.version, signature, digested, self._key)
        self._codec = Codec(_awaited(returned), f"the result of activity {self.name!r}")
        self._namespace = None


class ActivityDecorator(Protocol):
    """What `durable_activity(...)` returns: applied to a function, sync or async."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, T]], /) -> DurableActivity[P, T]: ...
    @overload
    def __call__(self, fn: Callable[P, Awaitable[T]], /) -> DurableActivity[P, T]: ...
    @overload
    def __call__(self, fn: Callable[P, T], /) -> DurableActivity[P, T]: ...


class KeyedActivityDecorator(Protocol[P]):
    """What `durable_activity(key=...)` returns: the function has the parameters of the key function."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, T]], /) -> DurableActivity[P, T]: ...
    @overload
    def __call__(self, fn: Callable[P, Awaitable[T]], /) -> DurableActivity[P, T]: ...
    @overload
    def __call__(self, fn: Callable[P, T], /) -> DurableActivity[P, T]: ...


@overload
def durable_activity(fn: Callable[P, Coroutine[Any, Any, T]], /) -> DurableActivity[P, T]: ...
@overload
def durable_activity(fn: Callable[P, Awaitable[T]], /) -> DurableActivity[P, T]: ...
@overload
def durable_activity(fn: Callable[P, T], /) -> DurableActivity[P, T]: ...
@overload
def durable_activity(
    *,
    key: Callable[P, str],
    stage: type[Stage] | None = None,
    name: str | None = None,
    version: str = "1",
    retry: RetryPolicy = ...,
    timeout: timedelta | None = None,
) -> KeyedActivityDecorator[P]: ...
@overload
def durable_activity(
    *,
    stage: type[Stage] | None = None,
    name: str | None = None,
    version: str = "1",
    ignore: tuple[str, ...] = (),
    retry: RetryPolicy = ...,
    timeout: timedelta | None = None,
) -> ActivityDecorator: ...
def durable_activity(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    stage: type[Stage] | None = None,
    name: str | None = None,
    version: str = "1",
    key: Callable[..., str] | None = None,
    ignore: tuple[str, ...] = (),
    retry: RetryPolicy = _DEFAULT_RETRY,
    timeout: timedelta | None = None,
) -> Any:
    """Make a function's results durable.

    Args:
        fn: The function, where the decorator is used without arguments.
        stage: The stage of the batch's machine that the activity belongs to.
        name: Its name in checkpoints; the function's own by default (not its module: code may move).
        version: A new one makes every call run again, on purpose.
        key: Of a call's arguments, in place of their digest: for inputs that are not stable from one attempt to
            the next, or identical concurrent calls that must be told apart. On replay the key alone decides.
        ignore: Parameters that are no part of the digest.
        retry: How often and when a failing call is tried again.
        timeout: Of one attempt; running over it is an `ActivityTimeoutError`, which is retried like others.

    Raises:
        ActivityDefinitionError: The function cannot be recorded: an annotation is missing or cannot be encoded.
    """
    # Types that are local to the calling function are found among its variables.
    namespace = dict(sys._getframe(1).f_locals)  # pyright: ignore[reportPrivateUsage]

    def decorate(function: Callable[..., Any]) -> DurableActivity[..., Any]:
        return DurableActivity(
            function,
            stage=stage,
            name=name,
            version=version,
            key=key,
            ignore=ignore,
            retry=retry,
            timeout=timeout,
            namespace=namespace,
        )

    return decorate if fn is None else decorate(fn)


async def map_activity(activity: Callable[[X], Awaitable[T]], items: Iterable[X], *, concurrency: int = 16) -> list[T]:
    """Call an activity for each item, a bounded number at once, and return the results in the items' order.

    The first failure stops new calls, lets those that are running finish and be recorded, and is then raised; of
    several failures, the one of the earliest item, so that a replay raises the same.

    Args:
        activity: The activity (or any async function of one argument).
        items: What to call it with.
        concurrency: Calls at once.

    Raises:
        ValueError: `concurrency` is below 1.
        ActivityFailedError: A call's attempts are used up.
    """
    if concurrency < 1:
        raise ValueError("concurrency must be 1 or more")
    queue = enumerate(items)
    results: dict[int, T] = {}
    failures: list[tuple[int, Exception]] = []

    async def work() -> None:
        for index, item in queue:
            if failures:
                # Of another call, perhaps at once: a replay returns without waiting.
                return
            try:
                results[index] = await activity(item)
            except Exception as error:  # noqa: BLE001  (kept, and raised below)
                failures.append((index, error))

    size = len(items) if hasattr(items, "__len__") else concurrency  # type: ignore[arg-type]
    tasks = [asyncio.create_task(work()) for _ in range(min(size, concurrency))]
    try:
        if tasks:
            await asyncio.wait(tasks)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise
    for task in tasks:
        # A call that was stopped with its document, or an iterable that raised.
        task.result()
    if failures:
        raise min(failures, key=lambda failure: failure[0])[1]
    return [results[index] for index in range(len(results))]


def annotations_of(fn: Callable[..., Any], namespace: Mapping[str, Any] | None) -> dict[str, Any]:
    """The function's resolved annotations; names local to where it was defined are known, too."""
    target = fn if inspect.isroutine(fn) else type(fn).__call__
    return get_type_hints(target, localns=dict(namespace) if namespace else None, include_extras=True)


def _awaited(annotation: Any) -> Any:
    """What a value of this type awaits to: a function that is not async may return an awaitable."""
    origin = get_origin(annotation)
    return get_args(annotation)[-1] if isinstance(origin, type) and issubclass(origin, Awaitable) else annotation


def _is_encodable(annotation: Any) -> bool:
    try:
        Codec[Any](annotation, "argument")
    except ActivityDefinitionError:
        return False
    return True
