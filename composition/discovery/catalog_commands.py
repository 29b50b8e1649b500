"""The commands for catalogs: `catalog search`, `catalog show` and `catalog add`.

The command line comes in. Tables are for people and `--json` is for programs; what a catalog says is printed so that no
terminal obeys it. Nothing is added that still needs something, and no secret is ever asked for here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any

from composition import starting
from composition.columns import cut, in_columns, terminal_width
from composition.discovery.cache import DocumentCache, cache_folder
from composition.discovery.catalog_resources import Given
from composition.discovery.catalog_search import ranked
from composition.discovery.catalog_sources import Shelf, load
from composition.discovery.found import Found, Need, NeedKind, State
from composition.parts import open_secrets
from composition.record_rules import refused_folders
from composition.records import StoreRecords, configured_store
from composition.servers_file import Configuration, load_configuration
from composition.tables import check
from providers.container_log import harmless
from providers.errors import ConfigurationError
from providers.identity import local_identity
from providers.resource import McpServerResource

_HEADER = ("NAME", "KIND", "STATE", "DESCRIPTION")
_SHOWN = 20
_WIDTH = 72


Run = Callable[[Configuration, Shelf, Any], Awaitable[int]]


def register(commands: Any) -> None:
    """Add these commands to the command line."""
    catalog = commands.add_parser("catalog", help="find servers in MCP catalogs, see what they need, and add them")
    actions = catalog.add_subparsers(dest="action", metavar="ACTION", required=True)
    search = actions.add_parser("search", help="print the servers that these words mean")
    search.add_argument("words", nargs="*", metavar="WORD", help="none: all servers")
    search.add_argument("--limit", type=int, default=_SHOWN, metavar="N", help="how many (default: %(default)s)")
    show = actions.add_parser("show", help="print what a server needs, and what it becomes")
    add = actions.add_parser("add", help="add a server")
    for command in (show, add):
        command.add_argument("name", metavar="NAME", help="its name in the catalog, or as `catalog search` shows it")
        _add_choices(command)
    add.add_argument("--role", action="append", metavar="ROLE", help="who may use it; default: operators alone")
    for command, run in ((search, _search), (show, _show), (add, _add)):
        command.add_argument(
            "--catalog", action="append", metavar="PLACE", help="a file or an address; else `catalogs`"
        )
        command.add_argument("--json", action="store_true", help="print JSON, for programs")
        command.set_defaults(run=partial(_command, run))


def _add_choices(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", type=_pair, help="what it asks for; again for a list"
    )
    command.add_argument("--as", dest="called", metavar="NAME", help="what to call it here")
    command.add_argument("--secret", action="append", default=[], metavar="NAME", help="an optional secret to use")
    command.add_argument("--without", action="append", default=[], metavar="NAME", help="a secret to do without")
    command.add_argument("--writable", action="store_true", help="it may write to the folders that it is given")


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError("write KEY=VALUE")  # not quoted: it may be a secret
    return key, value


def _command(run: Run, options: Any) -> int:
    return starting.run(partial(_with_shelf, run, options))


async def _with_shelf(run: Run, options: Any) -> int:
    configuration = load_configuration(starting.servers_path())
    cache = DocumentCache(cache_folder(configuration.settings.state_dir))
    shelf = await load(options.catalog or configuration.settings.catalogs, cache)
    for note in shelf.notes:
        _say(note)
    return await run(configuration, shelf, options)


# -------------------------------------------------------------------------------------------------------- commands


async def _search(configuration: Configuration, shelf: Shelf, options: Any) -> int:
    found = ranked(shelf.servers(), " ".join(options.words))
    shown = found[: max(options.limit, 0)]
    if options.json:
        _print_json([as_json(server) for server in shown])
        return starting.OK
    for line in in_columns([_HEADER, *(_cells(server) for server in shown)], terminal_width()):
        _print(line)
    if len(found) > len(shown):
        _say(f"{len(found) - len(shown)} more. Use --limit, or more words.")
    if not found:
        _say("No server has these words. Try fewer.")
    return starting.OK if found else starting.FAILED


def _cells(server: Found) -> tuple[str, ...]:
    return server.name, server.kind, str(server.state), cut(server.description or server.title, _WIDTH)


async def _show(configuration: Configuration, shelf: Shelf, options: Any) -> int:
    server = shelf.find(options.name, _given(options), options.called)
    if options.json:
        _print_json(as_json(server))
        return starting.OK
    for line in description(server, terminal_width()):
        _print(line)
    return starting.OK


async def _add(configuration: Configuration, shelf: Shelf, options: Any) -> int:
    server = shelf.find(options.name, _given(options), options.called)
    resource = checked(server, configuration, options.role or [configuration.settings.operator_role])
    told = await save(configuration, resource)
    if options.json:
        _print_json(as_json(server) | {"resource": resource.model_dump(mode="json", exclude_defaults=True)})
        return starting.OK
    for line in told:
        _print(line)
    for note in server.notes:
        _say(note)
    for line in secrets_to_set(configuration, server):
        _say(line)
    return starting.OK


def _given(options: Any) -> Given:
    values: dict[str, Any] = {}
    for key, value in options.set:
        known = values.get(key)
        values[key] = value if known is None else [*(known if isinstance(known, list) else [known]), value]
    return Given(values, options.secret, options.without, options.writable)


def checked(server: Found, configuration: Configuration, roles: Iterable[str]) -> McpServerResource:
    """The resource of a server that can be added. Its secrets may be set afterwards; nothing else may be missing.

    Raises:
        ConfigurationError: it cannot run here, lacks something, has a name that is taken, or wants to see a folder
            that it may not.
    """
    if server.problem is not None:
        raise ConfigurationError(f"'{server.original}' is not runnable here: {server.problem}.")
    if lacking := [need for need in server.missing if need.kind is NeedKind.CONFIG]:
        raise ConfigurationError([_asked(server, need) for need in lacking])
    if server.name in configuration.resources:
        raise ConfigurationError(f"There is a server '{server.name}' already. Give this one another name: --as NAME")
    table = {"name": server.name, **server.resource, "required_roles": list(roles)}
    resource, problems = check(McpServerResource, table, table)
    if resource is None:
        raise ConfigurationError([f"'{'.'.join(map(str, problem.key or ()))}' {problem.text}" for problem in problems])
    if refused := refused_folders(resource, configuration.settings, configuration.path):
        raise ConfigurationError(refused)
    return resource


def _asked(server: Found, need: Need) -> str:
    about = f" ({need.description})" if need.description else ""
    return harmless(f"'{server.name}' needs {need.name}{about}. Give it with: --set {need.name.split(' or ')[0]}=…")


async def save(configuration: Configuration, resource: McpServerResource) -> list[str]:
    """Keep a server in the configured store; what to tell a person. Without a store that is the table which he puts
    into servers.toml himself.

    Raises:
        ConfigurationError, CallerError: there is one of this name already, or the store cannot be used.
    """
    async with configured_store(configuration) as store:
        if store is None:
            return [f"# put this into {starting.servers_path().name}", *as_toml(resource)]
        await StoreRecords(configuration, store, local_identity()).put(resource)
    return [f"'{resource.name}' is added. A gateway that runs with this store has it now; `server.py list` shows it."]


def secrets_to_set(configuration: Configuration, server: Found) -> list[str]:
    """What a person has yet to do before a server's first call. A value that a stranger's server finds already there is
    told too: two names may share one environment variable."""
    kept = open_secrets(configuration.settings)
    return [
        f"It needs a secret before its first call. Set it with: server.py secret set {need.name}"
        if kept.get(need.name) is None
        else f"It gets the secret {need.name}, which is set already. `server.py secret list` shows where."
        for need in server.missing
        if need.kind is NeedKind.SECRET
    ]


# --------------------------------------------------------------------------------------------------------- writing


def as_json(server: Found) -> dict[str, Any]:
    """A server for programs."""
    return {
        "name": server.name,
        "original": server.original,
        "source": str(server.source),
        "kind": server.kind,
        "title": server.title,
        "description": server.description,
        "state": str(server.state),
        "in_one_line": server.in_one_line(),
        "needs": [_need_as_json(need) for need in server.needs],
        "missing": [need.name for need in server.missing],
        "problem": server.problem,
        "notes": list(server.notes),
        "tools": list(server.tools),
        "resource": server.resource,
    }


def _need_as_json(need: Need) -> dict[str, Any]:
    fields = ("name", "kind", "description", "type", "is_required", "default", "example", "variable", "choices")
    return {field: getattr(need, field) for field in fields}


def description(server: Found, width: int | None = None) -> list[str]:
    """A server for people, line by line.

    Args:
        width: of the table of what it needs; None: as wide as that is.
    """
    lines = [f"{server.name}: {server.title}", cut(server.description, 500), "", server.in_one_line()]
    if server.needs:
        rows: list[tuple[str, ...]] = [("", "NAME", "TYPE", "", "WHAT IT IS")]
        rows += [
            (str(need.kind), need.name, need.type, _how(need), cut(need.description, _WIDTH)) for need in server.needs
        ]
        lines += ["", *in_columns(rows, width)]
    if server.tools:
        lines += ["", f"tools: {', '.join(server.tools)}"]
    lines += ["", *server.notes] if server.notes else []
    if server.state is not State.NOT_RUNNABLE:
        keys = {key: value for key, value in server.resource.items() if key not in ("description", "docker_tools")}
        keys |= {f"docker_tools.{name}": tool for name, tool in server.resource.get("docker_tools", {}).items()}
        lines += ["", "becomes:", *(f"  {key} = {_toml(value)}" for key, value in keys.items())]
    return lines


def _how(need: Need) -> str:
    if need.default is not None:
        return f"default {need.default}"
    return "needed" if need.is_required else "optional"


def as_toml(resource: McpServerResource) -> list[str]:
    """The table of servers.toml for a resource."""
    kept = resource.model_dump(mode="json", exclude_defaults=True, exclude={"name", "created_at", "updated_at"})
    keys = {key: value for key, value in kept.items() if value not in ({}, [])}
    tools = keys.pop("docker_tools", {})
    table = f"servers.{resource.name}"
    lines = [f"[{table}]", *_keys_of(keys)]
    for name, tool in tools.items():
        lines += ["", f"[{table}.docker_tools.{json.dumps(name)}]", *_keys_of(tool)]
    return lines


def _keys_of(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_toml(_escaped(value))}" for key, value in table.items()]


def _escaped(value: Any) -> Any:
    """A `$` that is none of ours is written twice in servers.toml, so that it stays a sign."""
    if isinstance(value, Mapping):
        return {key: _escaped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escaped(inner) for inner in value]
    return value.replace("$", "$$").replace("$${secret:", "${secret:") if isinstance(value, str) else value


def _toml(value: Any) -> str:
    match value:
        case Mapping():
            return "{ " + ", ".join(f"{json.dumps(str(key))} = {_toml(inner)}" for key, inner in value.items()) + " }"
        case list() | tuple():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case _:
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _print(line: str) -> None:
    sys.stdout.write(harmless(line) + "\n")


def _say(line: str) -> None:
    sys.stderr.write(harmless(line) + "\n")


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
