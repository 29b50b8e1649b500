"""The commands `registry search`, `registry show` and `registry add`: servers that the MCP Registry lists.

`registry_client` is asked, `registry_packages` says what a server becomes here, and `servers_writing` adds it to
servers.toml. Names, needs and reasons are shown; the value of a secret is never taken from the command line.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from composition.clients.servers_writing import add_servers, servers_in, toml_of
from composition.discovery.cache import DocumentCache, DocumentUnavailable, cache_folder
from composition.discovery.found import Found, NeedKind
from composition.discovery.registry_client import RegistryClient
from composition.discovery.registry_inputs import Values
from composition.discovery.registry_packages import best_way, ways
from composition.servers_file import load_configuration
from composition.starting import FAILED, OK, run, servers_path
from providers.errors import ConfigurationError
from providers.resource import NAME_PATTERN


def register(commands: Any) -> None:
    """Add these commands to the command line."""
    registry = commands.add_parser("registry", help="find servers in the MCP Registry, and add them")
    inner = registry.add_subparsers(dest="registry_command", metavar="search|show|add", required=True)
    search = inner.add_parser("search", help="servers with these words")
    search.add_argument("words", metavar="WORD", nargs="*", help="words of its name or description")
    search.add_argument("--limit", type=int, default=20, choices=range(1, 501), metavar="N", help="default: 20")
    search.set_defaults(run=lambda options: run(lambda: _guarded(_search(options))))
    show = inner.add_parser("show", help="what a server needs, and what it becomes here")
    show.set_defaults(run=lambda options: run(lambda: _guarded(_show(options))))
    add = inner.add_parser("add", help="add a server to servers.toml")
    add.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="what it needs; may be repeated")
    add.add_argument("--as", dest="alias", metavar="NAME", help="what it is called here")
    add.set_defaults(run=lambda options: run(lambda: _guarded(_add(options))))
    for parser in (show, add):
        parser.add_argument("name", metavar="NAME", help="its whole name, such as io.github.somebody/server")
        parser.add_argument("--version", default="latest", help="default: the newest")
        parser.add_argument("--package", metavar="KIND", help="npm, pypi, oci or remote, where there are several ways")
    for parser in (search, show, add):
        parser.add_argument("--json", action="store_true", help="print JSON")


async def _guarded(work: Any) -> int:
    try:
        return int(await work)
    except DocumentUnavailable as error:
        sys.stderr.write(f"{error}\n")
        return FAILED


def _registry() -> RegistryClient:
    settings = load_configuration(servers_path()).settings
    return RegistryClient(DocumentCache(cache_folder(settings.state_dir)), settings.mcp_registry)


async def _search(options: argparse.Namespace) -> int:
    answer = await _registry().search(" ".join(options.words), options.limit)
    found = [best_way(server) for server in answer.servers]
    if options.json:
        _print_json({"servers": [_facts(each) for each in found], "notes": list(answer.notes), "more": answer.is_cut})
        return OK
    rows: list[tuple[str, ...]] = [("NAME", "VERSION", "KIND", "STATE")]
    rows += [(each.original, each.version, each.kind, each.in_one_line()) for each in found]
    _print_rows(rows)
    for note in answer.notes:
        sys.stderr.write(f"{note}\n")
    if answer.is_cut:
        sys.stderr.write("There are more. Give more words, or a higher --limit.\n")
    return OK if found else FAILED


async def _show(options: argparse.Namespace) -> int:
    document = await _registry().get(options.name, options.version)
    found = [each for each in ways(document) if options.package in (None, each.kind)]
    if options.json:
        _print_json([_facts(each) for each in found])
        return OK
    for each in found:
        lines = [f"{each.original} {each.version} ({each.kind})", f"  {each.description}", f"  {each.in_one_line()}"]
        lines += [f"  {need}{_about(need)}" for need in each.needs]
        lines += [f"  {note}" for note in each.notes]
        sys.stdout.write("\n".join(line for line in map(_one_line, lines) if line.strip()) + "\n")
    return OK if found else FAILED


async def _add(options: argparse.Namespace) -> int:
    document = await _registry().get(options.name, options.version)
    found = best_way(document, values_of(options.set), options.package)
    name = options.alias or found.name
    add_found(found, name, servers_path())
    secrets = sorted(need.name for need in found.missing if need.kind is NeedKind.SECRET)
    if options.json:
        _print_json({"name": name, "kind": found.kind, "secrets": secrets})
        return OK
    sys.stdout.write(f"Added {found.original} {found.version} as '{name}' to {servers_path()}.\n")
    for secret in secrets:
        sys.stdout.write(f"It needs a secret: server.py secret set {secret}\n")
    return OK


def values_of(settings: list[str]) -> Values:
    """What `--set KEY=VALUE` gave, by key.

    Raises:
        ConfigurationError: one of them has no '='.
    """
    values: dict[str, list[str]] = {}
    for each in settings:
        key, sign, value = each.partition("=")
        if not sign or not key:
            raise ConfigurationError("--set takes KEY=VALUE, for example --set timezone=UTC")
        values.setdefault(key, []).append(value)
    return values


def add_found(found: Found, name: str, servers_toml: Path) -> None:
    """Add a found server to servers.toml under a name. Its secrets may be given later.

    Raises:
        ConfigurationError: something else is missing, it does not run here, or there is a server of that name.
    """
    if not NAME_PATTERN.match(name):
        raise ConfigurationError(f"'{name[:80]}' is not a server name. Use lower-case letters, digits and '-'")
    if name in servers_in(servers_toml):
        raise ConfigurationError(f"there is a server '{name}' already. Give this one another name: --as NAME")
    if found.problem is not None:
        raise ConfigurationError(f"'{found.original}' does not run here: {found.problem}")
    missing = [need for need in found.missing if need.kind is NeedKind.CONFIG]
    if missing:
        wanted = "".join(f"\n  --set {need.name}=…{_about(need)}" for need in missing)
        raise ConfigurationError(f"'{found.original}' needs:{wanted}")
    add_servers(servers_toml, [toml_of(name, _written(found.resource), f"from the MCP Registry: {found.original}")])


def _written(value: Any) -> Any:
    """The keys as they stand in servers.toml, where a '$' that begins no secret is doubled."""
    match value:
        case dict():
            return {key: _written(each) for key, each in value.items()}
        case list():
            return [_written(each) for each in value]
        case str():
            return "${secret:".join(part.replace("$", "$$") for part in value.split("${secret:"))
        case _:
            return value


def _facts(found: Found) -> dict[str, Any]:
    return {
        "name": found.original,
        "as": found.name,
        "version": found.version,
        "kind": found.kind,
        "title": found.title,
        "description": found.description,
        "state": str(found.state),
        "problem": found.problem,
        "needs": [
            {"name": need.name, "kind": str(need.kind), "required": need.is_required, "description": need.description}
            for need in found.needs
        ],
        "missing": [need.name for need in found.missing],
        "notes": list(found.notes),
    }


def _about(need: Any) -> str:
    facts = [need.description, f"one of {', '.join(need.choices)}" if need.choices else ""]
    facts += [f"default {need.default}" if need.default else "", "" if need.is_required else "may be left out"]
    said = "; ".join(fact for fact in facts if fact)
    return f"  ({_one_line(said)})" if said else ""


def _print_rows(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        sys.stdout.write(_one_line("  ".join([*cells, row[-1]])) + "\n")


def _one_line(text: str) -> str:
    """Strangers wrote it: no line break of theirs, and no escape sequence, reaches the terminal."""
    return "".join(sign if sign.isprintable() else " " for sign in text)[:400]


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
