"""Candidate pairs: records with a key in common, counted before they are made.

A key of more records than the bound is split by the records' other keys, of other fields, twice at most. Of each key
that is split, every record is compared with its neighbours in the order of all values, too. So the number of candidates
grows with the number of records, however common a key is.
"""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel

from durable_batches.extraction.resolution.database import Connection, number, rows
from durable_batches.extraction.resolution.settings import Settings

__all__ = ["BlockingPlan", "make_candidates"]

_DEPTHS: Final = (1, 2, 3)


class BlockingPlan(BaseModel, frozen=True, extra="forbid"):
    """How candidates were found.

    Attributes:
        records: All records.
        keys: Different keys.
        pairs_of_keys: The pairs there would be if no key were split.
        split: The keys that were above the bound, and again of those that they were split into.
        left_out: How many times a record is in a key that was above the bound after two splits.
        pairs: The candidates.
    """

    records: int
    keys: int
    pairs_of_keys: int
    split: tuple[int, ...]
    left_out: int
    pairs: int


def make_candidates(connection: Connection, settings: Settings) -> BlockingPlan:
    """Make the table `pair` (l, r: numbers of records, l < r) out of the table `rec`, and say how.

    Pairs of which both records were there before are left out: they were scored then.
    """
    bound, run = settings.bound, connection.execute
    run(
        "create or replace temp table key0 as select rid, split_part(key, chr(31), 1) field, key, key last "
        "from (select rid, unnest(keys) key from rec)"
    )
    run("create or replace temp table usable (rid int, key varchar)")
    run("create or replace temp table neighbour (l int, r int)")
    keys, pairs = rows(
        connection,
        "select count(*), coalesce(sum(n * (n - 1) // 2), 0) from (select count(*) n from key0 group by key)",
    )[0]
    split: list[int] = []
    left_out = 0
    for depth in _DEPTHS:
        current = f"key{depth - 1}"
        run(f"create or replace temp table counted as select key, count(*) n from {current} group by key having n > 1")
        run(f"insert into usable select rid, key from {current} join counted using (key) where n <= {bound}")
        above = number(connection, f"select count(*) from counted where n > {bound}")
        if not above:
            break
        split.append(above)
        _add_neighbours(connection, settings, current)
        if depth == _DEPTHS[-1]:
            left_out = number(connection, f"select sum(n) from counted where n > {bound}")
            break
        run(
            f"create or replace temp table key{depth} as select b.rid, o.field, b.key || chr(30) || o.key as key, "
            f"o.key last from {current} b join counted using (key) join key0 o on o.rid = b.rid "
            f"where n > {bound} and o.key > b.last and o.field <> b.field"
        )
    run(
        "create or replace table pair as select p.l, p.r from (select a.rid l, b.rid r from usable a "
        "join usable b on a.key = b.key and a.rid < b.rid union select l, r from neighbour) p "
        "join rec a on a.rid = p.l join rec b on b.rid = p.r where a.fresh or b.fresh"
    )
    for table in ("usable", "neighbour", "counted", *(f"key{depth}" for depth in range(len(_DEPTHS)))):
        run(f"drop table if exists {table}")
    return BlockingPlan(
        records=number(connection, "select count(*) from rec"),
        keys=int(keys),
        pairs_of_keys=int(pairs),
        split=tuple(split),
        left_out=left_out,
        pairs=number(connection, "select count(*) from pair"),
    )


def _add_neighbours(connection: Connection, settings: Settings, current: str) -> None:
    ahead = ", ".join(f"lead(rid, {distance}) over w" for distance in range(1, settings.window + 1))
    order = ", ".join(settings.columns)
    connection.execute(
        f"insert into neighbour select distinct least(rid, o), greatest(rid, o) from (select rid, unnest([{ahead}]) o "
        f"from (select rid, key from {current} join counted using (key) where n > {settings.bound}) "
        f"join rec using (rid) window w as (partition by key order by {order}, id)) where o is not null"
    )
