"""What a resolution is computed with: part of the version of its steps, so that nothing of two settings is mixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from typing import Final

from durable_batches.extraction.resolution.fields import Comparison

__all__ = ["Settings", "version_of"]

_ALGORITHM: Final = "1"
"""Changes with the forms of values, the levels, the estimation, the blocking or the clustering."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How records are resolved.

    Attributes:
        fields: The comparisons, by the names of the fields.
        threshold: The probability from which a pair is a link.
        bound: The records that may have a key in common; a key of more is split by the records' other keys.
        window: Of a key that is split, each record is compared with so many neighbours as well.
        page_records: Records of a page.
        page_pairs: Pairs that are scored at once.
        u_pairs: Random pairs, about, that u is counted in.
        training_pairs: Candidate pairs that the model is estimated from.
        largest_component: The records of a component up to which all of its pairs are scored.
        floor: The weight in bits from which a scored candidate is kept.
        memory_mib: Memory of the database; what does not fit is written to disk.
        threads: Threads of the database.
    """

    fields: Mapping[str, Comparison]
    threshold: float = 0.5
    bound: int = 30
    window: int = 4
    page_records: int = 20_000
    page_pairs: int = 100_000
    u_pairs: int = 200_000
    training_pairs: int = 300_000
    largest_component: int = 1_000
    floor: float = -6.0
    memory_mib: int = 192
    threads: int = 2

    @property
    def columns(self) -> dict[str, Comparison]:
        """The comparisons by columns, which are numbered: a field's name may be a word of SQL."""
        return {f"c{number}": comparison for number, comparison in enumerate(self.fields.values())}


def version_of(settings: Settings) -> str:
    """Return the version of the steps: of another one nothing that is recorded is used.

    Memory and threads change no result, and are no part of it.
    """
    said = [
        _ALGORITHM,
        version("splink"),
        version("duckdb"),
        *(f"{name}={comparison!r}" for name, comparison in settings.fields.items()),
        *(
            f"{name}={value!r}"
            for name, value in vars(settings).items()
            if name not in ("fields", "memory_mib", "threads")
        ),
    ]
    return blake2b("\n".join(said).encode(), digest_size=6).hexdigest()
