"""`@durable_activity`: functions whose results are checkpointed."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import update_wrapper
from types import MethodType
from typing import Any, Concatenate, Final, Generic, ParamSpec, Protocol, Self, TypeVar, overload

from typing_extensions import deprecated

from durable_batches.blocks import contextmanager
from durable_batches.errors import ActivityDefinitionError, ConfigurationError, MachineError
from durable_batches.lifecycle.amounts import Amount
from durable_batches.lifecycle.machine import tag_of
from durable_batches.lifecycle.states import Stage
from durable_batches.options import (
    check_callable,
    check_duration,
    check_function,
    check_instance,
    check_integer,
    check_iterable,
    check_subclass,
    check_text,
)
from durable_batches.runtime.bound_call import BoundCall
from durable_batches.runtime.classify import ErrorClassifier
from durable_batches.runtime.context import current_dependencies, workflow_scope
from durable_batches.runtime.definition import ActivityDefinition, Replacement
from durable_batches.runtime.limited import NOTHING, Estimate, Limited
from durable_batches.runtime.limits import Limiter, is_limiter
from durable_batches.runtime.retry_policy import RetryPolicy

__all__ = [
    "ActivityDecorator",
    "DurableActivity",
    "KeyedActivityDecorator",
    "durable_activity",
    "map_activity",
]

P = ParamSpec("P")
P2 = ParamSpec("P2")
O = TypeVar("O")  # noqa: E741  (the instance that a method is bound to)
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
X = TypeVar("X")

_DEFAULT_RETRY: Final = RetryPolicy()


class DurableActivity(Generic[P, T_co]):
    """A function whose results are recorded. A sync function becomes awaitable, and runs in a thread.

    In a workflow that an orchestrator runs, a call is recorded: its result is in the store before the workflow
    continues, and no later attempt runs it again. Elsewhere, and inside another activity, it is a plain call.

    A function in a class body is a method: the instance is bound, and is not part of the key.

    Attributes:
        name: The name in checkpoint keys; by default the function's name, for a method with its class.
        version: The version in checkpoint keys; a new one invalidates recorded results deliberately.
        stage: The stage that the first call moves the document to.
        retry: The retry policy.
        classify: Judges the function's errors; None: the worker's classifier does.
        timeout: The timeout of one attempt.
        limiter: Gives permits for calls, itself or its name among `Worker(limiters=)`; None: they need none.
        run_on: The name of the executor that it runs on; None: it runs in the worker itself.
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
        classify: ErrorClassifier | None = None,
        timeout: timedelta | None = None,
        limiter: Limiter | str | None = None,
        estimate: Estimate = NOTHING,
        run_on: str | None = None,
        namespace: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(fn, DurableActivity):
            raise ActivityDefinitionError(f"{fn!r} is a durable activity already; use its with_options()")
        definition = ActivityDefinition[T_co](
            fn, name=name, version=version, key=key, ignore=ignore, namespace=namespace
        )
        self.name: str = definition.name
        self.version: str = version
        self.stage: type[Stage] | None = stage
        self.retry: RetryPolicy = retry
        self.classify: ErrorClassifier | None = classify
        self.timeout: timedelta | None = timeout
        self.limiter: Limiter | str | None = limiter
        self.estimate: Estimate = estimate
        self.run_on: str | None = run_on
        self.definition: ActivityDefinition[T_co] = definition
        self.instance: object | None = None
        self.explicit_key: str | None = None
        self._check_options()
        update_wrapper(self, fn)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T_co]:
        """Call the activity and await the function's result.

        Raises:
            ActivityFailedError: Recorded calls only: the attempts are used up.
            PayloadError: Recorded calls only: an argument cannot be encoded.
        """
        definition = self.definition
        if definition.is_method and self.instance is None and args:
            # `Class.method(instance, ...)`
            bound: Callable[..., Coroutine[Any, Any, T_co]] = self._bound_to(args[0])
            return bound(*args[1:], **kwargs)
        call = BoundCall(self, definition, args, kwargs)
        workflow = workflow_scope()
        return self._plain(call) if workflow is None else workflow.call(call)

    def __repr__(self) -> str:
        return f"<durable activity {self.name!r}>"

    @overload
    def __get__(self, instance: None, owner: type[Any], /) -> Self: ...
    @overload
    def __get__(
        self: DurableActivity[Concatenate[O, P2], T], instance: O, owner: type[Any], /
    ) -> DurableActivity[P2, T]: ...
    def __get__(self, instance: Any, owner: Any, /) -> Any:
        """Bind `self`, which is not part of the key."""
        if instance is None or not self.definition.is_method or self.instance is not None:
            return self
        return self._bound_to(instance)

    def __set_name__(self, owner: type[Any], name: str) -> None:
        """Note that it is a method of a class."""
        self.definition.became_method()

    def with_options(
        self,
        *,
        stage: type[Stage] | None = None,
        key: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: timedelta | None = None,
        limiter: Limiter | str | None = None,
        run_on: str | None = None,
    ) -> DurableActivity[P, T_co]:
        """Return the same activity with other options. Name and version, its identity, stay the same.

        Args:
            stage: The stage; unchanged if not given.
            key: A key in place of the input's digest: on replay only the key is compared. If two calls of a document
                have the same key, they are told apart by their order, and must have the same input.
            retry: The retry policy; unchanged if not given.
            timeout: The timeout of one attempt; unchanged if not given.
            limiter: Gives permits for calls, itself or its name; unchanged if not given.
            run_on: The name of the executor that it runs on; unchanged if not given.

        Raises:
            ConfigurationError: `stage` is no stage, `key` is empty, `timeout` is not positive, `limiter` is none, or
                the function cannot run on an executor.
        """
        other = self._copy()
        other.stage = self.stage if stage is None else stage
        other.retry = self.retry if retry is None else retry
        other.timeout = self.timeout if timeout is None else timeout
        other.limiter = self.limiter if limiter is None else limiter
        other.run_on = self.run_on if run_on is None else run_on
        other.explicit_key = self.explicit_key if key is None else key
        other._check_options()
        return other

    @contextmanager
    def override(self, fake: Callable[P, T_co] | Callable[P, Awaitable[T_co]]) -> Generator[None]:
        """Replace the function by `fake`, sync or async, in all forms of the activity, within a `with` block in tests.

        Name, key and recording stay the same. Dependencies are not filled in: `fake` gets the caller's arguments.
        """
        check_callable("the fake of an activity", fake)
        definition = self.definition
        before = definition.replacement
        definition.replacement = Replacement(fake, takes_instance=self.instance is None)
        try:
            yield
        finally:
            definition.replacement = before

    @deprecated("replaced() is called override() now")
    def replaced(self, fake: Callable[P, T_co] | Callable[P, Awaitable[T_co]]) -> AbstractContextManager[None]:
        """See `override`, the name it has now."""
        return self.override(fake)

    # ---- inside ------------------------------------------------------------------------------------------------

    async def _plain(self, call: BoundCall) -> T_co:
        missing = call.missing()
        kwargs = await current_dependencies().filled(missing, call.kwargs) if missing else call.kwargs
        function, is_async = call.target()
        result = function(*call.args, **kwargs) if is_async else await asyncio.to_thread(function, *call.args, **kwargs)
        if inspect.isawaitable(result):
            result = await result
        value: T_co = result
        return value

    def _copy(self) -> DurableActivity[P, T_co]:
        copy: DurableActivity[P, T_co] = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        return copy

    def _bound_to(self, instance: object) -> DurableActivity[..., T_co]:
        bound = self._copy()
        bound.instance = instance
        bound.is_plain = False
        # So that the signature is shown without the instance.
        bound.__dict__["__wrapped__"] = MethodType(self.definition.fn, instance)
        return bound

    def _check_options(self) -> None:
        definition = self.definition
        self.is_plain: bool = (
            definition.is_async
            and self.instance is None
            and not definition.dependencies
            and self.limiter is None
            and self.run_on is None
        )
        subject, error = f"activity {self.name!r}:", ActivityDefinitionError
        if self.stage is not None:
            check_subclass(f"{subject} stage", self.stage, Stage, error=MachineError)
            tag_of(self.stage)
        check_instance(f"{subject} retry", self.retry, RetryPolicy, error=error)
        check_function(f"{subject} classify", self.classify, optional=True, error=error)
        check_duration(f"{subject} timeout", self.timeout, optional=True, error=error)
        if isinstance(self.limiter, str):
            check_text(f"{subject} limiter", self.limiter, error=error)
            if not self.limiter:
                raise error(f"{subject} limiter must not be empty; it is a Limiter, or the name of one")
        elif self.limiter is not None and not is_limiter(self.limiter):
            raise error(f"{subject} limiter must be a Limiter, such as a CentralRateLimiter, or the name of one")
        if not isinstance(self.estimate, Amount):
            check_callable(f"{subject} estimate", self.estimate, error=error)
        self.limited: Limited | None = None if self.limiter is None else Limited(self.estimate)
        check_instance(f"{subject} key", self.explicit_key, str, optional=True, error=error)
        if self.timeout is not None and self.timeout <= timedelta(0):
            raise ActivityDefinitionError(f"{subject} timeout must be positive")
        if self.explicit_key == "":
            raise ActivityDefinitionError(f"{subject} a key must not be empty")
        check_text(f"{subject} run_on", self.run_on, optional=True, error=error)
        if self.run_on is not None:
            if not self.run_on:
                raise ActivityDefinitionError(f"{subject} run_on must not be empty; it is the name of an executor")
            definition.check_sendable()


