"""`dependency(provider)`: clients, pools and sessions for activities and resolvers, without globals.

A dependency is opened once per worker, closed after the worker has drained, and never part of a checkpoint key. One
task opens and closes all dependencies of a worker, because resources of async generators (such as a task group) often
must be closed by the task that opened them.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar, overload

from durable_batches.clock import Clock, Deadline, SystemClock
from durable_batches.errors import ConfigurationError, DependencyError
from durable_batches.runtime.tracebacks import trim
from durable_batches.tasks import leave_to_itself, seen_through

__all__ = ["Dependencies", "Dependency", "Provider", "dependencies_of", "dependency"]

T = TypeVar("T")

Provider: TypeAlias = Callable[[], object]
Closer: TypeAlias = Callable[[], object]

_log = logging.getLogger("durable_batches")

_SLOW_SECONDS: Final = 10.0
"""After which the log says that a dependency is still being opened; then after twice as long, and so on."""

_OPEN_SECONDS: Final = 600.0
"""After which a dependency that is still being opened has failed: a large model may take minutes to load."""

_CLOSE_SECONDS: Final = 30.0
"""After which the closing of a dependency is cancelled."""

_UNWIND_SECONDS: Final = 5.0
"""How long the end of what was cancelled is waited for."""


class Dependency:
    """The default that `dependency(...)` puts into a signature; a worker replaces it by the opened value."""

    __slots__ = ("provider",)

    def __init__(self, provider: Provider) -> None:
        self.provider: Provider = provider

    def __repr__(self) -> str:
        return f"dependency({name_of(self.provider)})"


@overload
def dependency(provider: Callable[[], AsyncIterator[T]], /) -> T: ...
@overload
def dependency(provider: Callable[[], Coroutine[Any, Any, T]], /) -> T: ...
@overload
def dependency(provider: Callable[[], Generator[T, Any, Any]], /) -> T: ...
@overload
def dependency(provider: Callable[[], T], /) -> T: ...
def dependency(provider: Callable[[], Any], /) -> Any:
    """Declare a dependency, as the default of a parameter of an activity or a resolver.

    The provider is called once per worker: when the worker starts. Dependencies are closed in the reverse order after
    the worker has drained, and are never part of a checkpoint key. `Worker(dependencies={provider: replacement})`
    replaces one, for example in tests. Outside a worker, pass the parameter explicitly.

    Args:
        provider: A function without required parameters: an async generator (or a generator, annotated `Generator`,
            since an `Iterator` may be a value) that yields once, and closes after the `yield`; or a function, sync
            or async, that returns the value, which is then not closed. It may have dependencies of its own, as the
            defaults of its parameters. Sync providers run on the event loop, so they should be fast.

    Raises:
        ConfigurationError: The provider is not such a function.

    Example::

        async def http() -> AsyncIterator[AsyncClient]:
            async with AsyncClient() as client:
                yield client


        @durable_activity
        async def fetch(url: str, client: AsyncClient = dependency(http)) -> str: ...
    """
    if not callable(provider):
        raise ConfigurationError(f"dependency() takes a function that opens the value, not {type(provider).__name__!r}")
    required = [
        parameter.name
        for parameter in _parameters(provider).values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if required:
        raise ConfigurationError(
            f"dependency provider {name_of(provider)!r} has a required parameter {required[0]!r}; nobody passes it"
        )
    wrapped = getattr(provider, "__wrapped__", None)
    if wrapped is not None and (inspect.isasyncgenfunction(wrapped) or inspect.isgeneratorfunction(wrapped)):
        raise ConfigurationError(
            f"dependency provider {name_of(provider)!r} is a context manager; give the generator function itself, "
            "without @asynccontextmanager or @contextmanager"
        )
    return Dependency(provider)


def dependencies_of(fn: Callable[..., Any]) -> dict[str, Dependency]:
    """List the dependencies among a function's parameters, by name."""
    return {
        parameter.name: parameter.default
        for parameter in _parameters(fn).values()
        if isinstance(parameter.default, Dependency)
    }


