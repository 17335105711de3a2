"""What the exit codes of `durable-batches` mean. The page about the command line has the same table."""

from __future__ import annotations

from enum import IntEnum

from durable_batches.errors import (
    BatchNotFoundError,
    ConfigurationError,
    DurableBatchesError,
    MissingExtraError,
    SchemaTooNewError,
    SchemaTooOldError,
    StoreCorruptError,
    StoreNotFoundError,
    StoreUnavailableError,
)

__all__ = ["CommandError", "Exit", "ReaderLeftError", "exit_code_of"]


class Exit(IntEnum):
    """An exit code. 3 to 5 are those of `BatchResult.exit_code`."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    DOCUMENTS_FAILED = 3
    BATCH_FAILED = 4
    BATCH_CANCELLED = 5
    NO_BATCH = 6
    NO_STORE = 7
    STORE_UNAVAILABLE = 8
    ENDED_BEFORE = 9
    INTERRUPTED = 130
    READER_LEFT = 141


class CommandError(Exception):
    """A command cannot do what it is asked for; the message is printed as a line.

    Args:
        message: What is wrong, and what to do.
        code: The exit code.
    """

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(message)
        self.code = code


class ReaderLeftError(Exception):
    """Nobody reads the output any more: `| head` has seen enough."""


def exit_code_of(error: DurableBatchesError) -> Exit:
    """Return the exit code of a command that an error of the library ended."""
    match error:
        case BatchNotFoundError():
            return Exit.NO_BATCH
        case ConfigurationError() | MissingExtraError():
            return Exit.USAGE
        case StoreNotFoundError() | StoreCorruptError() | SchemaTooOldError() | SchemaTooNewError():
            return Exit.NO_STORE
        case StoreUnavailableError():
            return Exit.STORE_UNAVAILABLE
        case _:
            return Exit.ERROR
