"""How a chat client starts this gateway: the one place that knows.

`serving` (the command `config`) and `connecting` come in; nobody is called.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from composition.clients.kinds import Client

ROOT = Path(__file__).resolve().parent.parent.parent

NAME = "apollos"
"""What the gateway is called in a client's configuration."""

_MORE: dict[str, dict[str, Any]] = {
    "claude-code": {"type": "stdio"},
    "vscode": {"type": "stdio"},
    "zed": {"source": "custom"},
}


def gateway_entry(client: Client | None = None, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The entry, with absolute paths: a desktop program has neither our folder nor our PATH."""
    uv = shutil.which("uv")
    command = [uv, "run", "--directory", str(ROOT), "server.py"] if uv else [sys.executable, str(ROOT / "server.py")]
    entry: dict[str, Any] = {
        **(_MORE.get(client.kind, {}) if client else {}),
        "command": command[0],
        "args": command[1:],
    }
    if named := environ.get("APOLLOS_SERVERS"):
        entry["env"] = {"APOLLOS_SERVERS": str(Path(named).expanduser().absolute())}
    return entry
