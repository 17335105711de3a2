"""The model: u counted by splink among random pairs, m and the prior estimated from counted patterns of candidates.

All is counted over profiles, records with different values: whom five hundred documents name has no common name, and
forty equal records prove nothing about each other. Samples are taken by hashes of ids, and figures rounded, so that the
model does not depend on the order of the records.
"""

from __future__ import annotations

import json
from typing import Any, Final

from pydantic import BaseModel

from durable_batches.extraction.resolution.database import Connection, load, number, rows
from durable_batches.extraction.resolution.expectation import LevelProbabilities, Pattern, estimate, smoothed
from durable_batches.extraction.resolution.fields import TextField
from durable_batches.extraction.resolution.levels import Levels, levels_of, starting_m, starting_u
from durable_batches.extraction.resolution.settings import Settings

__all__ = [
    "CountedPatterns",
    "RandomPairs",
    "ResolutionModel",
    "all_levels",
    "count_patterns",
    "count_random_pairs",
    "patterns_of",
    "train",
]

_SCALE: Final = 1_000_000


class RandomPairs(BaseModel, frozen=True, extra="forbid"):
    """How often each level occurs among random pairs.

    Attributes:
        pairs: The pairs.
        shares: For each field, a share a level; the first one, of missing values, is 0.
    """

    pairs: float
    shares: LevelProbabilities


class CountedPatterns(BaseModel, frozen=True, extra="forbid"):
    """How often each pattern occurs among candidates.

    Attributes:
        pairs: All pairs of profiles.
        patterns: The patterns, and how many candidates have each.
    """

    pairs: float
    patterns: tuple[tuple[Pattern, float], ...]


class ResolutionModel(BaseModel, frozen=True, extra="forbid"):
    """An estimated model.

    Attributes:
        version: The version of the steps that it was made by.
        records: The records that it was made from.
        rounds: The rounds of its estimation.
        converged: Whether the last one changed next to nothing.
        splink: The settings of splink with all of its probabilities, as JSON that splink loads.
    """

    version: str
    records: int
    rounds: int
    converged: bool
    splink: str

    @property
    def prior(self) -> float:
        """The probability that two records match of which nothing is known."""
        return float(json.loads(self.splink)["probability_two_random_records_match"])


def all_levels(settings: Settings) -> dict[str, Levels]:
    """Return the levels of each column."""
    return {column: levels_of(column, comparison) for column, comparison in settings.columns.items()}


def splink_settings(settings: Settings, m: LevelProbabilities, u: LevelProbabilities, prior: float) -> dict[str, Any]:
    """Return the settings of splink for a model."""
    return {
        "link_type": "dedupe_only",
        "unique_id_column_name": "rid",
        "retain_matching_columns": False,
        "retain_intermediate_calculation_columns": True,
        "probability_two_random_records_match": prior,
        "blocking_rules_to_generate_predictions": ["1=1"],  # none is used: candidates are handed in
        "linker_uid": "resolution",
        "comparisons": [
            {"output_column_name": column, "comparison_levels": _comparison_levels(column, levels, m[i], u[i])}
            for i, (column, levels) in enumerate(all_levels(settings).items())
        ],
    }


def _comparison_levels(column: str, levels: Levels, m: tuple[float, ...], u: tuple[float, ...]) -> list[dict[str, Any]]:
    missing = {
        "sql_condition": f"{column}_l is null or {column}_r is null",
        "label_for_charts": "missing",
        "is_null_level": True,
    }
    conditions = [*(level.condition for level in levels.agreeing), "ELSE"]
    said: list[dict[str, Any]] = [missing]
    for index, (label, condition) in enumerate(zip(levels.labels[1:], conditions, strict=True), start=1):
        level = {
            "sql_condition": condition,
            "label_for_charts": label,
            "m_probability": m[index],
            "u_probability": u[index],
        }
        if levels.by_frequency and index == levels.same:
            level |= {"tf_adjustment_column": column, "tf_adjustment_weight": 1.0}
        said.append(level)
    return said


