"""The summary that the demonstration prints of its graph."""

from __future__ import annotations

from collections.abc import Sequence

from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from durable_batches.extraction import Ranked, Resolution
from durable_batches.printable import printable

__all__ = ["print_summary"]

_KINDS = {
    "document": "documents",
    "package": "packages",
    "person": "people",
    "organization": "organisations",
    "license": "licences",
    "url": "URLs",
}
_RELATIONS = {
    "depends_on": "depends on",
    "written_by": "written by",
    "licensed_under": "licensed under",
    "mentions": "mentions",
}
_SHOWN_PEOPLE = 5


def print_summary(resolution: Resolution, console: Console) -> None:
    """Print the numbers, the rankings, and some of the people who were linked."""
    summary = resolution.summary
    console.print()
    console.print(Text(f"Knowledge graph of {summary.documents} documents", style="bold"))
    entities = _table("Entities", "in documents", "distinct")
    for kind, words in _KINDS.items():
        if kind in summary.entities:
            entities.add_row(words, f"{summary.occurrences[kind]:,}", f"{summary.entities[kind]:,}")
    relations = _table("Relations", "")
    for kind, words in _RELATIONS.items():
        if kind in summary.relations:
            relations.add_row(words, f"{summary.relations[kind]:,}")
    console.print(_beside([entities, relations]))
    rankings = [
        _ranking("Most required", summary.most_required),
        _ranking("Required, also by extras", summary.most_depended_on),
        _ranking("People with most packages", summary.most_packages),
        _ranking("Licences", summary.licenses),
    ]
    console.print()
    console.print(_beside([table for table in rankings if table]))
    _print_people(resolution, console)


def _print_people(resolution: Resolution, console: Console) -> None:
    if not resolution.people:
        return
    number = len(resolution.people)
    console.print()
    heading = "1 person is" if number == 1 else f"{number} people are"
    console.print(Text(f"{heading} named in several ways, for example:", style="bold"))
    for person in resolution.people[:_SHOWN_PEOPLE]:
        ways = [*(name for name in person.names if name != person.name), *person.emails]
        line = f"  {person.name}: {', '.join(ways)} ({'; '.join(person.reasons)})"
        console.print(printable(line), markup=False, soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _ranking(title: str, ranked: Sequence[Ranked]) -> Table | None:
    if not ranked:
        return None
    table = _table(title, "")
    for entry in ranked:
        table.add_row(Text(printable(entry.name)), str(entry.count))
    return table


def _beside(tables: Sequence[RenderableType]) -> RenderableType:
    return Columns(tables, padding=(1, 4))
