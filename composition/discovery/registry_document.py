"""`server.json` of the MCP Registry, in all the spellings that are about, as values with one spelling.

`registry_packages` and `registry_client` come in; nobody is called. What is written today is camelCase (schema
2025-12-11); before September 2025 it was snake_case, and the first documents said `registry_name` and `name` for what
is now `registryType` and `identifier`. Nothing is refused for being too long or for a key that we do not know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from providers.errors import GatewayError

_MOST_ITEMS = 500
_LONGEST_TEXT = 10_000


class Unreadable(GatewayError):
    """A server.json that is not one; the message is a predicate."""


@dataclass(frozen=True)
class Input:
    """A value, or how to ask for it. `name` is that of a variable, a header or an option; empty for positional ones."""

    name: str = ""
    description: str = ""
    value: str | None = None
    default: str | None = None
    placeholder: str = ""
    hint: str = ""
    format: str = "string"
    choices: tuple[str, ...] = ()
    is_required: bool = False
    is_secret: bool = False
    is_repeated: bool = False
    is_named: bool = False
    variables: Mapping[str, Input] = field(default_factory=dict)


@dataclass(frozen=True)
class Transport:
    """How a server is spoken to. `kind` is `stdio`, `streamable-http` or `sse`."""

    kind: str
    url: str = ""
    headers: tuple[Input, ...] = ()
    variables: Mapping[str, Input] = field(default_factory=dict)


@dataclass(frozen=True)
class Package:
    """Something that can be downloaded and run. `kind` is `npm`, `pypi`, `oci` …"""

    kind: str
    identifier: str
    version: str
    base_url: str
    transport: Transport
    runtime_arguments: tuple[Input, ...] = ()
    arguments: tuple[Input, ...] = ()
    environment: tuple[Input, ...] = ()


@dataclass(frozen=True)
class ServerDocument:
    """One server.json. `status` is the registry's own word for it: `active`, `deprecated` or `deleted`."""

    name: str
    title: str
    description: str
    version: str
    packages: tuple[Package, ...]
    remotes: tuple[Transport, ...]
    tools: tuple[str, ...] = ()
    status: str = "active"


def read_server(entry: Any) -> ServerDocument:
    """A server.json, or an item of a registry's list with one in its `server`.

    Raises:
        Unreadable: it is none; the message never quotes a value.
    """
    outer = _table(entry, "the entry")
    inner = _table(outer.get("server", outer), "'server'")
    table = _plain(inner)
    detail = _plain(_table(table.get("version_detail") or {}, "'version_detail'"))
    name = table.get("name")
    if not isinstance(name, str) or not name or not name.isprintable() or len(name) > 300:
        raise Unreadable("has no 'name' of 1 to 300 letters")
    return ServerDocument(
        name=name,
        title=_text(table, "title"),
        description=_text(table, "description"),
        version=_text(table, "version") or _text(detail, "version"),
        packages=tuple(_package(item) for item in _items(table, "packages")),
        remotes=tuple(_transport(item) for item in _items(table, "remotes")),
        tools=_tools(inner),
        status=_status(outer, table),
    )


def _status(outer: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    meta = outer.get("_meta")
    official = meta.get("io.modelcontextprotocol.registry/official") if isinstance(meta, dict) else None
    word = official.get("status") if isinstance(official, dict) else table.get("status")
    return word if isinstance(word, str) and word else "active"


def _tools(inner: Mapping[str, Any]) -> tuple[str, ...]:
    """Docker's entries name their tools in what a publisher may add."""
    meta = inner.get("_meta")
    provided = meta.get("io.modelcontextprotocol.registry/publisher-provided") if isinstance(meta, dict) else None
    tools = provided.get("tools") if isinstance(provided, dict) else None
    named = (
        [tool.get("name") for tool in tools[:_MOST_ITEMS] if isinstance(tool, dict)] if isinstance(tools, list) else []
    )
    return tuple(name for name in named if isinstance(name, str))


def _package(raw: Any) -> Package:
    table = _plain(_table(raw, "a package"))
    kind = _text(table, "registry_type") or _text(table, "registry_name")
    identifier = _text(table, "identifier") or _text(table, "name")
    if not kind or not identifier:
        raise Unreadable("has a package without 'registryType' or 'identifier'")
    return Package(
        kind={"docker": "oci"}.get(kind.lower(), kind.lower()),
        identifier=identifier,
        version=_text(table, "version"),
        base_url=_text(table, "registry_base_url"),
        transport=_transport(table.get("transport") or {"type": "stdio"}),
        runtime_arguments=tuple(_argument(item) for item in _items(table, "runtime_arguments")),
        arguments=tuple(_argument(item) for item in _items(table, "package_arguments")),
        environment=tuple(_input(item) for item in _items(table, "environment_variables")),
    )


def _transport(raw: Any) -> Transport:
    table = _plain(_table(raw, "a transport"))
    kind = (_text(table, "type") or _text(table, "transport_type") or _text(table, "transport")).lower()
    return Transport(
        kind={"streamable": "streamable-http", "http": "streamable-http", "streamable_http": "streamable-http"}.get(
            kind, kind
        ),
        url=_text(table, "url"),
        headers=tuple(_input(item) for item in _items(table, "headers")),
        variables=_variables(table),
    )


def _argument(raw: Any) -> Input:
    table = _plain(_table(raw, "an argument"))
    kind = _text(table, "type") or ("named" if table.get("name") else "positional")
    if kind not in ("named", "positional"):
        raise Unreadable("has an argument that is neither 'positional' nor 'named'")
    return _input(raw, is_named=kind == "named")


def _input(raw: Any, name: str = "", *, is_named: bool = False) -> Input:
    table = _plain(_table(raw, "an input"))
    return Input(
        name=name or _text(table, "name"),
        description=_text(table, "description"),
        value=_optional(table, "value"),
        default=_optional(table, "default"),
        placeholder=_text(table, "placeholder"),
        hint=_text(table, "value_hint"),
        format=_text(table, "format") or "string",
        choices=tuple(_as_text(item, "choices") for item in _items(table, "choices")),
        is_required=table.get("is_required") is True,
        is_secret=table.get("is_secret") is True,
        is_repeated=table.get("is_repeated") is True,
        is_named=is_named,
        variables=_variables(table),
    )


def _variables(table: Mapping[str, Any]) -> dict[str, Input]:
    raw = _table(table.get("variables") or {}, "'variables'")
    if len(raw) > _MOST_ITEMS:
        raise Unreadable("has too many variables")
    return {name: _input({**_table(each, "a variable"), "variables": {}}, name) for name, each in raw.items()}


# ----------------------------------------------------------------------------------------------------- plain values


def _plain(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table with its keys in snake_case; where a key is there in both spellings, the newer one counts."""
    snake = {key: value for key, value in table.items() if key == key.lower()}
    return snake | {
        re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", key).lower(): table[key] for key in table if key not in snake
    }


def _table(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise Unreadable(f"has {what} that is not an object")
    return value


def _items(table: Mapping[str, Any], key: str) -> list[Any]:
    value = table.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > _MOST_ITEMS:
        raise Unreadable(f"has '{key}' that is not a list of at most {_MOST_ITEMS} items")
    return value


def _text(table: Mapping[str, Any], key: str) -> str:
    return _optional(table, key) or ""


def _optional(table: Mapping[str, Any], key: str) -> str | None:
    value = table.get(key)
    return None if value is None else _as_text(value, key)


def _as_text(value: Any, key: str) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case str() if len(value) <= _LONGEST_TEXT and "\0" not in value:
            return value
    raise Unreadable(f"has '{key}' that is not a text, or is too long")