def count_random_pairs(connection: Connection, settings: Settings) -> RandomPairs:
    """Have splink count the levels of random pairs of profiles."""
    splink = load("splink")
    columns = ", ".join(settings.columns)
    most = int((2 * settings.u_pairs) ** 0.5)
    connection.execute("set threads = 1")
    connection.execute(
        "create or replace table sampled as select * exclude (nth) from "
        f"(select *, row_number() over (partition by {columns} order by id) nth from rec) "
        f"where nth = 1 order by md5(id), id limit {most}"
    )
    profiles = number(connection, "select count(*) from sampled")
    levels = all_levels(settings)
    start_m, start_u = (tuple(map(start, levels.values())) for start in (starting_m, starting_u))
    if profiles < 2:
        connection.execute(f"set threads = {settings.threads}")
        return RandomPairs(pairs=0, shares=start_u)
    api = splink.DuckDBAPI(connection)
    linker = splink.Linker(api.register("sampled"), splink_settings(settings, start_m, start_u, 0.001), log_level=None)
    linker.training.estimate_u_using_random_sampling(
        max_pairs=4 * settings.u_pairs, min_count_per_level=None, num_chunks=1
    )
    counted: dict[str, Any] = linker.misc.save_model_to_json()
    connection.execute(f"set threads = {settings.threads}")
    connection.execute("drop table sampled")
    pairs = profiles * (profiles - 1) / 2
    shares = tuple(
        smoothed(
            (0.0, *(pairs * (level.get("u_probability") or 0.0) for level in said["comparison_levels"][1:])), start
        )
        for said, start in zip(counted["comparisons"], start_u, strict=True)
    )
    return RandomPairs(pairs=pairs, shares=shares)


def patterns_of(settings: Settings, pairs: str, *kept: str) -> str:
    """Return a query of the patterns of pairs: a column a field, with the level's number, and 0 for missing values.

    Args:
        settings: What is compared.
        pairs: A query of the numbers of their records, l and r, and of other columns.
        kept: The columns of that query that come first.
    """
    columns = settings.columns
    read = [*columns, *(f"{column}_words" for column, kind in columns.items() if isinstance(kind, TextField))]
    sides = ", ".join(f"{side}_side.{column} {column}_{side}" for column in read for side in "lr")
    levels = ", ".join(map(_level_number, all_levels(settings).items()))
    return (
        f"select {', '.join((*kept, levels))} from (select p.*, {sides} from ({pairs}) p "
        "join rec l_side on l_side.rid = p.l join rec r_side on r_side.rid = p.r) pairs"
    )


def count_patterns(connection: Connection, settings: Settings) -> CountedPatterns:
    """Count the patterns of the candidates, each pair of profiles once; of many candidates a sample is scaled up."""
    columns = ", ".join(settings.columns)
    connection.execute(
        f"create or replace table profile as select rid, min(rid) over (partition by {columns}) pid from rec"
    )
    profiles = number(connection, "select count(distinct pid) from profile")
    candidates = number(connection, "select count(*) from pair")
    share = min(1.0, settings.training_pairs / max(candidates, 1))
    pairs = (
        "select * from (select distinct least(a.pid, b.pid) l, greatest(a.pid, b.pid) r from pair "
        "join profile a on a.rid = pair.l join profile b on b.rid = pair.r where a.pid <> b.pid) "
        f"where hash(l * 7919::bigint + r) % {_SCALE} < {int(share * _SCALE)}"
    )
    found = rows(
        connection, f"select {columns}, count(*) from ({patterns_of(settings, pairs)}) group by all order by all"
    )
    connection.execute("drop table profile")
    return CountedPatterns(
        pairs=profiles * (profiles - 1) / 2,
        patterns=tuple((tuple(int(level) for level in row[:-1]), row[-1] / share) for row in found),
    )


def _level_number(column_and_levels: tuple[str, Levels]) -> str:
    column, levels = column_and_levels
    cases = " ".join(f"when {level.condition} then {i}" for i, level in enumerate(levels.agreeing, start=1))
    missing = f"{column}_l is null or {column}_r is null"
    return f"(case when {missing} then 0 {cases} else {len(levels.agreeing) + 1} end)::int {column}"


def train(
    settings: Settings, version: str, records: int, random: RandomPairs, counted: CountedPatterns
) -> ResolutionModel:
    """Estimate the model from what was counted."""
    levels = all_levels(settings).values()
    found = estimate(
        counted.patterns,
        start=tuple(map(starting_m, levels)),
        random_u=random.shares,
        sampled=random.pairs,
        pairs=counted.pairs,
    )
    said = splink_settings(settings, found.m, found.u, found.prior)
    return ResolutionModel(
        version=version,
        records=records,
        rounds=found.rounds,
        converged=found.converged,
        splink=json.dumps(said, sort_keys=True),
    )
