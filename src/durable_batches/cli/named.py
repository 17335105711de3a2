"""Objects of the user's modules, as `module:name` names them on the command line."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from durable_batches.cli.exits import CommandError, Exit

__all__ = ["is_named_object", "made_by", "object_at"]

_OBJECT: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_named_object(target: str) -> bool:
    """Return whether this has the form `module:name`."""
    return _OBJECT.fullmatch(target) is not None


def object_at(target: str, what: str) -> object:
    """Import a module, and return one of its objects. Modules are looked for in the current folder, too.

    Args:
        target: `module:name`; either may have dots.
        what: What the object is to be, for messages ("store").

    Raises:
        CommandError: There is no such module or object, or the module cannot be imported.
    """
    if not is_named_object(target):
        raise CommandError(f"{target!r} names no {what}; give module:name", Exit.USAGE)
    module, _, name = target.partition(":")
    # A command's own folder is on the path, but not the current one.
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: object = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise _import_failed(module, error) from error
        raise CommandError(
            f"there is no module {error.name!r} for the {what} {target!r}; modules are looked for in the current "
            "folder, too",
            Exit.USAGE,
        ) from error
    except (Exception, SystemExit) as error:
        raise _import_failed(module, error) from error
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise CommandError(f"the module {module!r} has no {name!r}", Exit.USAGE) from error
    return found


def made_by(function: Callable[[], object], target: str) -> object:
    """Call a function of the user's that makes the object.

    Raises:
        CommandError: It raises an error.
    """
    try:
        return function()
    except Exception as error:
        raise CommandError(f"{target} failed: {type(error).__name__}: {error}", Exit.USAGE) from error


def _import_failed(module: str, error: BaseException) -> CommandError:
    reason = f"it ends the process ({error})" if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
    return CommandError(f"the module {module!r} cannot be imported: {reason}", Exit.USAGE)
