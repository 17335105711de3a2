"""Names and addresses, as a user gives them and as a statement or a message has them."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from durable_batches.errors import ConfigurationError

__all__ = ["checked_dsn", "checked_schema", "quoted", "quoted_text", "without_credentials"]

_LONGEST_NAME: Final = 63
"""Bytes; the server would cut a longer name off without a word."""


def checked_schema(schema: str) -> str:
    """Check the schema's name, which may be any that the server takes, since it is quoted everywhere.

    Raises:
        ConfigurationError: The server would not take it, or not as it stands.
    """
    if not isinstance(schema, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"schema must be a str, not {type(schema).__name__!r}")
    if not schema or "\0" in schema or any("\ud800" <= character <= "\udfff" for character in schema):
        raise ConfigurationError("schema must not be empty, and must not contain NUL or lone surrogates")
    if len(schema.encode()) > _LONGEST_NAME:
        raise ConfigurationError(f"schema must have at most {_LONGEST_NAME} bytes, not {len(schema.encode())}")
    if schema.startswith("pg_") or schema == "information_schema":
        raise ConfigurationError(f"the schema {schema!r} is the server's own; give another one")
    return schema


def quoted(name: str) -> str:
    """Quote a name for a statement, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def quoted_text(text: str) -> str:
    """Quote a text for a statement."""
    return "'" + text.replace("'", "''") + "'"


def checked_dsn(dsn: str) -> str:
    """Check a DSN, and return it as the driver takes it.

    Raises:
        ConfigurationError: It is none, or cannot be understood.
    """
    scheme, separator, rest = dsn.partition("://")
    plain = scheme.lower().removesuffix("+asyncpg")
    if not separator or plain not in ("postgresql", "postgres"):
        raise ConfigurationError(
            "a PostgresStore needs a DSN such as postgresql://user:password@host:5432/database, or an AsyncEngine; "
            f"this one begins with {scheme[:20]!r}"
            if separator
            else "a PostgresStore needs a DSN such as postgresql://user:password@host:5432/database, or an AsyncEngine"
        )
    if not _is_understood(f"{plain}://{rest}"):
        raise ConfigurationError(
            "the DSN cannot be understood; if its user or password holds characters such as : / ? # [ ] @, write them "
            "percent-encoded (urllib.parse.quote does it)"
        )
    return f"{plain}://{rest}"


_HOST: Final = re.compile(r"(\[[^\]]*\]|[^:]*)(:(?P<port>\d*))?")


def _is_understood(dsn: str) -> bool:
    """Whether it comes apart as it was meant to: a password with a `?` in it ends before that, and becomes a port."""
    try:
        parts = urlsplit(dsn)
        parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        return False
    hosts = [_HOST.fullmatch(host) for host in parts.netloc.rpartition("@")[2].split(",")]
    ports = [int(host["port"]) for host in hosts if host is not None and host["port"]]
    return None not in hosts and all(0 < port < 1 << 16 for port in ports) and not parts.fragment


def without_credentials(dsn: str) -> str:
    """Return host, port and database of a DSN: what messages may say."""
    rest = dsn.partition("://")[2].partition("?")[0]
    return rest.rpartition("@")[2] or "at the default address"
