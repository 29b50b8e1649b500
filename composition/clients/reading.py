"""A client's configuration becomes tables of servers.toml, entry by entry, with its secrets taken out.

The command `import` and `connecting` come in. Each entry is read by itself: one that cannot be used is told, and the
others are not lost. What is a secret never appears in a table, in a message or in a repr; it stands in `secrets`, and
the table refers to it as `${secret:NAME}`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from composition.clients.bridged import unbridged
from composition.clients.entry_texts import Texts
from composition.clients.jsonc import parse
from composition.clients.kinds import Client, client_of
from composition.discovery.found import fitting_name
from providers.errors import ConfigurationError
from providers.resource import McpServerResource

MAX_BYTES = 16 * 1024 * 1024

_STREAMABLE = ("http", "streamable-http", "streamablehttp", "streamable_http", "remote")
_KNOWN = {
    *("command", "args", "env", "cwd", "url", "httpUrl", "serverUrl", "headers", "type", "transport", "disabled"),
    *("enabled", "timeout", "description", "includeTools", "excludeTools", "source", "auth"),
}
_HARMLESS = {"icon", "autoApprove", "alwaysAllow", "trust", "gallery", "version", "name", "disabledTools", "keep_alive"}


@dataclass(frozen=True)
class Entry:
    """One server of a client. `table` is what stands under `[servers.NAME]`; none where there is a `problem`."""

    original: str
    name: str
    table: dict[str, Any] = field(repr=False)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    wanted: tuple[str, ...] = ()
    """Secrets that the table refers to and whose values the client does not keep in this file."""
    notes: tuple[str, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class ClientFile:
    """What one file of a client says."""

    path: Path
    client: Client
    text: str = field(repr=False)
    entries: tuple[Entry, ...] = ()


def read_client_file(path: Path, client: Client | None = None, taken: Collection[str] = ()) -> ClientFile:
    """Read a file of a client. It blocks.

    Args:
        client: whose it is, where that is known; else its name and its keys say so.
        taken: names that no entry gets.

    Raises:
        ConfigurationError: there is no such file, it cannot be read, or it holds no servers.
    """
    text = read_text(path)
    try:
        root = parse(text, comments=client.comments if client else True).root.value
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    if not isinstance(root, dict):
        raise ConfigurationError(f"{path}: is not an object. Is it the right file?")
    client = client or client_of(path, root)
    if isinstance(root.get("mcp"), dict) and client.key not in root:
        root = root["mcp"]  # VS Code's settings.json of 2025
    servers = {} if root.get(client.key) is None else root[client.key]
    if not isinstance(servers, dict):
        raise ConfigurationError(f"{path}: key '{client.key}' must be an object with a server under each name")
    servers = {**(_of_projects(root) if client.kind == "claude-code" else {}), **servers}
    inputs = root.get("inputs")
    asked = inputs if isinstance(inputs, list) else []
    entries = [
        read_entry(client, path, original, name, raw, asked)
        for (original, raw), name in zip(servers.items(), _names(list(servers), taken), strict=True)
    ]
    return ClientFile(path, client, text, tuple(entries))


def _of_projects(root: Mapping[str, Any]) -> dict[str, Any]:
    """The servers that Claude Code has for one folder each."""
    projects = root.get("projects")
    tables = projects.values() if isinstance(projects, dict) else ()
    servers = [table.get("mcpServers") for table in tables if isinstance(table, dict)]
    return {name: entry for each in servers if isinstance(each, dict) for name, entry in each.items()}


def read_text(path: Path) -> str:
    """The text of a client's file.

    Raises:
        ConfigurationError: there is none, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path}: no such file. Where the client keeps it elsewhere, name it: import FILE, connect --path FILE"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > MAX_BYTES:
        raise ConfigurationError(f"{path}: is larger than 16 MiB. Is it the right file?")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: is not UTF-8 text") from None


def _names(originals: list[str], taken: Collection[str]) -> list[str]:
    """A name of ours for each, none of those that are taken."""
    used, names = set(taken), []
    for original in originals:
        base = name = fitting_name(original)
        number = 2
        while name in used:
            name, number = f"{base[:57]}-{number}", number + 1
        used.add(name)
        names.append(name)
    return names


def read_entry(client: Client, path: Path, original: str, name: str, raw: Any, inputs: list[Any]) -> Entry:
    """One entry; what is wrong with it is its `problem`, never an exception."""
    texts = Texts(client, path, name, inputs)
    try:
        table, notes = _table(client, raw, texts)
        _check(name, table)
    except ConfigurationError as error:
        return Entry(original, name, {}, problem=str(error))
    return Entry(original, name, table, texts.secrets, tuple(texts.wanted), tuple(notes))


