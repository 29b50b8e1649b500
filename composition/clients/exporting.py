"""Tables of servers.toml as `mcpServers`, which most clients read. No secret leaves the file: what refers to one stays
a reference, and a value that looks like one becomes the name of a variable.

`client_commands` comes in; `secret_values` and `entry_texts` say what a secret is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from composition.clients.entry_texts import Texts
from composition.clients.kinds import FASTMCP
from composition.clients.secret_values import is_secret
from providers.errors import ConfigurationError

_REFERENCE = re.compile(r"\$\{[^{}]*\}")

Tables = Mapping[str, Mapping[str, Any]]


def exported(tables: Tables) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The entries by name, and of the servers that have none, why."""
    entries, left_out = {}, {}
    for name, table in tables.items():
        if table.get("is_enabled") is False:
            left_out[name] = "is switched off, and was left out"
        elif _has_open_secret(name, table):
            left_out[name] = "has a secret in its arguments or its address, and was left out"
        elif "command" in table:
            entries[name] = _process(table)
        elif "url" in table:
            entries[name] = _remote(table)
        else:
            left_out[name] = "runs in a container or in the gateway itself, and was left out"
    return entries, left_out


def _has_open_secret(name: str, table: Mapping[str, Any]) -> bool:
    """Whether a secret stands where no reference can take its place."""
    texts = Texts(FASTMCP, Path(name), name, ())
    try:
        texts.arguments([_REFERENCE.sub("", str(word)) for word in table.get("args", ())])
        texts.url(_REFERENCE.sub("", str(table.get("url", ""))))
    except ConfigurationError:
        return True
    return bool(texts.secrets)


def _process(table: Mapping[str, Any]) -> dict[str, Any]:
    entry = {"command": table["command"], "args": list(table.get("args", ())), "env": _masked(table.get("env"))}
    entry |= {"cwd": table["cwd"]} if "cwd" in table else {}
    return {key: _literal(value) for key, value in entry.items() if value}


def _remote(table: Mapping[str, Any]) -> dict[str, Any]:
    transport = "sse" if table.get("transport_type") == "sse" else "http"
    entry = {"type": transport, "transport": transport, "url": table["url"], "headers": _masked(table.get("headers"))}
    return {key: _literal(value) for key, value in entry.items() if value}


def _literal(value: Any) -> Any:
    """Where we write '$$' for a '$', others write the sign itself."""
    match value:
        case dict():
            return {key: _literal(each) for key, each in value.items()}
        case list():
            return [_literal(each) for each in value]
        case _:
            return value.replace("$$", "$") if isinstance(value, str) else value


def _masked(values: Any) -> dict[str, str]:
    texts = {name: str(value) for name, value in values.items()} if isinstance(values, Mapping) else {}
    return {
        name: _variable(name) if "${" not in text and is_secret(name, text) else text for name, text in texts.items()
    }


def _variable(name: str) -> str:
    return f"${{{re.sub(r'[^A-Za-z0-9]+', '_', name).upper()}}}"