def name_of(provider: Provider) -> str:
    """Return the provider's name for messages."""
    return getattr(provider, "__qualname__", None) or type(provider).__qualname__


class Dependencies:
    """The opened dependencies of one worker.

    Args:
        replacements: Replacements by provider: a value, or `dependency(other)` to open another provider.
        clock: Bounds how long opening and closing may take.
    """

    def __init__(self, replacements: Mapping[Provider, object] | None = None, *, clock: Clock | None = None) -> None:
        self._clock: Clock = clock or SystemClock()
        given = replacements or {}
        self._given = {provider: value for provider, value in given.items() if not isinstance(value, Dependency)}
        self._instead = {provider: other.provider for provider, other in given.items() if isinstance(other, Dependency)}
        self._values: dict[Provider, Any] = dict(self._given)
        self._opening: dict[Provider, asyncio.Future[Any]] = {}
        self._wanted: asyncio.Queue[Provider | None] | None = None
        self._owner: asyncio.Task[None] | None = None
        self._closers: list[tuple[str, Closer]] = []
        self._busy_with = ""

    def start(self) -> None:
        """Start to open dependencies on request, until `close`."""
        # One for each start, since a queue belongs to an event loop. Bounded by the number of providers: each is
        # requested once at a time.
        self._wanted = asyncio.Queue()
        self._owner = asyncio.create_task(self._own(self._wanted), name="durable-batches dependencies")

    async def open(self, providers: Iterable[Provider]) -> None:
        """Open dependencies now.

        Raises:
            DependencyError: One could not be opened; the provider's error is the cause.
        """
        for provider in providers:
            await self.get(provider)

    async def close(self) -> None:
        """Close all dependencies in the reverse order, then raise the errors that occurred."""
        owner, wanted = self._owner, self._wanted
        self._owner = self._wanted = None
        if owner is None or wanted is None:
            return
        wanted.put_nowait(None)
        if self._opening:
            # What is still being opened is no longer needed.
            owner.cancel()
        try:
            await self._closed(owner)
        finally:
            self._values = dict(self._given)

    async def _closed(self, owner: asyncio.Task[None]) -> None:
        """Wait until the owner has closed everything: half-closed is worse than late.

        Each closing is cancelled after `_CLOSE_SECONDS`; code that swallows that is left behind.
        """
        left = asyncio.get_running_loop().create_future()
        seconds = (len(self._closers) + 1) * _CLOSE_SECONDS + _UNWIND_SECONDS
        timer = self._clock.call_later(seconds, partial(left.set_result, None))
        waiting = asyncio.create_task(_first_of(owner, left))
        try:
            await seen_through(waiting)
        finally:
            timer.cancel()
        if owner.done():
            await seen_through(owner)
            return
        _log.error(
            "closing of dependency %s left behind: it did not end within %g s",
            self._busy_with,
            seconds,
            extra={"dependency": self._busy_with, "seconds": seconds},
        )
        leave_to_itself(owner)

    async def get(self, provider: Provider) -> Any:
        """Return the value of a provider, which is opened if necessary.

        Raises:
            DependencyError: It could not be opened, or no worker is running.
        """
        if provider in self._values:
            return self._values[provider]
        if self._wanted is None:
            raise DependencyError(name_of(provider), "nothing opens it outside a worker; pass it as an argument")
        if self._owner is None:
            # Cancelled by others; what it had opened it has closed.
            self.start()
            return await self.get(provider)
        opening = self._opening.get(provider)
        if opening is None:
            opening = self._opening[provider] = asyncio.get_running_loop().create_future()
            self._look_again(provider, opening, 0.0)
            self._wanted.put_nowait(provider)
        # Others may wait for the same dependency.
        return await asyncio.shield(opening)

    def _look_again(self, provider: Provider, opening: asyncio.Future[Any], waited: float) -> None:
        """Log that a dependency takes long to open, less and less often; give it up after `_OPEN_SECONDS`."""
        pause = min(max(waited, _SLOW_SECONDS), _OPEN_SECONDS - waited)

        def look() -> None:
            if waited + pause >= _OPEN_SECONDS:
                opening.set_exception(DependencyError(name_of(provider), f"not opened within {_OPEN_SECONDS:g} s"))
                opening.exception()
                return
            _log.warning(
                "dependency %s is still being opened after %g s",
                name_of(provider),
                waited + pause,
                extra={"dependency": name_of(provider), "seconds": waited + pause},
            )
            self._look_again(provider, opening, waited + pause)

        timer = self._clock.call_later(pause, look, housekeeping=True)
        opening.add_done_callback(lambda _: timer.cancel())

    async def filled(self, missing: Mapping[str, Dependency], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Add the missing dependencies to keyword arguments."""
        filled = dict(kwargs)
        for name, wanted in missing.items():
            filled[name] = await self.get(wanted.provider)
        return filled

    # ---- the owner -------------------------------------------------------------------------------------------

    async def _own(self, wanted: asyncio.Queue[Provider | None]) -> None:
        closers = self._closers = []
        try:
            while (provider := await wanted.get()) is not None:
                opening = self._opening[provider]
                try:
                    self._busy_with = name_of(provider)
                    value = await self._value(closers, provider)
                    if not opening.done():
                        opening.set_result(value)
                except BaseException as error:
                    # A provider may raise anything; the caller gets the error, if it still waits.
                    failed = DependencyError(name_of(provider), f"opening it raised {type(error).__name__}")
                    failed.__cause__ = error
                    trim(failed)
                    if not opening.done():
                        opening.set_exception(failed)
                        opening.exception()
                    if _being_cancelled() or not isinstance(error, Exception | asyncio.CancelledError):
                        raise
                finally:
                    self._opening.pop(provider, None)
        finally:
            if self._wanted is wanted:
                # Not by `close`: others have cancelled it. What it had opened is opened anew when it is needed.
                self._owner, self._values = None, dict(self._given)
                self._give_up_opening()
            await self._close_all(closers)

    def _give_up_opening(self) -> None:
        opening, self._opening = self._opening, {}
        for provider, future in opening.items():
            if not future.done():
                future.set_exception(DependencyError(name_of(provider), "the task that opens it was cancelled"))
                future.exception()

    async def _value(self, closers: list[tuple[str, Closer]], provider: Provider) -> Any:
        if provider in self._values:
            return self._values[provider]
        source = self._instead.get(provider, provider)
        arguments = {name: await self._value(closers, own.provider) for name, own in dependencies_of(source).items()}
        value = self._values[provider] = await _opened(closers, source, arguments)
        return value

    async def _close_all(self, closers: list[tuple[str, Closer]]) -> None:
        """Close in the reverse order. An error of one does not affect the others, nor does one that takes too long."""
        errors: list[Exception] = []
        while closers:
            self._busy_with, close = closers.pop()
            deadline = Deadline(self._clock, _CLOSE_SECONDS)
            try:
                async with deadline:
                    closing = close()
                    if inspect.isawaitable(closing):
                        await closing
            except Exception as error:  # noqa: BLE001  (raised below, when all are closed)
                if deadline.expired:
                    _log.error(
                        "closing of dependency %s cancelled: it took longer than %g s",
                        self._busy_with,
                        _CLOSE_SECONDS,
                        extra={"dependency": self._busy_with, "seconds": _CLOSE_SECONDS},
                    )
                else:
                    errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise ExceptionGroup("dependencies could not be closed", errors)


async def _first_of(*futures: asyncio.Future[None]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _opened(closers: list[tuple[str, Closer]], provider: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    if inspect.isasyncgenfunction(provider):
        opened = asynccontextmanager(provider)(**arguments)
        value = await opened.__aenter__()
        closers.append((name_of(provider), lambda: opened.__aexit__(None, None, None)))
        return value
    if inspect.isgeneratorfunction(provider):
        held = contextmanager(provider)(**arguments)
        value = held.__enter__()
        closers.append((name_of(provider), lambda: held.__exit__(None, None, None)))
        return value
    value = provider(**arguments)
    return await value if inspect.iscoroutine(value) else value


def _parameters(fn: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(fn).parameters
    except (TypeError, ValueError):
        # Some classes and functions written in C have no signature.
        return {}