def _table(client: Client, raw: Any, texts: Texts) -> tuple[dict[str, Any], list[str]]:
    if not isinstance(raw, dict):
        raise ConfigurationError("is not an object with a 'command' or a 'url'")
    if isinstance(raw.get("command"), dict):  # Zed before 2025-11
        inner = raw["command"]
        raw = {**raw, **{key: inner[key] for key in ("args", "env") if key in inner}, "command": inner.get("path")}
    if (direct := unbridged(raw)) is not None:
        table, notes = _table(client, direct, texts)
        return table, [*notes, "is reached directly, without mcp-remote"]
    table = {}
    if isinstance(description := raw.get("description"), str) and description:
        table["description"] = texts.plain("description", description)
    if raw.get("disabled") is True or raw.get("enabled") is False:
        table["is_enabled"] = False
    address = next((key for key in ("httpUrl", "serverUrl", "url") if raw.get(key)), None)
    if raw.get("command") and address:
        raise ConfigurationError("has both a 'command' and an address")
    if raw.get("command"):
        table |= _process(raw, texts)
    elif address:
        table |= _remote(client, raw, address, texts)
    else:
        raise ConfigurationError("has neither a 'command' nor an address")
    table |= _limits(client, raw)
    unknown = [key for key in raw if key not in _KNOWN | _HARMLESS]
    notes = [f"its key '{key[:40]}' is not taken over" for key in unknown if key.isprintable()]
    return table, notes


def _process(raw: Mapping[str, Any], texts: Texts) -> dict[str, Any]:
    kind = raw.get("transport") or raw.get("type") or "stdio"
    if kind not in ("stdio", "local"):
        raise ConfigurationError("has a 'command', and a type that is not 'stdio'")
    if not isinstance(raw["command"], str):
        raise ConfigurationError("key 'command' must be a text")
    table: dict[str, Any] = {"command": texts.plain("command", raw["command"])}
    if args := raw.get("args"):
        if not isinstance(args, list):
            raise ConfigurationError("key 'args' must be a list of texts")
        table["args"] = texts.arguments(args)
    if env := texts.table("env", raw.get("env")):
        table["env"] = env
    if raw.get("cwd"):
        table["cwd"] = texts.plain("cwd", raw["cwd"])
    return table


def _remote(client: Client, raw: Mapping[str, Any], key: str, texts: Texts) -> dict[str, Any]:
    kind = raw.get("transport") or raw.get("type")
    if kind is not None and not isinstance(kind, str):
        raise ConfigurationError("key 'type' must be a text")
    match (kind or "").lower():
        case "sse":
            transport = "sse"
        case word if word in _STREAMABLE:
            transport = "streamable_http"
        case "":
            transport = "streamable_http" if key == "httpUrl" else client.url_means
        case _:
            raise ConfigurationError("has a type that the gateway does not speak. It speaks stdio, http and sse")
    table: dict[str, Any] = {"url": texts.url(raw[key])}
    if transport == "sse":
        table["transport_type"] = "sse"
    headers = texts.table("headers", raw.get("headers"))
    auth = raw.get("auth")
    if auth == "oauth" or isinstance(auth, dict) or "oauth" in raw:
        raise ConfigurationError("signs its user in with OAuth, which the gateway does not do for a server")
    if isinstance(auth, str) and auth:
        headers = {**texts.table("headers", {"Authorization": f"Bearer {auth}"}), **headers}
    return table | ({"headers": headers} if headers else {})


def _limits(client: Client, raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a client says about tools and time. Cline counts in seconds, the others in thousandths."""
    table: dict[str, Any] = {}
    tools = {
        ours: raw[theirs]
        for ours, theirs in (("include", "includeTools"), ("exclude", "excludeTools"))
        if isinstance(raw.get(theirs), list) and raw[theirs]
    }
    if tools:
        table["tools"] = tools
    timeout = raw.get("timeout")
    if isinstance(timeout, int | float) and not isinstance(timeout, bool) and 0 < timeout < 10**9:
        table["timeouts"] = {"call": timeout if client.kind == "cline" else max(1, timeout / 1000)}
    return table


def _check(name: str, table: dict[str, Any]) -> None:
    """What our own records have against it; values are not quoted."""
    try:
        json.dumps(table, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ConfigurationError("holds a sign that is none") from None
    unfilled = {**table, "is_enabled": False}  # variables are filled in when servers.toml is read
    try:
        McpServerResource.model_validate({"name": name, **unfilled})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"key '{where}' {what}" if where else what) from None
