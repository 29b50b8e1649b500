"""The chat clients that we know: where each keeps its servers, under which key, and how it writes them.

`reading`, `connecting` and the commands come in; nobody is called. A client that is added here can be imported from and
connected to.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Variables(StrEnum):
    """How a client writes a variable of the environment in a text."""

    NONE = "none"
    BRACED = "${VAR}"
    ENV = "${env:VAR}"
    DOLLAR = "$VAR"


@dataclass(frozen=True)
class Client:
    """One client.

    Attributes:
        kind: what it is called on our command line.
        key: where its servers stand in its file.
        comments: whether it reads comments and trailing commas.
        variables: how it writes variables.
        folders: its file below the user's home on Linux, macOS and Windows; `%APPDATA%` and `$XDG_CONFIG_HOME` stand
            for these folders.
        url_means: what an address without a word about its transport is.
    """

    kind: str
    title: str
    key: str
    folders: tuple[str, str, str]
    comments: bool = False
    variables: Variables = Variables.NONE
    url_means: str = "streamable_http"

    def path(self, platform: str = sys.platform, environ: Mapping[str, str] = os.environ) -> Path:
        """Its file on this machine, whether it is there or not."""
        home = Path(environ.get("USERPROFILE" if platform == "win32" else "HOME") or Path.home())
        place = {"darwin": 1, "win32": 2}.get(platform, 0)
        first, *rest = self.folders[place].split("/")
        match first:
            case "%APPDATA%":
                base = Path(environ.get("APPDATA") or home / "AppData" / "Roaming")
            case "$XDG_CONFIG_HOME":
                named = environ.get("XDG_CONFIG_HOME", "")
                base = Path(named) if named.startswith("/") else home / ".config"
            case _:
                base = home / first
        return base.joinpath(*rest)


_SUPPORT = "Library/Application Support"
_CLINE = "Code/User/globalStorage/saoudrizwan.claude-dev/settings/cline_mcp_settings.json"


def _everywhere(path: str) -> tuple[str, str, str]:
    return path, path, path


def _by_system(path: str) -> tuple[str, str, str]:
    return f"$XDG_CONFIG_HOME/{path}", f"{_SUPPORT}/{path}", f"%APPDATA%/{path}"


CLIENTS = {
    client.kind: client
    for client in (
        Client("claude-desktop", "Claude Desktop", "mcpServers", _by_system("Claude/claude_desktop_config.json")),
        Client("claude-code", "Claude Code", "mcpServers", _everywhere(".claude.json"), variables=Variables.BRACED),
        Client("cursor", "Cursor", "mcpServers", _everywhere(".cursor/mcp.json"), True, Variables.ENV),
        Client("vscode", "VS Code", "servers", _by_system("Code/User/mcp.json"), True, Variables.ENV),
        Client(
            "windsurf", "Windsurf", "mcpServers", _everywhere(".codeium/windsurf/mcp_config.json"), False, Variables.ENV
        ),
        Client("cline", "Cline", "mcpServers", _by_system(_CLINE), False, Variables.ENV),
        Client(
            "gemini",
            "Gemini CLI",
            "mcpServers",
            _everywhere(".gemini/settings.json"),
            True,
            Variables.DOLLAR,
            url_means="sse",
        ),
        Client(
            "zed",
            "Zed",
            "context_servers",
            ("$XDG_CONFIG_HOME/zed/settings.json", ".config/zed/settings.json", "%APPDATA%/Zed/settings.json"),
            True,
        ),
    )
}
"""By kind, in the order in which they are shown."""

FASTMCP = Client("fastmcp", "mcpServers", "mcpServers", _everywhere("mcp.json"), True)
"""What FastMCP and many others call a configuration: read, never connected to."""


def client_of(path: Path, keys: Mapping[str, object]) -> Client:
    """Whose file this is, by its name, its folder and the keys in it."""
    parts = [part.lower() for part in path.parts]
    name, folder = parts[-1], parts[-2] if len(parts) > 1 else ""
    marks = {
        "claude_desktop_config.json": "claude-desktop",
        ".claude.json": "claude-code",
        ".mcp.json": "claude-code",
        "cline_mcp_settings.json": "cline",
        "mcp_config.json": "windsurf",
    }
    if name in marks:
        return CLIENTS[marks[name]]
    if folder in (".cursor", ".gemini"):
        return CLIENTS[folder.removeprefix(".")]
    if "context_servers" in keys:
        return CLIENTS["zed"]
    if "servers" in keys and "mcpServers" not in keys:
        return CLIENTS["vscode"]
    return FASTMCP
