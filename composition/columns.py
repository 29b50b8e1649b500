"""Rows as columns of text, for every command that prints a table.

The commands come in, and print what they get. Nothing that a stranger wrote is left in it that a terminal would obey.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from providers.container_log import harmless

_GAP = "  "
_LEAST = 12
"""Of the last column, however narrow the terminal is."""


def in_columns(rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Rows in columns that are as wide as they have to be; the last one ends where its text ends.

    Args:
        rows: all as long as the first, which is the header.
        width: of a line, in signs: the last column is cut to it. None: nothing is cut.
    """
    cells = [[harmless(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]) - 1)]
    room = None if width is None else max(_LEAST, width - sum(widths) - len(_GAP) * len(widths))
    return [
        _GAP.join([*(cell.ljust(wide) for cell, wide in zip(row, widths, strict=False)), cut(row[-1], room)]).rstrip()
        for row in cells
    ]


def cut(text: str, width: int | None) -> str:
    """A text of at most so many signs."""
    return text if width is None or len(text) <= width else text[: width - 1].rstrip() + "…"


def terminal_width() -> int | None:
    """How many signs fit into a line on stdout; None where that is no terminal, whose reader wants the whole."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
