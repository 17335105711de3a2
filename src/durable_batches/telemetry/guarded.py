"""Hooks that cannot harm: what a backend raises is logged, and the work goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar

__all__ = ["Guard"]

_log = logging.getLogger("durable_batches")

T = TypeVar("T")


class Guard:
    """Calls hooks, and logs what they raise, once a hook."""

    def __init__(self) -> None:
        self._failed: set[str] = set()

    def call(self, name: str, hook: Callable[[], T], default: T) -> T:
        """Call a hook; return the default where it raises."""
        try:
            return hook()
        except Exception as error:  # noqa: BLE001  (of a backend: the work does not depend on it)
            self.failed(name, error)
            return default

    def around(self, name: str, hook: Callable[[], AbstractContextManager[T]], default: T) -> _Around[T]:
        """Enter what a hook returns; yield the default where that cannot be done."""
        return _Around(self, name, hook, default)

    def failed(self, name: str, error: Exception) -> None:
        """Log what a hook has raised."""
        if name not in self._failed:
            self._failed.add(name)
            _log.error(
                "telemetry failed in %s, which is not logged again: %s",
                name,
                type(error).__name__,
                exc_info=error,
                extra={"hook": name, "error_type": type(error).__name__},
            )


class _Around(Generic[T]):
    __slots__ = ("_default", "_entered", "_guard", "_hook", "_name")

    def __init__(self, guard: Guard, name: str, hook: Callable[[], AbstractContextManager[T]], default: T) -> None:
        self._guard = guard
        self._name = name
        self._hook = hook
        self._default = default
        self._entered: AbstractContextManager[T, Any] | None = None

    def __enter__(self) -> T:
        try:
            manager = self._hook()
            yielded = manager.__enter__()
        except Exception as error:  # noqa: BLE001  (of a backend: the work does not depend on it)
            self._guard.failed(self._name, error)
            return self._default
        self._entered = manager
        return yielded

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave it; the error of the work passes on, whatever the hook makes of it."""
        if self._entered is None:
            return
        try:
            self._entered.__exit__(kind, error, trace)
        except Exception as raised:  # noqa: BLE001  (of a backend: the work does not depend on it)
            if raised is not error:
                self._guard.failed(self._name, raised)
