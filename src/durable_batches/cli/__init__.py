"""The command `durable-batches`. Needs the extra `cli`; without it, one line on stderr names the extra."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import cast

from durable_batches.errors import MissingExtraError

__all__ = ["main", "run"]

_NAME = "durable-batches"
_USAGE_ERROR = 2
_INTERRUPTED = 130


def main() -> None:
    """Run the command line of this process, and exit."""
    stdout: object = sys.stdout
    if isinstance(stdout, io.TextIOWrapper):
        # What a terminal cannot show is no reason to fail.
        cast("io.TextIOWrapper", stdout).reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command; return its exit code. Errors are printed on stderr, a line each."""
    try:
        for package in ("typer", "rich"):
            if find_spec(package) is None:
                raise MissingExtraError("cli", package)
        from durable_batches.cli.invoke import invoke

        with _log_on_stderr():
            return invoke(_NAME, arguments)
    except MissingExtraError as error:
        # No module of the command line may be there to print it.
        print(f"{_NAME}: {error}", file=sys.stderr)
        return _USAGE_ERROR
    except KeyboardInterrupt:
        return _INTERRUPTED


class _Handler(logging.Handler):
    """Prints warnings on what is stderr then: above a live display, where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        from durable_batches.terminal.lines import print_line

        print_line(self.format(record))


@contextmanager
def _log_on_stderr() -> Generator[None]:
    handler = _Handler(logging.WARNING)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
