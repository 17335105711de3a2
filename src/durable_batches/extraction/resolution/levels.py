"""The levels at which two values may agree, as conditions in the SQL of DuckDB, best first.

Each has the share of matches that it is expected to have before anything was counted. Edit distances are taken of short
texts only: of long ones they cost most of the time, and shared words say more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, assert_never

from durable_batches.extraction.resolution.expectation import LevelProbabilities
from durable_batches.extraction.resolution.fields import (
    Comparison,
    DateField,
    EmailField,
    EmbeddingField,
    ExactField,
    IdentifierField,
    NameField,
    NumberField,
    SetField,
    TextField,
)

__all__ = ["Level", "Levels", "levels_of", "starting_m", "starting_u"]

_SAME: Final = "same"
_U_OF_SAME: Final = 0.01
_U_OF_OTHERS: Final = 0.02


@dataclass(frozen=True)
class Level:
    """A level of agreement.

    Attributes:
        label: Its name in reasons.
        condition: When two values agree so, and on no better level.
        m: The share of matches that is expected to have it.
    """

    label: str
    condition: str
    m: float


@dataclass(frozen=True)
class Levels:
    """The levels of one field.

    Attributes:
        agreeing: The levels of values that agree in some way. All others are "different".
        by_frequency: Whether the first level called "same" weighs the more, the rarer the value is.
    """

    agreeing: tuple[Level, ...]
    by_frequency: bool

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of all levels, by their numbers; the first one is of missing values."""
        return ("missing", *(level.label for level in self.agreeing), "different")

    @property
    def same(self) -> int:
        """The number of the level of equal values; 0: there is none."""
        return self.labels.index(_SAME) if _SAME in self.labels else 0


def starting_m(levels: Levels) -> tuple[float, ...]:
    """Return m before anything was counted."""
    known = tuple(level.m for level in levels.agreeing)
    return (0.0, *known, 1 - sum(known))


def starting_u(levels: Levels) -> tuple[float, ...]:
    """Return u before anything was counted."""
    known = tuple(_U_OF_SAME if level.label == _SAME else _U_OF_OTHERS for level in levels.agreeing)
    return (0.0, *known, 1 - sum(known))


def all_starting_m(fields: tuple[Levels, ...]) -> LevelProbabilities:
    """Return m of all fields before anything was counted."""
    return tuple(map(starting_m, fields))


def levels_of(column: str, comparison: Comparison) -> Levels:
    """Return the levels of a comparison, for the values of a column in the two rows of a pair, `_l` and `_r`."""
    left, right = f"{column}_l", f"{column}_r"
    typo = f"(damerau_levenshtein({left}, {right}) <= 1 and least(length({left}), length({right})) > 3)"
    alike = f"jaro_winkler_similarity({left}, {right})"
    same = f"{left} = {right}"
    match comparison:
        case NameField():
            initial = f"{left}[1] = {right}[1] and (length({left}) = 1 or length({right}) = 1)"
            return Levels(
                (
                    # Before equal values: an initial that equals an initial is no name that equals a name.
                    Level("initial", initial, 0.03),
                    Level(_SAME, same, 0.75),
                    Level("typo", f"{typo} or {alike} >= 0.92", 0.12),
                    Level("similar", f"{alike} >= 0.8", 0.05),
                ),
                by_frequency=True,
            )
        case TextField():
            one, other = f"{column}_words_l", f"{column}_words_r"
            shared = f"len(list_intersect({one}, {other}))"
            short = f"greatest(length({left}), length({right})) <= 40"
            return Levels(
                (
                    Level(_SAME, same, 0.5),
                    Level(
                        "nearly",
                        f"{shared} >= 0.7 * (len({one}) + len({other}) - {shared}) "
                        f"or ({short} and ({typo} or {alike} >= 0.95))",
                        0.25,
                    ),
                    Level(
                        "similar",
                        f"{shared} >= 0.6 * least(len({one}), len({other})) or ({short} and {alike} >= 0.88)",
                        0.12,
                    ),
                    Level("partly", f"{shared} >= 0.3 * least(len({one}), len({other}))", 0.06),
                ),
                by_frequency=True,
            )
        case ExactField():
            return Levels((Level(_SAME, same, 0.85), Level("typo", typo, 0.1)), by_frequency=True)
        case DateField():
            distance = f"damerau_levenshtein({left}, {right})"
            year = f"{left}[1:4] = {right}[1:4] or {distance} <= 2"
            return Levels(
                (Level(_SAME, same, 0.85), Level("typo", f"{distance} <= 1", 0.08), Level("year", year, 0.04)),
                by_frequency=True,
            )
        case EmailField():
            domains = f"split_part({left}, '@', 2) = split_part({right}, '@', 2)"
            close = (
                f"damerau_levenshtein({left}, {right}) <= 1 and {domains} and length(split_part({left}, '@', 1)) > 5"
            )
            return Levels((Level(_SAME, same, 0.7), Level("typo", close, 0.05)), by_frequency=True)
        case IdentifierField():
            return Levels((Level(_SAME, same, 0.85),), by_frequency=True)
        case NumberField(near=near, close=close, relative=relative):
            unit = f" * greatest(abs({left}), abs({right}))" if relative else ""
            bounds = ((near, "near", 0.1), (close, "close", 0.05))
            return Levels(
                (
                    Level(_SAME, same, 0.8),
                    *(
                        Level(label, f"abs({left} - {right}) <= {bound!r}{unit}", m)
                        for bound, label, m in bounds
                        if bound
                    ),
                ),
                by_frequency=False,
            )
        case SetField():
            shared = f"len(list_intersect({left}, {right}))"
            return Levels(
                (Level("two", f"{shared} >= 2", 0.4), Level("one", f"{shared} >= 1", 0.45)), by_frequency=False
            )
        case EmbeddingField(same=least, similar=similar):
            cosine = f"list_cosine_similarity({left}, {right})"
            return Levels(
                (Level(_SAME, f"{cosine} >= {least!r}", 0.6), Level("similar", f"{cosine} >= {similar!r}", 0.25)),
                by_frequency=False,
            )
        case _:
            assert_never(comparison)
