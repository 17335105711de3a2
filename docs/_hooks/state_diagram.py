"""Draw the state machine into the documentation, from the library's own transition table.

A page marks the place with `<!-- state-diagram -->`. The SVG is made here: the site loads nothing from elsewhere.
"""

from __future__ import annotations

from html import escape

from durable_batches import EXTRACTION

MARKER = "<!-- state-diagram -->"
BOX_WIDTH, BOX_HEIGHT, GAP = 190, 34, 26
ENDS = ("completed", "failed", "cancelled")


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by mkdocs for each page."""
    return markdown.replace(MARKER, drawing() + "\n\n" + successors()) if MARKER in markdown else markdown


def successors() -> str:
    """List for each state the states that may follow it."""
    lines = ["| state | may be followed by |", "| --- | --- |"]
    for state, following in EXTRACTION.transitions.items():
        in_order = [other for other in EXTRACTION.transitions if other in following]
        lines.append(f"| **{state}** | {', '.join(in_order) or 'nothing: it is terminal'} |")
    return "\n".join(lines)


def drawing() -> str:
    """Draw the sequence of the states, and the two terminal states that can be reached from all of them."""
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
    """Draw a state; terminal states have a double border."""
    shape = '<rect x="{}" y="{}" width="{}" height="{}" rx="6" fill="none" stroke="currentColor"/>'
    border = shape.format(x, y, BOX_WIDTH, BOX_HEIGHT)
    if state in ENDS:
        border += shape.format(x + 3, y + 3, BOX_WIDTH - 6, BOX_HEIGHT - 6)
    text = f'<text x="{x + BOX_WIDTH / 2}" y="{y + BOX_HEIGHT / 2 + 5}" text-anchor="middle" font-size="14"'
    return f'{border}{text} fill="currentColor">{escape(state)}</text>'


def line(x1: float, y1: float, x2: float, y2: float) -> str:
    """Draw a line."""
    return f'<path d="M{x1},{y1} L{x2},{y2}" stroke="currentColor" fill="none"/>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """Draw an arrow."""
    if x1 == x2:
        head = f"M{x2 - 4},{y2 - 7} L{x2},{y2} L{x2 + 4},{y2 - 7}"
    else:
        head = f"M{x2 - 7},{y2 - 4} L{x2},{y2} L{x2 - 7},{y2 + 4}"
    return line(x1, y1, x2, y2) + f'<path d="{head}" stroke="currentColor" fill="none"/>'
