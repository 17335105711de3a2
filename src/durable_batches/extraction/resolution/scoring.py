"""Pairs scored by splink, page by page: the weight of each pair, and the part of it that each field has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from durable_batches.extraction.resolution.database import Connection, load, rows, write_page
from durable_batches.extraction.resolution.settings import Settings
from durable_batches.extraction.resolution.training import ResolutionModel, all_levels

__all__ = ["Scorer", "link_columns"]

_COMMON_VALUES: Final = 100.0
"""Values that the share among random pairs counts for, beside those that records have."""


class Scorer:
    """Score pairs of the records in the table `rec`.

    Args:
        connection: The database.
        settings: What is compared.
        model: The model.
    """

    def __init__(self, connection: Connection, settings: Settings, model: ResolutionModel) -> None:
        splink = load("splink")
        self._connection = connection
        self._settings = settings
        said = json.loads(model.splink)
        self._api: Any = splink.DuckDBAPI(connection)
        self._linker: Any = splink.Linker(self._api.register("rec"), said, log_level=None)
        columns = ", ".join(settings.columns)
        connection.execute(f"create or replace temp table profile as select distinct {columns} from rec")
        for (column, levels), comparison in zip(all_levels(settings).items(), said["comparisons"], strict=True):
            if levels.by_frequency:
                self._count_values(column, comparison["comparison_levels"][levels.same]["u_probability"])
        connection.execute("drop table profile")

    def _count_values(self, column: str, share_of_same: float) -> None:
        """Tell splink how common a value is among profiles, drawn to how common equal values are."""
        self._connection.execute(
            f"create or replace table tf_{column} as select {column}, "
            f"(count(*) - 1 + {_COMMON_VALUES * share_of_same}) / (sum(count(*)) over () - 1 + {_COMMON_VALUES}) "
            f"tf_{column} from profile where {column} is not null group by {column}"
        )
        table = self._api.register(f"tf_{column}")
        self._linker.table_management.register_term_frequency_lookup(table, column)

    def page(self, pairs: str, file: Path, *, least: float | None) -> bytes:
        """Score the pairs that a query gives (l, r), and return them as Parquet.

        Args:
            pairs: The query.
            file: The file that is written, and removed.
            least: The weight from which a pair is kept; None: all are.
        """
        run = self._connection.execute
        run(f"create or replace table wanted as select l join_key_l, r join_key_r, '0' match_key from ({pairs})")
        blocked = self._api.table_to_splink_dataframe("__splink__blocked_id_pairs", "wanted")
        self._linker.table_management.register_blocked_pairs_for_predict(blocked)
        scored = self._linker.inference.predict(warning_mode="never")
        name: str = scored.physical_name
        there = {row[0] for row in rows(self._connection, f"describe {name}")}
        fields: list[str] = []
        for index, column in enumerate(self._settings.columns):
            adjusted = f" + mw_tf_adj_{column}" if f"mw_tf_adj_{column}" in there else ""
            fields.append(f"round(mw_{column}{adjusted}, 3)::float w{index}")
        kept = "true" if least is None else f"match_weight >= {least}"
        # Records by their ids: a later batch numbers them anew.
        found = write_page(
            self._connection,
            "select least(a.id, b.id) a, greatest(a.id, b.id) b, round(match_weight, 4)::double w, "
            f"{', '.join(fields)} "
            f"from {name} join rec a on a.rid = rid_l join rec b on b.rid = rid_r where {kept} order by 1, 2",
            file,
        )
        scored.drop_table_from_database_and_remove_from_cache()
        run("drop table wanted")
        return found


def link_columns(settings: Settings) -> str:
    """Return the columns of a table of links, for its creation."""
    fields = ", ".join(f"w{index} float" for index in range(len(settings.fields)))
    return f"a varchar, b varchar, w double, {fields}"
