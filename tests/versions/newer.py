"""A version of the library that is to come: the same code with one event, one column and one generation more."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from durable_batches.lifecycle.records import GENERATION
from durable_batches.version import VERSION

__all__ = ["make_newer"]

NEW_EVENT: Final = '''
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DocumentConsidered(_Event):
    """Of this version only."""

    document_id: str
    tag: Literal["document_considered"] = "document_considered"


BatchEvent: TypeAlias = (
    DocumentConsidered
    | BatchCreated'''


def _after(version: str) -> str:
    major, minor, *_ = version.split(".")
    return f"{major}.{int(minor) + 1}.0"


CHANGES: Final = {
    "version.py": [(f'VERSION = "{VERSION}"', f'VERSION = "{_after(VERSION)}"')],
    "lifecycle/records.py": [(f"GENERATION: Final = {GENERATION}", f"GENERATION: Final = {GENERATION + 1}")],
    "lifecycle/events.py": [("\nBatchEvent: TypeAlias = (\n    BatchCreated", NEW_EVENT)],
    # Written at each start of a document, so that the older version meets it everywhere.
    "lifecycle/batch.py": [
        (
            '        if self.core["started_at"] is None:\n',
            '        self.emit(("document_considered", (execution.document_id,)))\n'
            '        if self.core["started_at"] is None:\n',
        )
    ],
    # A feature that needs this version is asked for by a label.
    "lifecycle/batch_core.py": [
        (
            "        needs=needs_of(definition),\n",
            '        needs=int(definition.config.metadata.get("needs", 0)),\n',
        )
    ],
}
"""What is replaced in each file; each text is there once."""

MIGRATIONS: Final = {
    "sqlite": "ALTER TABLE batch ADD COLUMN added_later TEXT NOT NULL DEFAULT 'later';\n",
    "postgres": "ALTER TABLE {s}.batch ADD COLUMN added_later text NOT NULL DEFAULT 'later';\n",
}


def make_newer(package: Path, folder: Path) -> Path:
    """Copy a package into a folder and change it there.

    Args:
        package: The folder `durable_batches`.
        folder: Where the copy goes, to be named in a `PYTHONPATH`.
    """
    copy = folder / package.name
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in CHANGES.items():
        path = copy / name
        text = path.read_text("utf-8")
        for before, after in changes:
            assert text.count(before) == 1, f"{name} has {text.count(before)} times {before!r}"
            text = text.replace(before, after)
        path.write_text(text, "utf-8")
    for dialect, script in MIGRATIONS.items():
        scripts = copy / "stores" / "migrations" / dialect
        number = max(int(script.name.partition("_")[0]) for script in scripts.glob("*.sql")) + 1
        (scripts / f"{number:04}_later.sql").write_text(script, "utf-8")
    return folder
