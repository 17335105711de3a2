"""HTML of what a notebook shows: tables and bars in the notebook's own colours, with every text of others escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from durable_batches.printable import printable

__all__ = ["Cell", "Html", "bar", "block", "numbers", "table"]


class Html(str):
    """HTML, in which the texts of others are escaped already."""

    __slots__ = ()


Cell: TypeAlias = "str | int | float | Html"


def _html_of(cell: Cell) -> str:
    # It brings a large table, which only notebooks need.
    from html import escape

    return cell if isinstance(cell, Html) else escape(printable(str(cell)))


def block(heading: Cell, *parts: Html) -> str:
    """Return a heading and what is below it."""
    return f'<div style="overflow-x: auto"><p><strong>{_html_of(heading)}</strong></p>{"".join(parts)}</div>'


def table(columns: Sequence[Cell], rows: Sequence[Sequence[Cell]]) -> Html:
    """Return rows in columns; nothing where there are none."""
    if not rows:
        return Html()
    head = _row("th", columns)
    body = "".join(_row("td", row) for row in rows)
    return Html(f"<table><thead>{head}</thead><tbody>{body}</tbody></table>")


def _row(tag: str, cells: Sequence[Cell]) -> str:
    # Notebooks align them at the right otherwise.
    shown = "".join(f'<{tag} style="text-align: left">{_html_of(cell)}</{tag}>' for cell in cells)
    return f"<tr>{shown}</tr>"


def numbers(named: Mapping[str, int]) -> Html:
    """Return the numbers that are not 0, with their names."""
    shown = {name: number for name, number in named.items() if number}
    return table(list(shown), [list(shown.values())] if shown else [])


def bar(done: float, total: float) -> Html:
    """Return how much of a total is done, as a bar; of nothing, all is."""
    return Html(f'<progress max="{total if total > 0 else 1:g}" value="{done if total > 0 else 1:g}"></progress>')
