"""Tracebacks that begin where the user's code does.

Between the event loop and an activity's body lie some frames of the library, the same ones for every error. Whoever
reads a traceback looks for their own; so those that come before it are left out.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Final

from durable_batches.errors import DurableBatchesError

__all__ = ["related", "trim"]

_MACHINERY: Final = ("durable_batches", "asyncio", "concurrent", "contextlib", "threading")
"""The library, and what may lie between it and the user's code: the thread that a sync activity runs in, for one."""

_AS_THE_USERS: Final = tuple(f"durable_batches.{name}" for name in "cli extraction script terminal testing".split())
"""The rooms of the library that are as the user's own code: examples, commands, and help for tests."""


def trim(error: BaseException) -> None:
    """Have the tracebacks of an error, of what it came from, and of what its groups hold begin with the user's code.

    The library's own errors say themselves what happened; their tracebacks end with the user's code, too.
    """
    for part in related(error):
        part.__traceback__ = _trimmed(part)


def related(error: BaseException) -> Iterator[BaseException]:
    """The error, what it came from, and what its groups hold; each once."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        part = waiting.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        waiting += [part.__cause__, part.__context__]
        if isinstance(part, BaseExceptionGroup):
            waiting += part.exceptions  # pyright: ignore[reportUnknownMemberType]


def _trimmed(error: BaseException) -> TracebackType | None:
    # Who cancelled it is not in the traceback anyway; only where it was at that moment.
    tells_nothing_more = isinstance(error, DurableBatchesError | CancelledError)
    first = error.__traceback__
    while first is not None and _is_machinery(first.tb_frame):
        first = first.tb_next
    if first is None:
        # All of it is the library's. Were it a mistake of the library's, that would be what one has to see.
        return None if tells_nothing_more else error.__traceback__
    return _without_tail(first) if tells_nothing_more else first


def _without_tail(first: TracebackType) -> TracebackType:
    """A copy up to the last frame that is not the library's; the entries themselves may be another error's, too."""
    entries: list[TracebackType] = []
    entry: TracebackType | None = first
    while entry is not None:
        entries.append(entry)
        entry = entry.tb_next
    while _is_machinery(entries[-1].tb_frame):
        entries.pop()
    copied: TracebackType | None = None
    for entry in reversed(entries):
        copied = TracebackType(copied, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    assert copied is not None
    return copied


def _is_machinery(frame: FrameType) -> bool:
    module: str = frame.f_globals.get("__name__", "")
    return _is_within(module, _MACHINERY) and not _is_within(module, _AS_THE_USERS)


def _is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
