"""The gateway's log: lines on stderr, without what is a credential.

`cli` sets it up before anything else runs. The MCP SDK writes the ids of its sessions into its log, and whoever has the
id of a session, and no authentication stands before it, has the session.
"""

from __future__ import annotations

import logging
import re
import sys

LIBRARIES = ("mcp", "fastmcp", "uvicorn", "watchfiles", "client")

_SESSION_ID = re.compile(r"\b[0-9a-f]{32}\b")
"""As the SDK makes them. A client may name any other text in its request, but that is nobody's session."""


def log_to_stderr(level: str) -> None:
    """Log from this level on; libraries from `warning` on, unless it is `debug`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Discreet("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    is_debug = level == "debug"
    for name in LIBRARIES:
        library = logging.getLogger(name)
        library.handlers.clear()  # FastMCP brings its own, which shows the arguments of calls in its tracebacks
        library.propagate = True
        library.setLevel(logging.DEBUG if is_debug else logging.WARNING)
    if not is_debug:
        handler.addFilter(_without_library_tracebacks)


class _Discreet(logging.Formatter):
    """Lines without session ids, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return _SESSION_ID.sub("…", super().format(record))


def _without_library_tracebacks(record: logging.LogRecord) -> bool:
    """A library's traceback may hold what a user sent; one line says that it happened."""
    if record.name.partition(".")[0] in ("mcp", "fastmcp", "uvicorn", "client"):
        record.exc_info, record.exc_text = None, None
    return True
