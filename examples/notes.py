"""Tools of one's own: a FastMCP server that the gateway runs inside its own process.

    [servers.notes]
    python = "examples/notes.py:mcp"

Each client session has its own notes; they are gone when the session ends.
"""

from __future__ import annotations

from fastmcp import Context, FastMCP
from fastmcp.exceptions import ToolError

mcp: FastMCP = FastMCP("notes", instructions="Keeps short notes for the length of a session.")


async def _notes(context: Context) -> dict[str, str]:
    return dict(await context.get_state("notes") or {})


@mcp.tool
async def write(title: str, text: str, context: Context) -> str:
    """Write a note. A note with the same title is replaced."""
    await context.set_state("notes", await _notes(context) | {title: text})
    return f"noted '{title}'"


@mcp.tool
async def read(title: str, context: Context) -> str:
    """Read a note."""
    notes = await _notes(context)
    if title not in notes:
        raise ToolError(f"there is no note '{title}'; there are: {', '.join(sorted(notes)) or 'none'}")
    return notes[title]


@mcp.tool
async def titles(context: Context) -> list[str]:
    """The titles of all notes."""
    return sorted(await _notes(context))
