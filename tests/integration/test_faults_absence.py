"""Backends that are not there: refused connections, names that lead nowhere, servers that come up after the gateway.

The gateway is ready without them. Who calls one hears what is wrong; once it is there, its tools are.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from fastmcp import Client

from tests.helpers.faults import HELLO, QUICK, both, fails, text_of, undisturbed
from tests.helpers.gateway import ERAS, LEGACY, ServedGateway, client, gateway_over_http, gateway_process
from tests.helpers.ports import dead_port
from tests.helpers.processes import SERVERS, eventually, http_server

pytestmark = pytest.mark.core

APPEARS = 10.0
"""Seconds until a server that came up is seen."""

Resolver = Callable[..., Any]


def at(host: str, port: int) -> dict[str, Any]:
    return {"url": f"http://{host}:{port}/mcp", "timeouts": QUICK}


async def tool_names(caller: Client[Any]) -> list[str]:
    return [tool.name for tool in await caller.list_tools()]


@pytest.mark.parametrize("era", ERAS)
async def test_a_server_that_refuses_connections_is_unavailable_and_not_unknown(era: str) -> None:
    with dead_port() as port:
        async with (
            gateway_over_http(both(at("127.0.0.1", port))) as gateway,
            undisturbed(gateway.url, era),
            client(gateway.url, era) as caller,
        ):
            with fails("server 'broken'", "no connection (connection refused)", within=1.0):
                await caller.call_tool("broken_echo", HELLO)
            with fails("server 'broken'", within=1.0):
                await caller.get_prompt("broken_anything")
            with fails("server 'broken'", within=1.0):
                await caller.read_resource("data://broken/anything")
            assert await tool_names(caller) == ["other_echo"]


@pytest.mark.parametrize("era", ERAS)
async def test_a_command_that_does_not_exist_is_named(era: str) -> None:
    missing = {"command": "no-such-command-anywhere", "timeouts": QUICK}
    async with (
        gateway_over_http(both(missing)) as gateway,
        undisturbed(gateway.url, era),
        client(gateway.url, era) as caller,
    ):
        with fails("server 'broken'", "'no-such-command-anywhere' was not found", "Install it", within=1.0):
            await caller.call_tool("broken_echo", HELLO)
        assert await tool_names(caller) == ["other_echo"]


async def test_the_gateway_is_ready_without_its_backends() -> None:
    with dead_port() as port:
        began = time.monotonic()
        async with gateway_process(both(at("127.0.0.1", port))) as gateway, aiohttp.ClientSession() as http:
            async with http.get(gateway.url.replace("/mcp", "/readyz")) as answer:
                assert answer.status == 200
            assert time.monotonic() - began < 10.0


async def seen_by(gateway: ServedGateway, era: str, bring_up: Callable[[], Any]) -> None:
    """A client lists, the server comes up, and within `APPEARS` it is announced, in the era that can, and listed."""
    announced = anyio.Event()

    async def hear(message: Any) -> None:
        if "ToolListChanged" in type(getattr(message, "root", message)).__name__:
            announced.set()

    async with undisturbed(gateway.url, era), client(gateway.url, era, message_handler=hear) as caller:
        assert await tool_names(caller) == ["other_echo"]
        await bring_up()
        with anyio.fail_after(APPEARS):
            if era == LEGACY:
                await announced.wait()
            while "broken_echo" not in await tool_names(caller):  # noqa: ASYNC110  # the newest era is told nothing
                await anyio.sleep(0.02)
        assert text_of(await caller.call_tool("broken_echo", HELLO)) == "hello"


@pytest.mark.parametrize("era", ERAS)
async def test_a_remote_server_that_comes_up_later_is_seen(era: str) -> None:
    with dead_port() as port:
        pass
    async with anyio.create_task_group() as tasks, gateway_over_http(both(at("127.0.0.1", port))) as gateway:
        down = anyio.Event()

        async def serve(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            async with http_server("hang.py", "proper", "--http", port=port):
                task_status.started()
                await down.wait()

        try:
            await seen_by(gateway, era, lambda: tasks.start(serve))
        finally:
            down.set()


@pytest.mark.parametrize("era", ERAS)
async def test_a_command_that_is_installed_later_is_seen(era: str, tmp_path: Path) -> None:
    command = tmp_path / "server"

    async def install() -> None:
        whole = tmp_path / "whole"
        whole.write_text(f"#!/bin/sh\nexec {sys.executable} {SERVERS / 'hang.py'} proper\n")
        whole.chmod(0o755)
        whole.rename(command)

    async with gateway_over_http(both({"command": str(command), "timeouts": QUICK})) as gateway:
        await seen_by(gateway, era, install)


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the name `moving.test` leads to, under the key `moving.test`; without it, to nothing."""
    known: dict[str, str] = {}
    resolve = socket.getaddrinfo

    def answer(host: Any, *more: Any, **options: Any) -> Any:
        if host == "moving.test":
            if host not in known:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            host = known[host]
        return resolve(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return known


@pytest.mark.parametrize("era", ERAS)
async def test_a_name_that_leads_nowhere_is_said_and_one_that_moves_is_followed(
    era: str, addresses: dict[str, str]
) -> None:
    async with (
        http_server("hang.py", "proper", "--http") as server,
        gateway_over_http(both(at("moving.test", server.port))) as gateway,
        undisturbed(gateway.url, era),
        client(gateway.url, era) as caller,
    ):
        with fails("server 'broken'", "its host name was not found", within=5.0):
            await caller.call_tool("broken_echo", HELLO)
        catalogue, operator = gateway.gateway.registry.mounts["broken"].catalogue, gateway.gateway.operator_caller()
        addresses["moving.test"] = "127.0.0.2"  # nobody serves there
        await eventually(lambda: "connection refused" in str(catalogue.error(operator)), within=APPEARS)
        addresses["moving.test"] = "127.0.0.1"
        await eventually(lambda: catalogue.peek(operator) is not None, within=APPEARS)
        assert text_of(await caller.call_tool("broken_echo", HELLO)) == "hello"
