"""The commands for the servers of a gateway: `add`, `remove`, `enable`, `disable`, `list` and `show`.

The command line comes in. They do what the REST API does: to the configured store (`records`), or to a running gateway
(`remote_records`). Secrets are read from the environment or from stdin, and are never printed.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from composition import starting
from composition.columns import in_columns, terminal_width
from composition.gateway_address import add_gateway_options, gateway_named
from composition.record_rules import is_command_line
from composition.records import Records, StoreRecords, configured_store
from composition.remote_records import RemoteRecords
from composition.servers_file import load_configuration
from providers.container_log import harmless
from providers.endpoint import http_client
from providers.errors import ConfigurationError, GatewayError
from providers.identity import local_identity
from providers.lines import Json
from providers.reach import TransportType
from providers.resource import Isolation

_COLUMNS = ("NAME", "TRANSPORT", "ENABLED", "ROLES", "SOURCE", "REACHED BY")


def register(commands: Any) -> None:
    """Add these commands to the command line."""
    _register_add(commands)
    for word, what in (
        ("remove", "remove a server"),
        ("enable", "offer a server again"),
        ("disable", "offer a server no more, and keep what is known of it"),
        ("show", "print one server"),
    ):
        command = commands.add_parser(word, help=what)
        command.add_argument("name", metavar="NAME")
        _finish(command)
    _finish(commands.add_parser("list", help="print the servers"))


_AFTER = "The arguments of the server itself stand at the end, behind --: add time --command uvx -- mcp-server-time"

_WHO = "who may use it; '*' is everybody (default: you, and administrators)"


def _register_add(commands: Any) -> None:
    add = commands.add_parser("add", help="add a server", epilog=_AFTER)
    add.add_argument("name", metavar="NAME")
    way = add.add_mutually_exclusive_group(required=True)
    way.add_argument("--url", help="where a remote server is")
    way.add_argument("--command", dest="program", metavar="PROGRAM", help="the program of a local server")
    way.add_argument("--image", help="the image of a server in a container")
    transports = [str(each) for each in TransportType if each is not TransportType.PYTHON]
    add.add_argument(
        "--transport", choices=transports, help="where it is not plain; sse: remote ones of the older kind"
    )
    add.add_argument("--port", action="append", default=[], metavar="PORT/tcp", help="of a container that speaks HTTP")
    add.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a variable; without a value it is the one of this environment, and with '-' a line of stdin",
    )
    add.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a header; without a value it is the variable X_API_KEY for X-Api-Key, and with '-' a line of stdin",
    )
    add.add_argument("--role", action="append", default=[], metavar="ROLE", help=_WHO)
    add.add_argument("--description", help="what it is for")
    shared = "who shares a session with it (default: session, nobody)"
    add.add_argument("--isolation", choices=[str(each) for each in Isolation], help=shared)
    add.add_argument("--disabled", action="store_true", help="do not offer it yet")
    add.set_defaults(after=())
    _finish(add)


def _finish(command: Any) -> None:
    add_gateway_options(command, otherwise="the store")
    command.add_argument("--json", action="store_true", dest="as_json", help="print JSON")
    command.set_defaults(run=_command)


def _command(options: Any) -> int:
    fields = fields_of(options) if options.command == "add" else {}
    return starting.run(partial(_run, options, fields))


async def _run(options: Any, fields: Mapping[str, Any]) -> int:
    """Do what was asked for; what is refused is told in a line."""
    try:
        async with _records(options) as records:
            await _do(records, options, fields)
    except GatewayError as error:  # it may hold the words of whatever answered
        sys.stderr.write(harmless_lines(str(error)) + "\n")
        return starting.MISCONFIGURED if isinstance(error, ConfigurationError) else starting.FAILED
    return starting.OK


async def _do(records: Records, options: Any, fields: Mapping[str, Any]) -> None:
    match options.command:
        case "list":
            found = await records.all()
            _print(found, options, lambda: table(found))
        case "show":
            one = await records.get(options.name)
            _print(one, options, lambda: page(one))
        case "add":
            added = await records.add(fields)
            _print(added, options, lambda: f"added {options.name}")
        case "remove":
            await records.remove(options.name)
            _print({"name": options.name}, options, lambda: f"removed {options.name}")
        case word:
            switched = await records.switch(options.name, is_enabled=word == "enable")
            _print(switched, options, lambda: f"{word}d {options.name}")


@asynccontextmanager
async def _records(options: Any) -> AsyncIterator[Records]:
    """Those of the gateway that was named, or of the store."""
    if named := gateway_named(options):
        async with http_client() as client:
            yield RemoteRecords(client, named)
        return
    configuration = load_configuration(starting.servers_path())
    async with configured_store(configuration) as store:
        yield StoreRecords(configuration, store, local_identity())


# ------------------------------------------------------------------------------------------------------- what is asked


def fields_of(options: Any) -> dict[str, Any]:
    """The fields of the record that `add` asks for; None and empty are those that were not given.

    Raises:
        ConfigurationError: a value is missing, or of no use.
    """
    if options.url is not None and options.after:
        raise ConfigurationError("a remote server takes no arguments. Leave out what follows --")
    if options.program is not None and is_command_line(options.program):
        raise ConfigurationError(
            "--command: must be the program alone. Write what follows it behind --: --command PROGRAM -- ARGUMENTS"
        )
    return {
        "name": options.name,
        "url": options.url,
        "command": options.program,
        "docker_image": options.image,
        "args": tuple(options.after),
        "transport_type": options.transport,
        "docker_ports": tuple(options.port),
        "env": pairs("--env", options.env, lambda name: name),
        "headers": pairs("--header", options.header, lambda name: name.upper().replace("-", "_")),
        "required_roles": tuple(options.role),
        "description": options.description,
        "isolation": options.isolation,
        "is_enabled": False if options.disabled else None,
    }


def pairs(option: str, given: list[str], variable_of: Callable[[str], str]) -> dict[str, str]:
    """Names and values as they were given, with those filled in that stand elsewhere.

    Args:
        variable_of: the variable that holds the value of a name which stands alone.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if re.search(r"[\s:]", name):  # never repeated: `Authorization: Bearer …` was meant, and is a secret
            raise ConfigurationError(f"{option}: a name has no colon and no space. Write NAME=VALUE, NAME or NAME=-")
        if name in found:
            raise ConfigurationError(f"{option} {name}: stands twice. Keep one")
        if not equals:
            variable = variable_of(name)
            if variable not in os.environ:
                raise ConfigurationError(
                    f"{option} {name}: the variable {variable} is not set. Set it, or write {name}=-"
                )
            value = os.environ[variable]
        found[name] = _from_stdin(f"{option} {name}") if equals and value == "-" else value
    return found


