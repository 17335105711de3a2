"""Draws the state machine into the documentation, from the table that the library goes by.

A page says where with `<!-- state-diagram -->`. An SVG, made here: the site loads nothing from elsewhere.
"""

from __future__ import annotations

from html import escape

from durable_batches import EXTRACTION

MARKER = "<!-- state-diagram -->"
BOX_WIDTH, BOX_HEIGHT, GAP = 190, 34, 26
ENDS = ("completed", "failed", "cancelled")


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by mkdocs for each page."""
    return markdown.replace(MARKER, drawing() + "\n\n" + matrix()) if MARKER in markdown else markdown


def matrix() -> str:
    """The whole table: each state, and what may follow it."""
    table = EXTRACTION.transitions
    states = list(table)
    lines = ["| from \\ to | " + " | ".join(states[1:]) + " |", "| --- |" + " :-: |" * (len(states) - 1)]
    for state in states:
        cells = ["●" if following in table[state] else "" for following in states[1:]]
        lines.append(f"| **{state}** | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def drawing() -> str:
    """The way through the states, and the two ends that can be reached from all of them."""
    table = EXTRACTION.transitions
    way = [state for state in table if state not in ("failed", "cancelled")]
    height = len(way) * (BOX_HEIGHT + GAP)
    parts: list[str] = []
    for index, state in enumerate(way):
        top = index * (BOX_HEIGHT + GAP) + 2
        parts.append(box(10, top, state))
        if index + 1 < len(way):
            assert way[index + 1] in table[state]
            middle = 10 + BOX_WIDTH / 2
            parts.append(arrow(middle, top + BOX_HEIGHT, middle, top + BOX_HEIGHT + GAP))
    open_states = [state for state in way if {"failed", "cancelled"} <= table[state]]
    last = len(open_states) * (BOX_HEIGHT + GAP) - GAP
    rail = 10 + BOX_WIDTH + 40
    parts.append(line(rail, 2, rail, last))
    for index, _ in enumerate(open_states):
        y = index * (BOX_HEIGHT + GAP) + 2 + BOX_HEIGHT / 2
        parts.append(line(10 + BOX_WIDTH, y, rail, y))
    for offset, state in ((0.35, "failed"), (0.6, "cancelled")):
        y = last * offset
        parts += [box(rail + 60, y, state), arrow(rail, y + BOX_HEIGHT / 2, rail + 60, y + BOX_HEIGHT / 2)]
    return (
        f'<svg viewBox="0 0 {rail + 60 + BOX_WIDTH + 12} {height}" style="max-width: 34rem" role="img" '
        f'aria-label="The states of a batch">{"".join(parts)}</svg>'
    )


def box(x: float, y: float, state: str) -> str:
    """A state; ends have a double border."""
    shape = '<rect x="{}" y="{}" width="{}" height="{}" rx="6" fill="none" stroke="currentColor"/>'
    border = shape.format(x, y, BOX_WIDTH, BOX_HEIGHT)
    if state in ENDS:
        border += shape.format(x + 3, y + 3, BOX_WIDTH - 6, BOX_HEIGHT - 6)
    text = f'<text x="{x + BOX_WIDTH / 2}" y="{y + BOX_HEIGHT / 2 + 5}" text-anchor="middle" font-size="14"'
    return f'{border}{text} fill="currentColor">{escape(state)}</text>'


def line(x1: float, y1: float, x2: float, y2: float) -> str:
    """A line."""
    return f'<path d="M{x1},{y1} L{x2},{y2}" stroke="currentColor" fill="none"/>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """A line with a head."""
    if x1 == x2:
        head = f"M{x2 - 4},{y2 - 7} L{x2},{y2} L{x2 + 4},{y2 - 7}"
    else:
        head = f"M{x2 - 7},{y2 - 4} L{x2},{y2} L{x2 - 7},{y2 + 4}"
    return line(x1, y1, x2, y2) + f'<path d="{head}" stroke="currentColor" fill="none"/>'
