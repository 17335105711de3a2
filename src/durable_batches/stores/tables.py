"""The stores' tables as SQLAlchemy `MetaData`: for the host application's own queries, and for Alembic.

Needs SQLAlchemy, which comes with the extra `postgres`; no other module of the library imports this one. The store
creates and upgrades the tables when it is opened, or `durable-batches migrate` does. Only read them: the library's
guarantees depend on their contents.
"""

from __future__ import annotations

from typing import Any, Final

from durable_batches.errors import MissingExtraError
from durable_batches.stores.columns import BIGINT, BOOLEAN, BYTES, INTEGER, SMALLINT, TABLES, TEXT, TEXTS, Backend, Type

try:
    from sqlalchemy import (
        BigInteger,
        Boolean,
        Column,
        Integer,
        LargeBinary,
        MetaData,
        PrimaryKeyConstraint,
        SmallInteger,
        Table,
        Text,
        UniqueConstraint,
    )
    from sqlalchemy.dialects.postgresql import ARRAY
    from sqlalchemy.types import TypeEngine
except ModuleNotFoundError as _missing:
    if _missing.name != "sqlalchemy":
        raise
    raise MissingExtraError("postgres", "sqlalchemy") from _missing

__all__ = ["postgres_tables", "sqlite_tables"]

_TYPES: Final[dict[Type, TypeEngine[Any]]] = {
    SMALLINT: SmallInteger(),
    INTEGER: Integer(),
    BIGINT: BigInteger(),
    BOOLEAN: Boolean(),
    TEXT: Text(),
    TEXTS: ARRAY(Text()),
    BYTES: LargeBinary(),
}


def postgres_tables(schema: str | None = "durable_batches") -> MetaData:
    """Return the tables of a `PostgresStore`.

    Args:
        schema: The store's `schema`; None for the default schema of the connection, which SQLAlchemy and Alembic
            report as no schema.

    Returns:
        A new `MetaData` that contains only the store's tables.
    """
    return _tables("postgres", schema)


def sqlite_tables() -> MetaData:
    """Return the tables of a `SQLiteStore`.

    Returns:
        A new `MetaData` that contains only the store's tables.
    """
    return _tables("sqlite", None)


def _tables(backend: Backend, schema: str | None) -> MetaData:
    metadata = MetaData(schema=schema)
    for table in TABLES:
        constraints = [UniqueConstraint(*names) for names in table.unique]
        if table.primary_key:
            constraints.append(PrimaryKeyConstraint(*table.primary_key))  # type: ignore[arg-type]
        Table(
            table.name,
            metadata,
            *(
                Column(column.name, _TYPES[column.type], nullable=column.nullable)
                for column in table.in_backend(backend)
            ),
            *constraints,
        )
    return metadata
