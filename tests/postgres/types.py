"""The descriptions of Postgres' own types, asked for once instead of on every connection.

asyncpg asks the server for the description of each array type that a connection meets, which takes a server as long
as a short test. A new connection is what most tests begin with, and these types are the same on every server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, TypeAlias

import pytest
from asyncpg.connection import Connection

_ASK: Final = "_introspect_types"

_FIRST_OF_USERS: Final = 16384
"""Object ids below this one are assigned when Postgres is built, and are the same everywhere."""

_Answer: TypeAlias = Any
_Ask: TypeAlias = Callable[[Any, Iterable[int], float | None], Awaitable[_Answer]]


def remember_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have connections share what they are told of the server's own types."""
    ask: _Ask = getattr(Connection, _ASK)
    known: dict[frozenset[int], _Answer] = {}

    async def ask_once(connection: Any, typeoids: Iterable[int], timeout: float | None) -> _Answer:
        oids = frozenset(typeoids)
        if any(oid >= _FIRST_OF_USERS for oid in oids):
            return await ask(connection, oids, timeout)
        if oids not in known:
            known[oids] = await ask(connection, oids, timeout)
        return known[oids]

    monkeypatch.setattr(Connection, _ASK, ask_once)
