"""Trim tracebacks so that they begin in the user's code.

Between the event loop and an activity's body are some frames of the library, the same for every error. Users look
for frames of their own code, so those above it are removed.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Final

from durable_batches.errors import DurableBatchesError

__all__ = ["is_machinery", "own_attribute", "related", "set_context", "trim"]

_MACHINERY: Final = ("durable_batches", "asyncio", "concurrent", "contextlib", "threading")
"""The library, and modules between it and the user's code, such as those of the thread of a sync activity."""

_AS_THE_USERS: Final = tuple(f"durable_batches.{name}" for name in "cli extraction script terminal testing".split())
"""The packages of the library that count as user code: examples, commands, and tools for tests."""


def trim(error: BaseException) -> None:
    """Trim the tracebacks of an error, of its causes, and of the members of its groups to the user's code.

    The library's own errors explain themselves; their tracebacks also end with the user's code.
    """
    for part in related(error):
        # Not by an assignment, which a class of the user's may refuse (a frozen dataclass).
        BaseException.with_traceback(part, _trimmed(part))


def own_attribute(error: BaseException, name: str) -> Any:
    """Read an attribute that every exception has, whatever its class makes of attributes."""
    return BaseException.__getattribute__(error, name)


def set_context(error: BaseException, context: BaseException | None) -> None:
    """Set what an error was raised from, also where its class refuses assignments."""
    BaseException.__setattr__(error, "__context__", context)


def related(error: BaseException) -> Iterator[BaseException]:
    """List the error, its causes, and the members of its groups; each once."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        part = waiting.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        waiting += [own_attribute(part, "__cause__"), own_attribute(part, "__context__")]
        if isinstance(part, BaseExceptionGroup):
            waiting += part.exceptions  # pyright: ignore[reportUnknownMemberType]


def _trimmed(error: BaseException) -> TracebackType | None:
    # The canceller is not in the traceback, only the place at that moment.
    tells_nothing_more = isinstance(error, DurableBatchesError | CancelledError)
    traceback: TracebackType | None = own_attribute(error, "__traceback__")
    first = traceback
    while first is not None and is_machinery(first.tb_frame):
        first = first.tb_next
    if first is None:
        # All frames are the library's: if this is a bug of the library, they are needed.
        return None if tells_nothing_more else traceback
    return _without_tail(first) if tells_nothing_more else first


def _without_tail(first: TracebackType) -> TracebackType:
    """Copy a traceback up to the last frame outside the library; its entries may be shared with another error."""
    entries: list[TracebackType] = []
    entry: TracebackType | None = first
    while entry is not None:
        entries.append(entry)
        entry = entry.tb_next
    while is_machinery(entries[-1].tb_frame):
        entries.pop()
    copied: TracebackType | None = None
    for entry in reversed(entries):
        copied = TracebackType(copied, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    assert copied is not None
    return copied


def is_machinery(frame: FrameType) -> bool:
    """Return whether the frame is the library's, or between it and the user's code."""
    module: str = frame.f_globals.get("__name__", "")
    return _is_within(module, _MACHINERY) and not _is_within(module, _AS_THE_USERS)


def _is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
