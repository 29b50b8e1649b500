"""The commands for tools: `tools` lists, searches and weighs them, and `call` runs one.

The command line comes in. Servers are reached by a gateway of this process, as the operator, or by one that runs:
`--gateway URL` with the token in `APOLLOS_TOKEN`. Called is FastMCP's client, so both ways show what a client sees.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import anyio
from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport

from composition.cost import tokens_of
from composition.gateway import SERVE_MAX_CONNECTIONS
from composition.gateway_address import NamedGateway, add_gateway_options, gateway_named
from composition.ranking import ToolIndex, rank
from composition.settings import ToolListing
from composition.starting import FAILED, MISCONFIGURED, OK, gateway_from_environment, run
from providers.container_log import harmless
from providers.errors import CallerError
from providers.lines import Json, MCPError

_SHORT = 80
_START_SECONDS, _LOOK_EVERY = 6.0, 0.25
_NAMED = re.compile(r"^- ([a-z0-9-]+): ", re.M)
"""The servers in the gateway's instructions."""


def register(commands: Any) -> None:
    """Add these commands to the command line."""
    tools = commands.add_parser("tools", help="list the tools of all servers, search them, or say what they cost")
    tools.add_argument("--server", metavar="NAME", help="only those of this server")
    tools.add_argument("--search", metavar="WORDS", help="those that fit best, the best first")
    tools.add_argument("--cost", action="store_true", help="what their definitions cost a model, in tokens")
    tools.set_defaults(run=lambda options: run(partial(_tools, options)))
    call = commands.add_parser("call", help="run a tool")
    call.add_argument("tool", metavar="TOOL", help="its public name, such as time_get_current_time")
    call.add_argument("arguments", metavar="KEY=VALUE", nargs="*", help="its arguments; JSON where it wants no text")
    call.set_defaults(run=lambda options: run(partial(_call, options)))
    for command in (tools, call):
        command.add_argument("--json", action="store_true", help="for programs")
        add_gateway_options(command, otherwise="the servers of servers.toml and the store")


@asynccontextmanager
async def _connected(options: Any, server: str | None) -> AsyncIterator[Client[Any]]:
    if named := gateway_named(options):
        async with _reached(named) as client:
            yield client
        return
    gateway = gateway_from_environment(SERVE_MAX_CONNECTIONS, tools=ToolListing.ALL)
    await gateway.start()
    try:
        async with anyio.create_task_group() as listing:  # a list waits for nobody; here a person does
            for name, mount in gateway.registry.mounts.items():
                if server in (None, name):
                    listing.start_soon(mount.catalogue.get, gateway.operator_caller())
        async with Client(gateway.mcp) as client:
            yield client
    finally:
        await gateway.stop()


@asynccontextmanager
async def _reached(named: NamedGateway) -> AsyncIterator[Client[Any]]:
    """A client of a gateway that runs.

    Raises:
        CallerError: it does not answer, or does not let us in.
    """
    client: Client[Any] = Client(StreamableHttpTransport(f"{named.address}/mcp", auth=named.token))
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(client)
        except Exception as error:  # noqa: BLE001 - each line's HTTP library raises errors of its own
            raise CallerError(
                f"the gateway at {named.address} cannot be asked ({_first_line(error)}). Does it run? Where it wants a "
                "token, put that into APOLLOS_TOKEN, or into a file and name that with --token-file"
            ) from None
        yield client


def _first_line(error: Exception) -> str:
    return harmless((str(error) or type(error).__name__).partition("\n")[0].strip())


async def _tools(options: Any) -> int:
    async with _connected(options, options.server) as client:
        listed = await _forms(client)
    forms = {form["name"]: form for form in listed if options.server in (None, _server(form))}
    if options.search:
        servers = dict.fromkeys(map(_server, forms.values()))
        indexes = [
            ToolIndex(name, {key: form for key, form in forms.items() if _server(form) == name}) for name in servers
        ]
        forms = {found.name: forms[found.name] for found in rank(indexes, options.search, 20)}
    if options.cost:
        return _print_cost(forms, as_json=options.json)
    if options.json:
        _print_json(list(forms.values()))
        return OK
    rows = [(name, _line(form)) for name, form in forms.items()]
    width = max((len(name) for name, _ in rows), default=0)
    for name, described in rows:
        sys.stdout.write(harmless(f"{name.ljust(width)}  {described}".rstrip()) + "\n")
    if not rows:
        nobody = f"No server '{options.server}' shows a tool. `list` shows the servers" if options.server else "No tool"
        sys.stderr.write(harmless(nobody) + ".\n")
    return OK if rows else FAILED