def _from_stdin(what: str) -> str:
    if sys.stdin.isatty():
        return getpass.getpass(f"{what}: ")
    line = sys.stdin.readline()
    if not line:
        raise ConfigurationError(f"{what}: stdin ended before a line came")
    return line.rstrip("\r\n")


# ------------------------------------------------------------------------------------------------------- what is shown


def _print(value: Any, options: Any, text: Callable[[], str]) -> None:
    said = json.dumps(value, indent=2) if options.as_json else harmless_lines(text())
    sys.stdout.write(said + "\n")


def harmless_lines(text: str) -> str:
    """Each line without what a terminal would obey."""
    return "\n".join(harmless(line) for line in text.split("\n"))


def table(servers: list[Json]) -> str:
    """The servers in columns."""
    return "\n".join(in_columns([_COLUMNS, *(_row(server) for server in servers)], terminal_width()))


def _row(server: Json) -> tuple[str, ...]:
    roles = server.get("requiredRoles")
    cells = (
        server.get("name"),
        server.get("transportType") or "-",
        "no" if server.get("isEnabled") is False else "yes",
        ",".join(map(str, roles)) if isinstance(roles, list) and roles else "-",
        server.get("source") or "-",
        _reached_by(server),
    )
    return tuple(" ".join(str(cell).split()) for cell in cells)


def _reached_by(server: Json) -> str:
    if server.get("imageName"):
        return ":".join(str(part) for part in (server["imageName"], server.get("imageVersion")) if part)
    return str(server.get("url") or server.get("command") or server.get("python") or "-")


def page(server: Json) -> str:
    """One server, a member in each line. One that was never stored has no version."""
    width = max((len(key) for key in server), default=0)
    return "\n".join(
        f"{key.ljust(width)}  {_value(value)}"
        for key, value in server.items()
        if value not in (None, [], {}) and (key, value) != ("version", 0)
    )


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_value(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return json.dumps(value) if isinstance(value, bool) else " ".join(str(value).split())
