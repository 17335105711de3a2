"""Runs a command, and turns whatever ends it early into a line on stderr and an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final, Protocol, runtime_checkable

import typer

from durable_batches.cli.app import app
from durable_batches.cli.exits import CommandError, Exit, ReaderLeftError, exit_code_of
from durable_batches.cli.output import flush, leave_stdout
from durable_batches.errors import DurableBatchesError, MissingExtraError
from durable_batches.terminal.lines import print_line

__all__ = ["invoke"]

_HELP: Final = "NoArgsIsHelpError"


@runtime_checkable
class _UsageError(Protocol):
    """What typer raises for a command line that it cannot parse. Its class is click's, or typer's own copy of it."""

    exit_code: int

    def format_message(self) -> str: ...

    def show(self) -> None: ...


class _Command(Protocol):
    """What typer makes of an application."""

    def main(self, args: Sequence[str] | None, prog_name: str | None, *, standalone_mode: bool) -> object: ...


def invoke(name: str, arguments: Sequence[str]) -> int:
    """Run a command; return its exit code.

    Args:
        name: The name of the program.
        arguments: The command and its options.

    Raises:
        MissingExtraError: An optional dependency is not installed.
    """
    try:
        code: object = _command().main(list(arguments), prog_name=name, standalone_mode=False)
        flush()
    except MissingExtraError:
        raise
    except DurableBatchesError as error:
        print_line(str(error))
        return exit_code_of(error)
    except CommandError as error:
        print_line(str(error))
        return error.code
    except ReaderLeftError:
        leave_stdout()
        return Exit.READER_LEFT
    except typer.Abort:
        return Exit.INTERRUPTED
    except Exception as error:
        if not isinstance(error, _UsageError):
            raise
        return _refuse(error)
    return code if isinstance(code, int) else Exit.DONE


@cache
def _command() -> _Command:
    """Make the command out of the signatures of all commands' functions, which takes longer than most of them run."""
    return typer.main.get_command(app)


def _refuse(error: _UsageError) -> int:
    if type(error).__name__ == _HELP:
        error.show()
    else:
        context = getattr(error, "ctx", None)
        path = getattr(context, "command_path", "durable-batches")
        print_line(f"{error.format_message().rstrip('.')} (see {path} --help)")
    return error.exit_code
