"""The command `durable-batches`. Needs the extra `cli`; without it, one line on stderr names the extra."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from importlib.util import find_spec

from durable_batches.errors import DurableBatchesError, MissingExtraError

__all__ = ["main"]

USAGE_ERROR = 2
INTERRUPTED = 130


def main() -> None:
    """Run the command line of this process, and exit."""
    logging.basicConfig(level=logging.WARNING, format="durable-batches: %(message)s")
    try:
        app = _application()
        app()
    except MissingExtraError as error:
        sys.exit(_print_error(error, USAGE_ERROR))
    except DurableBatchesError as error:
        sys.exit(_print_error(error, 1))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _application() -> Callable[[], None]:
    for package in ("typer", "rich"):
        if find_spec(package) is None:
            raise MissingExtraError("cli", package)
    from durable_batches.cli.app import app

    return app


def _print_error(error: Exception, code: int) -> int:
    print(f"durable-batches: {error}", file=sys.stderr)
    return code
