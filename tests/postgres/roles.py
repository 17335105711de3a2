"""Roles of a server that have some of a schema's rights."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

from tests.postgres.databases import execute

READER: Final = ("USAGE ON SCHEMA {s}", "SELECT ON ALL TABLES IN SCHEMA {s}")


class Role:
    """A role of the server, with a schema's rights."""

    def __init__(self, dsn: str, schema: str) -> None:
        self.name = f"reader_{uuid4().hex[:12]}"
        self._dsn = dsn
        self._schema = schema
        parts = urlsplit(dsn)
        at = parts.netloc.rpartition("@")[2]
        self.dsn = urlunsplit(parts._replace(netloc=f"{self.name}:secret@{at}"))
        execute(dsn, f"CREATE ROLE \"{self.name}\" LOGIN PASSWORD 'secret'")

    def grant(self, *rights: str) -> None:
        for right in rights:
            execute(self._dsn, f'GRANT {right.replace("{s}", self._schema)} TO "{self.name}"')

    def drop(self) -> None:
        execute(self._dsn, f'DROP OWNED BY "{self.name}"', f'DROP ROLE "{self.name}"')
