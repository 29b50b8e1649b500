"""The commands for tools: `tools` lists, searches and weighs them, and `call` runs one.

The command line comes in. Servers are reached by a gateway of this process, as the operator, or by one that runs:
`--gateway URL` with the token in `APOLLOS_TOKEN`. Called is FastMCP's client, so both ways show what a client sees.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote

import anyio
from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport

from composition.columns import cut, in_columns, terminal_width
from composition.cost import tokens_of
from composition.gateway import SERVE_MAX_CONNECTIONS, Gateway
from composition.gateway_address import NamedGateway, add_gateway_options, gateway_named, refused, unreached
from composition.names import ALONE, OWN_NAMES, SEPARATOR, Names, Namespace
from composition.ranking import ToolIndex, rank
from composition.settings import OWN_SERVER, ToolListing
from composition.starting import FAILED, MISCONFIGURED, OK, gateway_from_environment, run
from composition.tables import did_you_mean
from composition.view import LATE
from providers.container_log import harmless
from providers.endpoint import exchange, http_client
from providers.errors import CallerError
from providers.lines import Json, MCPError, server_facts

_SHORT = 80
_START_SECONDS, _ALONE_SECONDS, _LOOK_EVERY = 6.0, 60.0, 0.25
"""How long a server is waited for of which others are shown meanwhile, and one that is asked for alone."""
_WHY_SECONDS = 5.0
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


class _Shown(NamedTuple):
    """What a client finds at one address of a gateway: tools by public name. `names` makes those of what stands there
    under other ones."""

    client: Client[Any]
    forms: dict[str, Json]
    names: Names = OWN_NAMES


@asynccontextmanager
async def _shown(options: Any, server: str | None) -> AsyncIterator[_Shown]:
    """The tools of one server, for which no other is started or asked; or of all servers (None).

    Raises:
        GatewayError: there is no such server, or it does not say what it offers.
    """
    named = gateway_named(options)
    async with _by_one_that_runs(named, server) if named else _by_our_own(server) as shown:
        yield shown


@asynccontextmanager
async def _by_our_own(server: str | None) -> AsyncIterator[_Shown]:
    gateway = _made(only=server)
    is_own = server == OWN_SERVER and gateway.registry.own is not None
    if is_own:
        gateway = _made(only=None)  # its own tools are about all servers
    await gateway.start()
    try:
        awaited = set[str]() if is_own else await _with_tools(gateway, server)
        async with Client(gateway.mcp) as client:
            yield _Shown(client, await _forms(client, awaited))
    finally:
        await gateway.stop()


def _made(only: str | None) -> Gateway:
    return gateway_from_environment(SERVE_MAX_CONNECTIONS, only=only, tools=ToolListing.ALL)


async def _with_tools(gateway: Gateway, server: str | None) -> set[str]:
    """The servers that offer tools, once each has said so or has failed: a list waits for nobody; here a person does.

    Raises:
        GatewayError: the one that is wanted is not there, or has failed.
    """
    mounts, caller = gateway.registry.mounts, gateway.operator_caller()
    if server is not None and server not in mounts:
        if server in gateway.store.snapshot:
            raise CallerError(f"server '{server}' is switched off. 'server.py enable {server}' switches it on.")
        raise _no_server(server, gateway.store.snapshot)
    async with anyio.create_task_group() as listing:
        for mount in mounts.values():
            listing.start_soon(mount.catalogue.get, caller)
    if server is not None and (problem := mounts[server].catalogue.error(caller)):
        raise problem
    known = {name: mount.offer(found) for name, mount in mounts.items() if (found := mount.catalogue.peek(caller))}
    return {name for name, offer in known.items() if offer.tools}


@asynccontextmanager
async def _by_one_that_runs(named: NamedGateway, server: str | None) -> AsyncIterator[_Shown]:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(_reached(named, "/mcp"))
        servers = _servers_told(client)
        if server is None or (server == OWN_SERVER and server not in servers):
            yield _Shown(client, await _forms(client, servers if server is None else set()))
            return
        try:
            alone = await stack.enter_async_context(_reached(named, ALONE.format(name=quote(server, safe=""))))
        except CallerError:  # there is none for what a client added for itself
            if server not in servers:
                raise _no_server(server, servers) from None
            yield _Shown(client, await _forms(client, {server}))
            return
        names = Namespace(server)
        yield _Shown(alone, await _forms_alone(alone, names), names)


def _no_server(server: str, servers: Collection[str]) -> CallerError:
    hint = did_you_mean(server, sorted(servers)) or " 'server.py list' shows those that there are."
    return CallerError(f"there is no server '{server}'.{hint}")


@asynccontextmanager
async def _reached(named: NamedGateway, path: str) -> AsyncIterator[Client[Any]]:
    """A client of a gateway that runs, at one of its addresses.

    Raises:
        CallerError: it does not answer, or does not let us in.
    """
    client: Client[Any] = Client(StreamableHttpTransport(f"{named.address}{path}", auth=named.token))
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(client)
        except Exception as error:  # noqa: BLE001 - each line's HTTP library raises errors of its own
            raise await _why_not(named, path, _first_line(error)) from None
        yield client


async def _why_not(named: NamedGateway, path: str, told: str) -> CallerError:
    """Why a gateway is of no use. FastMCP's client hides the status of what it was answered, so it is asked once more.

    Args:
        told: what the client made of it.
    """
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    if named.token is not None:
        headers["Authorization"] = f"Bearer {named.token}"
    url = f"{named.address}{path}"
    try:
        async with http_client() as http:
            answer = await exchange(http, "POST", url, headers=headers, body=b"{}", seconds=_WHY_SECONDS)
    except OSError as error:
        return unreached(named, error)
    what = f"what answers at {named.address} does not speak MCP with us ({told}). Is it a gateway, and does it run?"
    return refused(named, answer.status) or CallerError(what)


def _first_line(error: Exception) -> str:
    return harmless((str(error) or type(error).__name__).partition("\n")[0].strip())


def _servers_told(client: Client[Any]) -> set[str]:
    """Those that the gateway names first of all in its instructions, which one on FastMCP 3.4 has none of; what follows
    is theirs to say."""
    told = server_facts(client)["instructions"] or ""
    return set(_NAMED.findall(told.partition("\n\n")[0]))


async def _forms(client: Client[Any], awaited: set[str]) -> dict[str, Json]:
    """All tools at the address of all servers. A list waits for no server, and a person would rather: one that shows
    nothing yet is waited for, if it is among the awaited ones."""
    forms: dict[str, Json] = {}
    with anyio.move_on_after(_START_SECONDS):
        while True:
            forms = await _listed(client, OWN_NAMES)
            seen = set(map(_server, forms.values()))
            if awaited <= seen or OWN_SERVER in seen - awaited:  # a gateway with own tools may hide the others
                break
            await anyio.sleep(_LOOK_EVERY)
    return forms


async def _forms_alone(client: Client[Any], names: Names) -> dict[str, Json]:
    """All tools at the address of one server, once it has started.

    Raises:
        CallerError: why it shows none.
    """
    deadline = anyio.current_time() + _ALONE_SECONDS
    while True:
        try:
            return await _listed(client, names)
        except MCPError as error:
            if LATE not in str(error) or anyio.current_time() > deadline:
                raise CallerError(str(error)) from None
        await anyio.sleep(_LOOK_EVERY)


async def _listed(client: Client[Any], names: Names) -> dict[str, Json]:
    forms = [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in await client.list_tools()]
    return {public: form | {"name": public} for form in forms if (public := names.name(form["name"]))}


async def _tools(options: Any) -> int:
    async with _shown(options, options.server) as shown:
        forms = {name: form for name, form in shown.forms.items() if options.server in (None, _server(form))}
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
    if rows:
        sys.stdout.write("\n".join(in_columns(rows, terminal_width())) + "\n")
    else:
        sys.stderr.write(_no_tool(options))
    return OK if rows else FAILED


def _no_tool(options: Any) -> str:
    if options.search:
        return "No tool has these words. Try fewer.\n"
    if options.server:
        return f"server '{options.server}' shows no tool.\n"
    if gateway_named(options):
        return "No tool that you may use. Servers may still be starting: try again in a moment.\n"
    return "No tool. 'server.py check' says which servers there are, and why one shows none.\n"


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
    tool = options.tool
    async with _shown(options, tool.partition(SEPARATOR)[0]) as (client, forms, names):
        try:
            arguments = _arguments(options.arguments, forms.get(tool, {}).get("inputSchema") or {})
        except ValueError as error:
            sys.stderr.write(f"{error}\n")
            return MISCONFIGURED
        try:
            result = await client.call_tool_mcp(tool.removeprefix(names.name("")), arguments)
        except MCPError as error:
            sys.stderr.write(harmless(str(error)) + "\n" + _hint(tool, forms))
            return FAILED
    answer = names.tool_result(result.model_dump(mode="json", by_alias=True, exclude_none=True))
    if options.json:
        _print_json(answer)
    else:
        for block in answer.get("content", []):
            _print_text(block["text"] if block.get("type") == "text" else json.dumps(block))
    if not answer.get("isError"):
        return OK
    sys.stderr.write(_hint(tool, forms))
    return FAILED


def _hint(tool: str, forms: dict[str, Json]) -> str:
    """A line with the tool that was probably meant, if this one is not there."""
    meant = "" if tool in forms else did_you_mean(tool, list(forms))
    return harmless(meant.strip()) + "\n" if meant else ""


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
    return str(form["name"]).partition(SEPARATOR)[0]


def _line(form: Json) -> str:
    return cut(" ".join(str(form.get("description") or "").split()), _SHORT)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
