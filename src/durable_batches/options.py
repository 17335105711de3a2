"""Checks of options: a value of a wrong type is refused where it is given, with a sentence that says what to give.

A duration is a `timedelta` everywhere. A number in its place is refused, since nobody can see whether it means seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final, SupportsIndex, cast

from durable_batches.errors import ConfigurationError

__all__ = [
    "check_callable",
    "check_choice",
    "check_clock",
    "check_dependencies",
    "check_duration",
    "check_flag",
    "check_function",
    "check_instance",
    "check_integer",
    "check_iterable",
    "check_labels",
    "check_moment",
    "check_names",
    "check_number",
    "check_subclass",
    "check_subclasses",
    "check_text",
    "wrong_duration",
]

Refusal = type[ConfigurationError]


def wrong_duration(value: object) -> str:
    """Say why a value is no duration, and what to give."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"must be a timedelta, not a number; give a timedelta: timedelta(seconds={value!r})"
    return f"must be a timedelta, not {_kind(value)}"


def check_duration(name: str, value: object, *, optional: bool = False, error: Refusal = ConfigurationError) -> None:
    """Refuse what is no `timedelta` (nor None, where that is allowed)."""
    if not (isinstance(value, timedelta) or (optional and value is None)):
        raise error(f"{name} {wrong_duration(value)}")


def check_integer(name: str, value: object, *, optional: bool = False, error: Refusal = ConfigurationError) -> None:
    """Refuse what is no `int`, nor stands for one as NumPy's do; True and False are none here."""
    if isinstance(value, bool) or not (isinstance(value, SupportsIndex) or (optional and value is None)):
        raise error(f"{name} must be an int, not {_kind(value)}")


def check_number(name: str, value: object, *, optional: bool = False, error: Refusal = ConfigurationError) -> None:
    """Refuse what is neither an `int` nor a `float`; True and False are none here."""
    if isinstance(value, bool) or not (isinstance(value, int | float) or (optional and value is None)):
        raise error(f"{name} must be a number, not {_kind(value)}")


def check_flag(name: str, value: object, *, error: Refusal = ConfigurationError) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise error(f"{name} must be True or False, not {_kind(value)}")


def check_text(name: str, value: object, *, optional: bool = False, error: Refusal = ConfigurationError) -> None:
    """Refuse what is no `str`."""
    if not (isinstance(value, str) or (optional and value is None)):
        raise error(f"{name} must be a str, not {_kind(value)}")


def check_choice(name: str, value: object, choices: Collection[str], *, optional: bool = False) -> None:
    """Refuse what is none of these words."""
    if optional and value is None:
        return
    check_text(name, value)
    if value not in choices:
        raise ConfigurationError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


def check_moment(name: str, value: object, *, optional: bool = False) -> None:
    """Refuse what is no `datetime`, and one without a zone, of which nobody can see what moment it is."""
    if optional and value is None:
        return
    if not isinstance(value, datetime):
        raise ConfigurationError(f"{name} must be a datetime, not {_kind(value)}")
    if value.utcoffset() is None:
        raise ConfigurationError(f"{name} must be an aware datetime; give it a zone: datetime.now(UTC), for example")


def check_labels(name: str, value: object, *, optional: bool = False) -> None:
    """Refuse what is no mapping of `str` to `str`."""
    if optional and value is None:
        return
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{name} must be a Mapping, not {_kind(value)}")
    labels = cast("Mapping[object, object]", value)
    for each in (*labels, *labels.values()):
        if not isinstance(each, str):
            raise ConfigurationError(f"{name} must have names and values of str, not {_kind(each)}")


def check_dependencies(name: str, value: object) -> None:
    """Refuse what is no mapping by provider: a key that is no function, a name perhaps, would replace nothing."""
    check_instance(name, value, Mapping, optional=True)
    for provider in cast("Mapping[object, object]", value or {}):
        check_callable(f"each provider in {name}", provider)


def check_iterable(name: str, value: object) -> None:
    """Refuse what cannot be iterated; a single `str` can be, and is none all the same."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise ConfigurationError(f"{name} must be an iterable of items, not {_kind(value)}")


def check_clock(value: object) -> None:
    """Refuse a `clock=` that lacks what a `Clock` has, which the pure core must not import."""
    if value is not None and (isinstance(value, type) or not all(hasattr(value, name) for name in _OF_A_CLOCK)):
        raise ConfigurationError(f"clock must be a Clock, not {_kind(value)}")


def check_callable(name: str, value: object, *, optional: bool = False, error: Refusal = ConfigurationError) -> None:
    """Refuse what cannot be called."""
    if not (callable(value) or (optional and value is None)):
        raise error(f"{name} must be a function, not {_kind(value)}")


def check_function(name: str, value: object, *, optional: bool = False, error: Refusal = ConfigurationError) -> None:
    """Refuse what cannot be called, and a class: called with an error, say, it would make an object, and no answer."""
    if isinstance(value, type):
        raise error(f"{name} must be a function, not {_kind(value)}; an object of it may be one: {value.__name__}()")
    check_callable(name, value, optional=optional, error=error)


def check_instance(
    name: str,
    value: object,
    kinds: type | tuple[type, ...],
    *,
    optional: bool = False,
    error: Refusal = ConfigurationError,
) -> None:
    """Refuse what is no object of one of these classes: the class itself, too, whose parentheses were forgotten."""
    if not (isinstance(value, kinds) or (optional and value is None)):
        wanted = " or ".join(_with_article(kind.__name__) for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
        forgotten = isinstance(value, type) and issubclass(value, kinds)
        raise error(f"{name} must be {wanted}, not {_kind(value)}{'; add the parentheses' if forgotten else ''}")


def check_names(name: str, value: object, *, error: Refusal = ConfigurationError) -> None:
    """Refuse what is no tuple (or list) of `str`; a single `str` is none, though it can be iterated."""
    if not _holds_only(value, (tuple, list), lambda each: isinstance(each, str)):
        example = f"; give a tuple: ({value!r},)" if isinstance(value, str) else ""
        raise error(f"{name} must be a tuple of str, not {_kind(value)}{example}")


def check_subclass(name: str, value: object, parent: type, *, error: Refusal = ConfigurationError) -> None:
    """Refuse what is no subclass of this class."""
    if not _is_subclass(value, parent):
        raise error(f"{name} must be a subclass of {parent.__name__}, not {_kind(value)}")


def check_subclasses(name: str, value: object, parent: type, *, error: Refusal = ConfigurationError) -> None:
    """Refuse what is no tuple of subclasses of this class; a tuple in it is taken as `isinstance` takes it."""

    def fits(each: object) -> bool:
        return _is_subclass(each, parent) or _holds_only(each, (tuple,), fits)

    if not _holds_only(value, (tuple,), fits):
        example = f"; give a tuple: ({value.__name__},)" if isinstance(value, type) else ""
        raise error(f"{name} must be a tuple of subclasses of {parent.__name__}, not {_kind(value)}{example}")


_OF_A_CLOCK: Final = ("alarm", "boot", "call_later", "jitter", "now", "sleep", "tolerance")


def _holds_only(value: object, kinds: tuple[type, ...], fits: Callable[[object], bool]) -> bool:
    if not isinstance(value, kinds):
        return False
    members = cast("Iterable[object]", value)
    return all(map(fits, members))


def _is_subclass(value: object, parent: type) -> bool:
    return isinstance(value, type) and issubclass(value, parent)


def _kind(value: object) -> str:
    """Name a value's type; the value itself may be a secret."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return _with_article(type(value).__name__)


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiouAEIO' else 'a'} {noun}"
