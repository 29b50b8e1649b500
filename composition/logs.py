"""The gateway's log: lines on stderr, without what is a credential.

`cli` sets it up before anything else runs. The MCP SDK writes the ids of its sessions into its log, and whoever has the
id of a session, and no authentication stands before it, has the session.
"""

from __future__ import annotations

import logging
import re
import sys

OWN = ("composition", "providers", "server", "__main__")
LIBRARIES = ("mcp", "fastmcp", "uvicorn", "watchfiles", "client")
"""Of those that log much, below `debug` only what is wrong."""

_SESSION_ID = re.compile(r"\b[0-9a-f]{32}\b")
"""As the SDK makes them. A client may name any other text in its request, but that is nobody's session."""


def log_to_stderr(level: str) -> None:
    """Log from this level on; libraries from `warning` on, and from `info` on if it is `debug`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Discreet("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    handler.addFilter(_without_what_users_send)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in LIBRARIES:
        library = logging.getLogger(name)
        library.handlers.clear()  # FastMCP brings its own, which shows the arguments of calls in its tracebacks
        library.propagate = True
        library.setLevel(logging.INFO if level == "debug" else logging.WARNING)


class _Discreet(logging.Formatter):
    """Lines without session ids, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return _SESSION_ID.sub("…", super().format(record))


_NAME_OF_ERROR = re.compile(r"(?: *\| )?([A-Za-z_][A-Za-z0-9_.]*)(?=:|$)")
"""At the begin of a line of a traceback: only the error itself begins there, in a group of errors behind a bar."""


def _first_line(text: str) -> str:
    """Of a traceback, as uvicorn writes it when a start or an end fails, the name of the error: its words may be what
    a user sent."""
    first, _, rest = text.partition("\n")
    if "Traceback (most recent call last)" not in first:
        return first
    name = next((found[1] for line in rest.split("\n") if (found := _NAME_OF_ERROR.match(line))), "an error")
    return f"failed with {name} (its own words are left out: they may hold what a user sent)"


def _without_what_users_send(record: logging.LogRecord) -> bool:
    """Libraries write the arguments and results of calls into their debug lines, into what follows the first line of a
    warning, and into tracebacks; at any level one line of theirs says that something happened."""
    if record.name.partition(".")[0] in OWN:
        return True
    record.exc_info, record.exc_text = None, None
    record.msg, record.args = _first_line(record.getMessage()), None
    return record.levelno >= logging.INFO
