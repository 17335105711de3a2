"""Executors made of traps, which run calls at once or lose them; no processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from functools import partial
from typing import Any

__all__ = ["Engine", "Engines"]


class Engine(Executor):
    """`fate` says what becomes of its calls: "run", "soon", "hold", "break", "cancel", "hang" or an error."""

    def __init__(self, fate: Callable[[bytes], str | Exception], places: int) -> None:
        self._max_workers = places
        self.fate = fate
        self.broken = False
        self.ended = False
        self.running: list[Future[Any]] = []
        self.held: list[tuple[Future[Any], Callable[[], Any]]] = []
        self.most_at_once = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self.ended:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self.broken:
            raise BrokenExecutor("not usable any more")
        future: Future[Any] = Future()
        match self.fate(args[0]):
            case "run":
                future.set_running_or_notify_cancel()
                future.set_result(fn(*args))
            case "soon":
                # Runs for some turns of the event loop.
                future.set_running_or_notify_cancel()
                self.running.append(future)
                self._finish_in(3, future, lambda: fn(*args))
            case "hold":
                # Runs until `let_go`.
                future.set_running_or_notify_cancel()
                self.running.append(future)
                self.held.append((future, partial(fn, *args)))
            case "cancel":
                future.cancel()
                future.set_running_or_notify_cancel()
            case "hang":
                future.set_running_or_notify_cancel()
                self.running.append(future)
            case "break":
                self.running.append(future)
                self.lose()
            case Exception() as error:
                future.set_exception(error)
            case other:
                raise AssertionError(other)
        self.most_at_once = max(self.most_at_once, len(self.running))
        return future

    def _finish_in(self, turns: int, future: Future[Any], run: Callable[[], Any]) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._finish_in, turns - 1, future, run)
        elif not future.done():
            self.running.remove(future)
            future.set_result(run())

    def let_go(self) -> None:
        """Have the calls end that are held."""
        held, self.held = self.held, []
        for future, run in held:
            self._finish_in(0, future, run)

    def lose(self) -> None:
        """Break, with all calls that run."""
        self.broken = True
        for future in self.running:
            if not future.done():
                future.set_exception(BrokenExecutor("a process was terminated abruptly"))
        self.running.clear()
        self.held.clear()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.ended = True


class Engines:
    """Makes engines, and keeps them."""

    def __init__(self, fate: Callable[[bytes], str | Exception] = lambda call: "run", places: int = 2) -> None:
        self.fate = fate
        self.places = places
        self.made: list[Engine] = []

    def __call__(self) -> Engine:
        self.made.append(Engine(self.fate, self.places))
        return self.made[-1]