class ActivityDecorator(Protocol):
    """The decorator that `durable_activity(...)` returns, for a sync or async function."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, T]], /) -> DurableActivity[P, T]: ...
    @overload
    def __call__(self, fn: Callable[P, Awaitable[T]], /) -> DurableActivity[P, T]: ...
    @overload
    def __call__(self, fn: Callable[P, T], /) -> DurableActivity[P, T]: ...


class KeyedActivityDecorator(Protocol[P]):
    """The decorator that `durable_activity(key=...)` returns, for a function with the key function's parameters.

    The same of a function for `estimate=`.
    """

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
    limiter: Limiter | str | None = None,
    estimate: Callable[P, Amount] | Amount = ...,
    stage: type[Stage] | None = None,
    name: str | None = None,
    version: str = "1",
    retry: RetryPolicy = ...,
    classify: ErrorClassifier | None = None,
    timeout: timedelta | None = None,
    run_on: str | None = None,
) -> KeyedActivityDecorator[P]: ...
@overload
def durable_activity(
    *,
    estimate: Callable[P, Amount],
    limiter: Limiter | str | None = None,
    stage: type[Stage] | None = None,
    name: str | None = None,
    version: str = "1",
    ignore: tuple[str, ...] = (),
    retry: RetryPolicy = ...,
    classify: ErrorClassifier | None = None,
    timeout: timedelta | None = None,
    run_on: str | None = None,
) -> KeyedActivityDecorator[P]: ...
@overload
def durable_activity(
    *,
    limiter: Limiter | str | None = None,
    estimate: Amount = ...,
    stage: type[Stage] | None = None,
    name: str | None = None,
    version: str = "1",
    ignore: tuple[str, ...] = (),
    retry: RetryPolicy = ...,
    classify: ErrorClassifier | None = None,
    timeout: timedelta | None = None,
    run_on: str | None = None,
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
    classify: ErrorClassifier | None = None,
    timeout: timedelta | None = None,
    limiter: Limiter | str | None = None,
    estimate: Estimate = NOTHING,
    run_on: str | None = None,
) -> Any:
    """Make a function's results durable.

    Args:
        fn: The function, if the decorator is used without arguments.
        stage: The stage of the batch's machine that the activity belongs to.
        name: The name in checkpoint keys; by default the function's name (without its module: code may move).
        version: A new version makes every call run again.
        key: Returns a key for a call's arguments, in place of their digest: for inputs that differ from one attempt
            to the next, or for identical concurrent calls that must be distinguished. A replay compares only the key.
        ignore: Parameters that are not part of the digest.
        retry: The retry policy.
        classify: Judges the function's errors in place of the worker's classifier.
        timeout: The timeout of one attempt; exceeding it raises `ActivityTimeoutError`, which is retried.
        limiter: Each attempt of a call waits for one of its permits: a limiter, or the name of one among
            `Worker(limiters=...)`. The wait uses no attempt, and `timeout` does not
            run; after half a minute of it, other documents may have the document's slot. Outside of an orchestrator
            calls are plain, and wait for nothing.
        estimate: What a call takes of the limits, or a function of the call's arguments that returns it.
            `current_activity().settle(tokens=...)` says what it took.
        run_on: The name of the executor that it runs on, among `Worker(executors=...)`: a pool of processes, for
            example. Called outside an orchestrator, it is the plain function all the same.

    Raises:
        ActivityDefinitionError: The function cannot be recorded: an annotation is missing or cannot be encoded. Or it
            cannot run on an executor: it is a method, defined within another function, or has a dependency.
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
            classify=classify,
            timeout=timeout,
            limiter=limiter,
            estimate=estimate,
            run_on=run_on,
            namespace=namespace,
        )

    return decorate if fn is None else decorate(fn)


async def map_activity(activity: Callable[[X], Awaitable[T]], items: Iterable[X], *, concurrency: int = 16) -> list[T]:
    """Call an activity for each item, with bounded concurrency, and return the results in the items' order.

    The first failure stops new calls, lets running calls finish and be recorded, and is then raised. Of several
    failures, the one of the earliest item is raised, so a replay raises the same.

    Args:
        activity: The activity (or any async function of one argument).
        items: The arguments.
        concurrency: The number of concurrent calls.

    Raises:
        ConfigurationError: `activity` is no function, `items` no iterable, or `concurrency` no int, or below 1.
        ActivityFailedError: A call's attempts are used up.
    """
    check_callable("activity", activity)
    check_iterable("items", items)
    check_integer("concurrency", concurrency)
    if concurrency < 1:
        raise ConfigurationError("concurrency must be 1 or more")
    queue = enumerate(items)
    results: dict[int, T] = {}
    failures: list[tuple[int, Exception]] = []

    async def work() -> None:
        for index, item in queue:
            if failures:
                # The next call may return immediately: a replay does not wait.
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
