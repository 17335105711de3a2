"""Find the activities that a function names, before it runs.

Nothing is executed: only the function's code is read, and that of the functions of its module that it names.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from types import CellType, CodeType, FunctionType
from typing import Any, Final, NamedTuple, cast

from durable_batches.codec.shapes import is_dict, is_sequence
from durable_batches.runtime.activity import DurableActivity

__all__ = ["activities_named_in"]

_MISSING: Final = object()


def activities_named_in(fn: Callable[..., Any], *, containers: bool = False) -> Iterator[DurableActivity[..., Any]]:
    """List the activities that a function's code names: directly, as an attribute, or through another function.

    Args:
        fn: The function.
        containers: Whether those in a dict, list or tuple that it names are listed, too.
    """
    waiting = [inspect.unwrap(fn)]
    seen: set[int] = set()
    while waiting:
        function = waiting.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        for found in _unpacked(_named_in(function)) if containers else _named_in(function):
            # By `type`, since asking a proxy for its class may run code.
            if issubclass(type(found), DurableActivity):
                yield cast(DurableActivity[..., Any], found)
            elif type(found) is FunctionType and found.__module__ == function.__module__:
                waiting.append(found)


def _named_in(fn: Callable[..., Any]) -> Iterator[object]:
    # The code of a callable object is in its class.
    function = fn if hasattr(fn, "__code__") else type(fn).__call__
    code: CodeType | None = getattr(function, "__code__", None)
    if code is not None:
        known = _Names(function.__globals__, _closure(function, code))
        for part in _all_code(code):
            yield from _objects_in(part, known)


def _unpacked(found: Iterable[object]) -> Iterator[object]:
    for value in found:
        yield value
        if is_dict(value):
            yield from value.values()
        elif is_sequence(value):
            yield from value


class _Names(NamedTuple):
    """The values of a function's names."""

    of_module: Mapping[str, Any]
    of_closure: Mapping[str, Any]


def _objects_in(code: CodeType, names: _Names) -> Iterator[object]:
    found: Any = _MISSING
    for operation, name in _loads(code):
        match operation:
            case "LOAD_GLOBAL" | "LOAD_NAME":
                found = names.of_module.get(name, _MISSING)
            case "LOAD_DEREF" | "LOAD_CLASSDEREF":
                found = names.of_closure.get(name, _MISSING)
            case "LOAD_ATTR" | "LOAD_METHOD" if found is not _MISSING:
                found = inspect.getattr_static(found, name, _MISSING)
            case _:
                found = _MISSING
        if found is not _MISSING:
            yield found


@lru_cache(maxsize=256)
def _loads(code: CodeType) -> tuple[tuple[str, str], ...]:
    """List the instructions and the names that they load, "" for none.

    Each start of a worker asks several times for the same code, and taking code apart is slow. The values of the
    names may change; they are looked up each time.
    """
    return tuple(
        (instruction.opname, instruction.argval if isinstance(instruction.argval, str) else "")
        for instruction in dis.get_instructions(code)
        if instruction.opname != "EXTENDED_ARG"
    )


def _all_code(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _all_code(constant)


def _closure(fn: Callable[..., Any], code: CodeType) -> dict[str, Any]:
    cells: tuple[CellType, ...] = getattr(fn, "__closure__", None) or ()
    found: dict[str, Any] = {}
    for name, cell in zip(code.co_freevars, cells, strict=True):
        # A variable that is not set yet has an empty cell.
        with suppress(ValueError):
            found[name] = cell.cell_contents
    return found
