"""ARCHITECTURE.md and CONTRIBUTING.md speak of what there is."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "durable_batches"


def layout() -> dict[str, list[Path]]:
    """The folders of the layout, each with what it names; the name before two blanks, or several names."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    block = re.findall(r"^```\nsrc/durable_batches/\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0]
    named: dict[str, list[Path]] = {}
    open_folders: list[Path] = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        columns = re.split(r" {2,}", line.strip())
        folder = Path(*open_folders[:depth])
        # Two files of the ground share a line, each with its description.
        names = [name for column in columns[::2] for name in column.split()] if depth == 0 else columns[0].split()
        for name in names:
            named.setdefault(str(folder), []).append(folder / name.removesuffix("/"))
        if names[-1].endswith("/"):
            open_folders = [*open_folders[:depth], Path(names[-1])]
    return named


def test_the_layout_names_what_there_is() -> None:
    paths = [path for paths in layout().values() for path in paths]
    assert len(paths) > 60
    missing = [str(path) for path in paths if not any((PACKAGE / f"{path}{suffix}").exists() for suffix in ("", ".py"))]
    assert missing == []


def test_the_layout_names_every_module() -> None:
    named = {str(path).removesuffix(".py") for paths in layout().values() for path in paths}
    there = {str(path.relative_to(PACKAGE).with_suffix("")) for path in PACKAGE.rglob("*.py")}
    there |= {str(path.parent.relative_to(PACKAGE)) for path in PACKAGE.rglob("__init__.py")} - {"."}
    # Described in words, and __init__ by its folder.
    aside = re.compile(r"(testing|extraction|cli)/|(.*/)?__init__$")
    assert sorted(name for name in there - named if not aside.match(name)) == []


def test_every_target_is_in_the_table() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):[^#\n]*## ", makefile, re.MULTILINE)
    table = re.findall(r"^\| (`.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(re.findall(r"`([a-z-]+)`", " ".join(table))) == sorted({*targets} - {"help"})