async def _forms(client: Client[Any]) -> list[Json]:
    """All tools. A list waits for no server, and a person would rather: one that the gateway has named, and that shows
    nothing yet, is waited for."""
    with anyio.move_on_after(_START_SECONDS):
        while True:
            forms = await _listed(client)
            told = getattr(client.initialize_result, "instructions", None) or ""
            if {*_NAMED.findall(told)} <= {_server(form) for form in forms}:
                return forms
            await anyio.sleep(_LOOK_EVERY)
    return forms


async def _listed(client: Client[Any]) -> list[Json]:
    return [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in await client.list_tools()]


def _print_cost(forms: dict[str, Json], *, as_json: bool) -> int:
    """By server; a token is estimated, see `cost`."""
    costs: dict[str, list[int]] = {}
    for form in forms.values():
        costs.setdefault(_server(form), []).append(tokens_of(form))
    everything = sum(map(sum, costs.values()))
    if as_json:
        servers = {name: {"tools": len(each), "tokens": sum(each)} for name, each in costs.items()}
        _print_json({"tokens": everything, "tokensWithSearch": _search_cost(), "servers": servers})
        return OK
    lines = [("SERVER", "TOOLS", "TOKENS"), *((name, str(len(each)), str(sum(each))) for name, each in costs.items())]
    lines.append(("all", str(len(forms)), str(everything)))
    width = max(len(line[0]) for line in lines)
    for name, tools, tokens in lines:
        sys.stdout.write(f"{name.ljust(width)}  {tools.rjust(6)}  {tokens.rjust(8)}\n")
    sys.stdout.write(
        f'With [gateway] tools = "search" a client is shown {_search_cost()} tokens, and what is pinned.\n'
    )
    return OK


def _search_cost() -> int:
    own = gateway_from_environment(tools=ToolListing.SEARCH).registry.own
    return sum(tokens_of(tool.form) for tool in own.tools.values()) if own else 0


async def _call(options: Any) -> int:
    async with _connected(options, options.tool.partition("_")[0]) as client:
        forms = {form["name"]: form for form in await _forms(client)}
        schema = forms.get(options.tool, {}).get("inputSchema") or {}
        try:
            arguments = _arguments(options.arguments, schema)
        except ValueError as error:
            sys.stderr.write(f"{error}\n")
            return MISCONFIGURED
        try:
            result = await client.call_tool_mcp(options.tool, arguments)
        except MCPError as error:
            sys.stderr.write(harmless(str(error)) + "\n")
            return FAILED
    answer = result.model_dump(mode="json", by_alias=True, exclude_none=True)
    if options.json:
        _print_json(answer)
    else:
        for block in answer.get("content", []):
            _print_text(block["text"] if block.get("type") == "text" else json.dumps(block))
    return FAILED if answer.get("isError") else OK


def _print_text(text: str) -> None:
    """As the tool wrote it; but a terminal obeys no tool."""
    lines = text.split("\n")
    sys.stdout.write("\n".join(map(harmless, lines) if sys.stdout.isatty() else lines) + "\n")


def _arguments(words: list[str], schema: Json) -> Json:
    """`key=value` as the tool's schema wants it: a text as it stands, anything else as JSON."""
    arguments: Json = {}
    properties = schema.get("properties")
    for word in words:
        key, is_pair, value = word.partition("=")
        if not is_pair:
            raise ValueError(f"'{word}' is no argument. Write key=value.")
        described = properties.get(key) if isinstance(properties, dict) else None
        wanted = described.get("type", "string") if isinstance(described, dict) else "string"
        if wanted == "string" or (isinstance(wanted, list) and "string" in wanted):
            arguments[key] = value
            continue
        try:
            arguments[key] = json.loads(value)
        except ValueError:
            raise ValueError(f"'{key}' has to be JSON: the tool wants {wanted}.") from None
    return arguments


def _server(form: Json) -> str:
    return str(form["name"]).partition("_")[0]


def _line(form: Json) -> str:
    described = " ".join(str(form.get("description") or "").split())
    return described if len(described) <= _SHORT else described[: _SHORT - 1] + "…"


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
