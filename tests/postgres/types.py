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

_ARRAYS: Final = frozenset({199, 1000, 1001, 1005, 1007, 1016, 1022, 1185, 2951, 3807})
"""Of json, bool, bytea, int2, int4, int8, float8, timestamptz, uuid and jsonb."""

_Answer: TypeAlias = Any
_Ask: TypeAlias = Callable[[Any, Iterable[int], float | None], Awaitable[_Answer]]


def remember_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have connections share what they are told of the server's own types."""
    ask: _Ask = getattr(Connection, _ASK)
    known: frozenset[int] = frozenset()
    answer: _Answer = None

    async def ask_once(connection: Any, typeoids: Iterable[int], timeout: float | None) -> _Answer:
        nonlocal known, answer
        oids = frozenset(typeoids)
        if any(oid >= _FIRST_OF_USERS for oid in oids):
            return await ask(connection, oids, timeout)
        if not oids <= known:
            # All at once: which of them a connection meets first depends on its first statement.
            wanted = known | oids | _ARRAYS
            answer = await ask(connection, wanted, timeout)
            known = wanted
        return answer

    monkeypatch.setattr(Connection, _ASK, ask_once)
