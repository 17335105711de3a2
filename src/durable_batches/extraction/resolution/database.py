"""The database that records are compared in: DuckDB, in a file of its own that is scratch and never state."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from durable_batches import MissingExtraError
from durable_batches.extraction.resolution.fields import Comparison, EmbeddingField, NumberField, SetField, TextField
from durable_batches.extraction.resolution.folding import tokens
from durable_batches.extraction.resolution.keys import Row, Value
from durable_batches.extraction.resolution.settings import Settings

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["Connection", "exists", "load", "number", "open_database", "quoted", "record_page", "rows", "write_page"]


class Answer(Protocol):
    """The answer to a statement."""

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return all rows."""
        ...


class Connection(Protocol):
    """A connection of DuckDB; of one thread."""

    def execute(self, query: str, parameters: Sequence[object] = ..., /) -> Answer:
        """Run a statement."""
        ...

    def register(self, view_name: str, python_object: object, /) -> object:
        """Make an Arrow table a view."""
        ...

    def unregister(self, view_name: str, /) -> object:
        """Remove the view."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


def load(name: str) -> ModuleType:
    """Import a package of the extra `resolution`.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name is not None and missing.name.partition(".")[0] == name:
            raise MissingExtraError("resolution", name) from missing
        raise


def open_database(folder: Path, settings: Settings) -> Connection:
    """Open a new database of this process in a folder. What other processes have left there is not used."""
    file = folder / f"scratch-{os.getpid()}.duckdb"
    file.unlink(missing_ok=True)
    connection: Connection = load("duckdb").connect(str(file))
    for name, value in {
        "autoinstall_known_extensions": "false",
        "enable_progress_bar": "false",
        "memory_limit": f"'{settings.memory_mib}MiB'",
        "preserve_insertion_order": "true",
        "temp_directory": quoted(folder / "spill"),
        "threads": f"{settings.threads}",
    }.items():
        connection.execute(f"set {name} = {value}")
    return connection


def rows(connection: Connection, query: str) -> list[tuple[Any, ...]]:
    """Return all rows of a query. To fetch one alone would leave the connection in use."""
    return connection.execute(query).fetchall()


def number(connection: Connection, query: str) -> int:
    """Return the one number that a query gives."""
    return int(rows(connection, query)[0][0])


def exists(connection: Connection, table: str) -> bool:
    """Whether there is such a table."""
    return bool(number(connection, f"select count(*) from information_schema.tables where table_name = '{table}'"))


def quoted(value: object) -> str:
    """Return a text as a literal of SQL."""
    return "'" + str(value).replace("'", "''") + "'"


def write_page(connection: Connection, query: str, file: Path) -> bytes:
    """Write what a query gives as Parquet, and return the file's bytes."""
    connection.execute(f"copy ({query}) to {quoted(file)} (format parquet, compression zstd)")
    try:
        return file.read_bytes()
    finally:
        file.unlink()


def record_page(records: Iterable[Row], columns: dict[str, Comparison], file: Path) -> None:
    """Write records as Parquet: a column a field, the words of texts, and the keys."""
    pa, parquet = load("pyarrow"), load("pyarrow.parquet")
    kept = list(records)
    text, texts = pa.string(), pa.list_(pa.string())
    table: dict[str, Any] = {"id": pa.array([row.id for row in kept], text)}
    for index, (column, comparison) in enumerate(columns.items()):
        values = [row.values[index] for row in kept]
        match comparison:
            case NumberField():
                table[column] = pa.array(values, pa.float64())
            case SetField():
                table[column] = pa.array(values, texts)
            case EmbeddingField():
                table[column] = pa.array(values, pa.list_(pa.float64()))
            case TextField():
                table[column] = pa.array(values, text)
                table[f"{column}_words"] = pa.array([_words(value) for value in values], texts)
            case _:
                table[column] = pa.array(values, text)
    table["keys"] = pa.array([row.keys for row in kept], texts)
    parquet.write_table(pa.table(table), file, compression="zstd")


def _words(value: Value) -> list[str] | None:
    return sorted(tokens(value)) if isinstance(value, str) else None
