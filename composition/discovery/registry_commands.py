"""The commands `registry search`, `registry show` and `registry add`: servers that the MCP Registry lists.

The command line comes in. `registry_client` is asked and `registry_packages` says what a server becomes here; how that
is shown, checked and kept is the same as for catalogs. The value of a secret is never taken from the command line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

from composition import starting
from composition.columns import in_columns, terminal_width
from composition.discovery.cache import DocumentCache, DocumentUnavailable, cache_folder
from composition.discovery.catalog_commands import as_json, checked, description, save, secrets_to_set
from composition.discovery.registry_client import RegistryClient
from composition.discovery.registry_inputs import Values
from composition.discovery.registry_packages import best_way, ways
from composition.servers_file import Configuration, load_configuration
from providers.container_log import harmless
from providers.errors import ConfigurationError
from providers.resource import NAME_PATTERN

_HEADER = ("NAME", "VERSION", "KIND", "STATE")
_WIDTH, _INDENT = 100, "  "

Run = Callable[[Configuration, RegistryClient, Any], Awaitable[int]]


def register(commands: Any) -> None:
    """Add these commands to the command line."""
    registry = commands.add_parser(
        "registry", help="find servers in the MCP Registry, see what they need, and add them"
    )
    actions = registry.add_subparsers(dest="action", metavar="ACTION", required=True)
    search = actions.add_parser("search", help="print the servers that have these words")
    search.add_argument("words", nargs="*", metavar="WORD", help="words of its name or description; none: any server")
    search.add_argument("--limit", type=int, default=20, metavar="N", help="how many (default: %(default)s)")
    show = actions.add_parser("show", help="print what a server needs, and what it becomes")
    add = actions.add_parser("add", help="add a server")
    for command in (show, add):
        _add_choices(command)
    add.add_argument("--role", action="append", metavar="ROLE", help="who may use it; default: operators alone")
    for command, run in ((search, _search), (show, _show), (add, _add)):
        command.add_argument("--json", action="store_true", help="print JSON, for programs")
        command.set_defaults(run=partial(_command, run))


def _add_choices(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", metavar="NAME", help="its whole name, such as io.github.somebody/server")
    command.add_argument("--version", default="latest", help="default: the newest")
    command.add_argument("--package", metavar="KIND", help="npm, pypi, oci or remote, where there are several ways")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="what it asks for")
    command.add_argument("--as", dest="called", metavar="NAME", help="what to call it here")
    command.add_argument("--secret", action="append", default=[], metavar="NAME", help="an optional secret to use")


def _command(run: Run, options: Any) -> int:
    return starting.run(partial(_with_registry, run, options))


async def _with_registry(run: Run, options: Any) -> int:
    configuration = load_configuration(starting.servers_path())
    settings = configuration.settings
    client = RegistryClient(DocumentCache(cache_folder(settings.state_dir)), settings.mcp_registry)
    try:
        return await run(configuration, client, options)
    except DocumentUnavailable as error:
        _say(str(error))
        _say("Try again later, or name another registry: `mcp_registry` under [gateway].")
        return starting.FAILED


async def _search(configuration: Configuration, client: RegistryClient, options: Any) -> int:
    answer = await client.search(" ".join(options.words), max(1, min(options.limit, 500)))
    found = [best_way(server) for server in answer.servers]
    if options.json:
        _print_json([as_json(each) for each in found])
        return starting.OK
    rows: list[tuple[str, ...]] = [_HEADER]
    rows += [(each.original, each.version, each.kind, each.in_one_line()[:_WIDTH]) for each in found]
    for line in in_columns(rows, terminal_width()):
        _print(line)
    for note in answer.notes:
        _say(note)
    if answer.is_cut:
        _say("There are more. Use --limit, or more words.")
    if not found:
        _say("No server has these words. Try fewer.")
    return starting.OK if found else starting.FAILED


async def _show(configuration: Configuration, client: RegistryClient, options: Any) -> int:
    document = await client.get(options.name, options.version)
    values = values_of(options.set, options.secret)
    found = [each for each in ways(document, values, _called(options)) if options.package in (None, each.kind)]
    if options.json:
        _print_json([as_json(each) for each in found])
        return starting.OK
    width = terminal_width()
    for each in found:
        _print(f"{each.original} {each.version}, {each.kind}")
        for line in description(each, width and width - len(_INDENT)):
            _print(f"{_INDENT}{line}".rstrip())
    return starting.OK if found else starting.FAILED


async def _add(configuration: Configuration, client: RegistryClient, options: Any) -> int:
    document = await client.get(options.name, options.version)
    found = best_way(document, values_of(options.set, options.secret), options.package, _called(options))
    resource = checked(found, configuration, options.role or [configuration.settings.operator_role])
    told = await save(configuration, resource)
    if options.json:
        _print_json(as_json(found) | {"resource": resource.model_dump(mode="json", exclude_defaults=True)})
        return starting.OK
    for line in told:
        _print(line)
    for line in (*found.notes, *secrets_to_set(configuration, found)):
        _say(line)
    return starting.OK


def _called(options: Any) -> str | None:
    name: str | None = options.called
    if name is not None and not NAME_PATTERN.match(name):
        raise ConfigurationError("--as takes a server's name: lower-case letters, digits and '-', at most 63")
    return name


def values_of(settings: Iterable[str], secrets: Iterable[str] = ()) -> Values:
    """What `--set KEY=VALUE` and `--secret NAME` gave, by key.

    Raises:
        ConfigurationError: one of them has no '='. It is not quoted: it may be a secret.
    """
    values: dict[str, list[str]] = {}
    for each in settings:
        key, sign, value = each.partition("=")
        if not sign or not key:
            raise ConfigurationError("--set takes KEY=VALUE, for example --set timezone=UTC")
        values.setdefault(key, []).append(value)
    return values | {name.partition(".")[2]: [f"${{secret:{name}}}"] for name in secrets}


def _print(line: str) -> None:
    sys.stdout.write(harmless(line) + "\n")


def _say(line: str) -> None:
    sys.stderr.write(harmless(line) + "\n")


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
