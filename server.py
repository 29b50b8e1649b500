"""The door: `mcp` for `fastmcp run server.py` and `fastmcp inspect server.py`; the command line for everybody else."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any

if _is_quiet := __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # reading the modules takes a second: Ctrl-C ends it, silently

from composition.cli import main
from composition.starting import gateway_from_environment
from providers.errors import ConfigurationError

if TYPE_CHECKING:
    from fastmcp import FastMCP


def _load() -> FastMCP[Any]:
    """The root server, with its mounts; nothing is connected before somebody asks."""
    try:
        return gateway_from_environment().mcp
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None


if _is_quiet:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if __name__ == "__main__":
    sys.exit(main())

mcp = _load()
