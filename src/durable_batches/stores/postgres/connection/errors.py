"""What the driver's errors mean: each becomes one of the library's, with what to do about it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import asyncpg

from durable_batches.errors import (
    ConfigurationError,
    DurableBatchesError,
    FactRejectedError,
    StoreAccessError,
    StoreCorruptError,
    StoreFullError,
    StoreLockedError,
    StoreReadOnlyError,
    StoreUnavailableError,
)

__all__ = ["is_lost", "pooled", "translate", "translated"]


@contextmanager
def translated(where: str) -> Generator[None]:
    """Within: the driver's errors become the library's, with what to do about them."""
    try:
        yield
    except DurableBatchesError:
        raise
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise translate(error, where) from error
    except TimeoutError as error:
        raise StoreUnavailableError(
            f"the database {where} has not answered in time; check the server and the network"
        ) from error
    except OSError as error:
        raise StoreUnavailableError(
            f"the database {where} cannot be reached: {error}; check that the server runs, and its address"
        ) from error
    except (OverflowError, UnicodeEncodeError) as error:
        raise FactRejectedError(f"the database {where} cannot store a value: {type(error).__name__}") from error


_LOST_CLASSES: Final = ("08", "57")
"""Classes of SQLSTATE: errors of the connection, and what an operator did."""


def is_lost(error: BaseException) -> bool:
    """Whether the connection was lost with this error, so that it is unknown what was done."""
    return (getattr(error, "sqlstate", None) or "08")[:2] in _LOST_CLASSES


def translate(error: Exception, where: str) -> DurableBatchesError:
    """Make of a driver's error, which has a `sqlstate` where it is the server's, the library's."""
    state = str(getattr(error, "sqlstate", None) or "")
    said = _one_line(error)
    match state:
        case "55P03":
            return StoreLockedError(where)
        case "25006":
            return StoreReadOnlyError(
                f"the database {where} cannot be written ({said}); connect to the primary, not to a replica"
            )
        case "42501":
            return StoreAccessError(
                f"the database {where} refuses: {said}; grant the role its rights, or have a role that has them "
                "run `durable-batches migrate`"
            )
        case "53100" | "54P01":
            return StoreFullError(
                f"the disk of the database {where} is full ({said}); make room, the work then goes on"
            )
        case "3D000":
            return StoreAccessError(f"{said} (at {where}); create it, or mend the DSN")
        case "3F000" | "42P01":
            return StoreCorruptError(
                f"tables of the store are missing in the database {where} ({said}); were they dropped? Reopening "
                "the store creates them, empty"
            )
        case "42703":
            return StoreCorruptError(
                f"the tables in the database {where} are not this library's ({said}); give it a schema of its own"
            )
        case "42P07":
            return StoreCorruptError(
                f"the schema in the database {where} has tables of another application ({said}); they were left as "
                "they are, so give another schema="
            )
        case "26000" | "42P05":
            # A statement that this connection has prepared is not there, or one that it has not is.
            return pooled(where)
        case "XX001" | "XX002":
            return StoreCorruptError(f"the database {where} is damaged ({said}); restore it from a backup")
        case _:
            pass
    match state[:2]:
        case "28":
            return StoreAccessError(f"the database {where} refuses the login: {said}; check the user and the password")
        case "22" | "23" | "54":
            return FactRejectedError(f"the database {where} refuses a value: {said}")
        case _:
            pass
    return StoreUnavailableError(f"the database {where} cannot be used now: {said}")


def _one_line(error: Exception) -> str:
    """Return the server's message without its details, which may hold a user's values, as the driver's messages do."""
    said = str(getattr(error, "message", None) or getattr(getattr(error, "diag", None), "message_primary", None) or "")
    if not said:
        said = "it does not fit its column" if isinstance(error, asyncpg.DataError) else str(error)
    return " ".join(said.split()) or type(error).__name__


def pooled(where: str) -> ConfigurationError:
    """Make the error that says what is wrong with a pooler in transaction mode."""
    return ConfigurationError(
        f"{where} is a pooler in transaction mode (as PgBouncer with pool_mode = transaction): what one transaction "
        "sets up, prepares or listens to is gone in the next. Connect to the server itself, or to a pool in session "
        "mode"
    )
