"""Entries that start `mcp-remote` to reach a remote server: a bridge that the gateway does not need.

`reading` comes in; nobody is called. Only entries with a header of their own are taken apart: without one the bridge is
there to sign its user in, which the gateway does not do for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_BRIDGE = re.compile(r"mcp-remote(@[0-9A-Za-z.-]+)?")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def unbridged(raw: Mapping[str, Any]) -> dict[str, Any] | None:
    """The entry of the remote server itself, or None where this one is no bridge, or one that we cannot read."""
    args = raw.get("args")
    if not isinstance(args, list) or not all(isinstance(each, str) for each in args) or raw.get("command") != "npx":
        return None
    words = [word for word in args if word not in ("-y", "--yes")]
    if len(words) < 2 or not _BRIDGE.fullmatch(words[0]) or not words[1].startswith(("http://", "https://")):
        return None
    options = list(zip(words[2::2], words[3::2], strict=False))
    headers = [value.partition(":") for name, value in options if name == "--header"]
    transports = [value for name, value in options if name == "--transport"]
    if len(words) % 2 or not headers or any(name not in ("--header", "--transport") for name, _ in options):
        return None
    known = raw.get("env") if isinstance(raw.get("env"), dict) else {}
    filled = {name: _filled(value.strip(), known or {}) for name, _, value in headers}
    kept = {key: raw[key] for key in ("disabled", "enabled", "description", "timeout") if key in raw}
    kind = "sse" if any(transport.startswith("sse") for transport in transports) else "http"
    return {**kept, "type": kind, "url": words[1], "headers": filled}


def _filled(value: str, known: Mapping[str, Any]) -> str:
    """The bridge takes its variables from its own environment, which is mostly the entry's."""
    return _VARIABLE.sub(lambda found: str(known.get(found[1], found[0])), value)
