"""Plays the whole table once: real servers of both eras over each transport, real gateways, a client for each column.

`outcomes` gives for each cell that can be driven how it went; `test_table` compares that with the table.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import anyio

from tests.helpers.clients import PATIENCE, HandClient, Refused, connect_http, connect_stdio
from tests.helpers.containers import EVERYTHING, over_http, over_stdio
from tests.helpers.gateway import gateway_over_stdio, gateway_process, local, patient_toml, remote
from tests.helpers.processes import http_server
from tests.relay import table
from tests.relay.desk import Desk
from tests.relay.flows import PLAY
from tests.relay.table import HANDSHAKE, NEWEST, WORKS, Cell, Impossible

SCRIPT = "flows.py"
OF_ERA = {HANDSHAKE: "handshake", NEWEST: "newest"}

Server = tuple[str, str]
"""Transport and era."""
Table = dict[str, Any]
"""What stands in servers.toml about one server."""


def name_of(server: Server) -> str:
    transport, era = server
    return f"{transport.lower().replace(', ', '-')}-{OF_ERA[era]}"


@asynccontextmanager
async def process(era: str) -> AsyncIterator[Table]:
    yield local(SCRIPT, OF_ERA[era], "stdio")


@asynccontextmanager
async def streamable_http(era: str) -> AsyncIterator[Table]:
    async with http_server(SCRIPT, OF_ERA[era], "http") as server:
        yield remote(server.url)


@asynccontextmanager
async def http_sse(era: str) -> AsyncIterator[Table]:
    async with http_server(SCRIPT, OF_ERA[era], "sse", path="/sse") as server:
        yield remote(server.url, transport_type="sse")


WAYS: dict[str, Callable[[str], AbstractAsyncContextManager[Table]]] = {
    "stdio": process,
    "HTTP": streamable_http,
    "SSE": http_sse,
}
"""How a server of an era is reached over each transport. Who adds one here adds its column to the tests."""


@asynccontextmanager
async def container(era: str) -> AsyncIterator[Table]:
    yield over_stdio(EVERYTHING, OF_ERA[era], "stdio", docker_command=FLOWS)


@asynccontextmanager
async def container_http(era: str) -> AsyncIterator[Table]:
    on_all_interfaces = {"FLOWS_HOST": "0.0.0.0"}
    yield over_http(EVERYTHING, OF_ERA[era], "http", "8000", docker_command=FLOWS, env=on_all_interfaces)


FLOWS = ["python3", "/opt/flows.py"]
WAYS_OF_CONTAINERS: dict[str, Callable[[str], AbstractAsyncContextManager[Table]]] = {
    "container, stdio": container,
    "container, HTTP": container_http,
}
"""The same for what needs a Docker engine: those columns are played among the tests of containers."""


@asynccontextmanager
async def servers(wanted: Iterable[Server]) -> AsyncIterator[dict[str, Table]]:
    """The tables of the servers, by name; those that are not started by the gateway run."""
    async with AsyncExitStack() as stack:
        yield {
            name_of((transport, era)): await stack.enter_async_context((WAYS | WAYS_OF_CONTAINERS)[transport](era))
            for transport, era in wanted
        }


@asynccontextmanager
async def client(front: str, era: str, toml: str) -> AsyncIterator[HandClient]:
    """A client of a gateway of its own."""
    if front == "HTTP":
        async with gateway_process(toml) as gateway, connect_http(gateway.url, era) as one:
            yield one
    else:
        async with (
            gateway_over_stdio(toml) as gateway,
            connect_stdio(gateway.command, {**os.environ, **gateway.env}, era) as one,
        ):
            yield one


def driven(transports: Iterable[str]) -> list[Cell]:
    """The cells that are played over these transports."""
    return [
        cell
        for cell in table.cells()
        if cell.transport in transports and not isinstance(table.expected(cell), Impossible)
    ]


async def outcomes(transports: Iterable[str], **settings: Any) -> dict[Cell, str]:
    """How each cell went: `works`, `refused CODE`, or what was wrong. `settings` are the gateway's."""
    cells = driven(transports)
    found: dict[Cell, str] = {}
    async with servers(dict.fromkeys((cell.transport, cell.server) for cell in cells)) as tables:
        for front, era in dict.fromkeys((cell.front, cell.client) for cell in cells):
            column = [cell for cell in cells if (cell.front, cell.client) == (front, era)]
            try:
                async with client(front, era, patient_toml(tables, **settings)) as one:
                    for cell in column:
                        found[cell] = await play(cell, one)
            except Exception as error:  # every cell of the column has failed with it
                found |= {cell: f"no client: {told(error)}" for cell in column if cell not in found}
    return found


async def play(cell: Cell, one: HandClient) -> str:
    one.asked.clear()
    one.heard.clear()
    desk = Desk(one, name_of((cell.transport, cell.server)), cell.server)
    try:
        with anyio.fail_after(2 * PATIENCE):
            await PLAY[cell.flow](desk)
    except Refused as refused:
        return f"refused {refused.error.get('code')}: {refused.error.get('message')}"
    except Exception as error:  # whatever it is, it is what the cell has to say
        return told(error)
    return WORKS


def told(error: BaseException) -> str:
    """An error in a line or some; a group's members."""
    if isinstance(error, BaseExceptionGroup):
        return " / ".join(told(one) for one in error.exceptions)
    return f"{type(error).__name__}: {error}"[:2000]


if __name__ == "__main__":  # for a look at what is missing: python -m tests.relay.driver [TRANSPORT …]
    for cell, outcome in anyio.run(outcomes, sys.argv[1:] or WAYS).items():
        print(f"{'ok  ' if outcome == WORKS else 'FAIL'} {cell}: {outcome[:300]}")
