"""The gateway's lifetimes: it exists at once, runs when somebody comes, and leaves nothing behind when it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastmcp import Client
from fastmcp.exceptions import ToolError

from composition import gateway as module
from composition import servers_file
from composition.gateway import Gateway, GatewayState
from composition.servers_file import load_configuration
from providers.errors import GatewayError
from providers.resource import McpServerResource
from tests.conftest import processes_left
from tests.helpers.fakes import client_of
from tests.helpers.gateway import local, servers_toml
from tests.helpers.processes import eventually

pytestmark = pytest.mark.core

PROPER, HUNG = local("hang.py", "proper"), local("hang.py", "init-hang")


def backends() -> list[str]:
    """The processes of backends that are alive."""
    return [process for process in processes_left() if "hang.py" in process]


class Configured:
    """A servers.toml of the test's own, and gateways made of it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "servers.toml"

    def write(self, servers: dict[str, dict[str, Any]], **settings: Any) -> None:
        self.path.write_text(servers_toml(servers, **settings))

    def gateway(self, servers: dict[str, dict[str, Any]], **settings: Any) -> Gateway:
        self.write(servers, **settings)
        return Gateway(load_configuration(self.path))


@pytest.fixture
def configured(tmp_path: Path) -> Configured:
    return Configured(tmp_path)


@asynccontextmanager
async def running(gateway: Gateway) -> AsyncIterator[Client[Any]]:
    """The gateway as FastMCP runs it, and a client of it."""
    async with client_of(gateway.mcp) as client:
        yield client


async def names(client: Client[Any]) -> list[str]:
    return sorted(each.name for each in await client.list_tools())


# -------------------------------------------------------------------------------- before it runs


def test_it_exists_with_its_mounts_before_any_event_loop_runs(configured: Configured) -> None:
    gateway = configured.gateway({"one": PROPER, "two": HUNG, "off": PROPER | {"is_enabled": False}}, name="Team")
    assert sorted(gateway.registry.mounts) == ["one", "two"] and gateway.mcp.name == "Team"
    assert repr(gateway) == "<Gateway 'Team' stopped 2 servers>" and gateway.state is GatewayState.STOPPED
    assert backends() == []


def test_settings_reach_the_pool(configured: Configured) -> None:
    gateway = configured.gateway({}, max_connections=7, acquire_timeout=1.5, idle_timeout=2, max_lifetime=3)
    assert gateway.pool.limits[:4] == (7, 1.5, 2.0, 3.0)
    assert configured.gateway({}).pool.limits.max_connections == 20
    assert Gateway(gateway.configuration, max_connections=200).pool.limits.max_connections == 7


def test_each_way_to_reach_a_server_has_its_wire(configured: Configured, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    for name in ("stdio_wire", "inprocess_wire", "streamable_http_wire", "sse_wire"):
        monkeypatch.setattr(module, name, lambda *_, name=name: made.append(name))
    monkeypatch.setattr(Gateway, "_client", lambda *_: None)
    servers = {
        "a": {"command": "x"},
        "b": {"url": "http://x.example/mcp"},
        "c": {"url": "http://x.example/sse", "transport_type": "sse"},
    }
    gateway = configured.gateway(servers)
    for name in servers:
        gateway.registry.mounts[name].target.open_wire(None)  # type: ignore[arg-type]
    assert made == ["stdio_wire", "streamable_http_wire", "sse_wire"]


def test_without_a_lifespan_it_starts_when_it_is_asked_and_leaves_nothing(configured: Configured) -> None:
    """As `fastmcp inspect` uses it, which runs no lifespan; and then again, in another event loop."""
    gateway = configured.gateway({"one": PROPER | {"timeouts": {"shutdown": 20}}})

    async def inspect() -> None:
        assert [each.name for each in await gateway.mcp.list_tools()] == ["one_echo"]
        await gateway.mcp.call_tool("one_echo", {"text": "hi"})
        assert gateway.state is GatewayState.RUNNING and len(backends()) == 1

    for _ in range(2):
        began = time.monotonic()
        asyncio.run(inspect())
        assert gateway.state is GatewayState.STOPPED and repr(gateway.pool) == "<McpConnectionPool 0/20, 0 waiting>"
        assert_soon_no_backends()
        assert time.monotonic() - began < 5, "a backend that is told to end, ends"


def assert_soon_no_backends() -> None:
    deadline = time.monotonic() + 5
    while backends() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert backends() == []


# ------------------------------------------------------------------------------- start and stop


async def test_within_fastmcps_lifespan_it_runs_and_after_it_nothing_is_left(configured: Configured) -> None:
    gateway = configured.gateway({"one": PROPER})
    async with running(gateway) as client:
        assert gateway.state is GatewayState.RUNNING
        assert await names(client) == ["one_echo"]
        assert (await client.call_tool("one_echo", {"text": "hi"})).content[0].text == "hi"  # type: ignore[union-attr]
        assert len(backends()) == 1
    assert gateway.state is GatewayState.STOPPED and gateway.pool.connections() == []
    await eventually(lambda: backends() == [])


async def test_it_can_be_started_again_after_it_stopped(configured: Configured) -> None:
    gateway = configured.gateway({"one": PROPER})
    for _ in range(3):
        await gateway.start()
        await gateway.start()
        async with running(gateway) as client:
            await client.call_tool("one_echo", {"text": "hi"})
        await gateway.stop()
        await gateway.stop()
        assert gateway.state is GatewayState.STOPPED
    await eventually(lambda: backends() == [])


async def test_many_who_start_it_at_once_start_it_once(configured: Configured) -> None:
    gateway = configured.gateway({})
    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(gateway.start)
    assert sum(task.get_name() == "apollos-gateway" for task in asyncio.all_tasks()) == 1
    await gateway.stop()


async def test_stopping_does_not_wait_for_a_backend_that_hangs(configured: Configured) -> None:
    gateway = configured.gateway({"hung": HUNG, "one": PROPER})
    async with running(gateway) as client:
        assert await names(client) == ["one_echo"]
        assert gateway.pool.statistics().connecting == 1
        began = anyio.current_time()
    assert anyio.current_time() - began < 4
    await eventually(lambda: backends() == [])


async def test_what_cannot_start_says_why_and_can_be_tried_again(
    configured: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise OSError("no sockets left")

    gateway = configured.gateway({"one": PROPER})
    with monkeypatch.context() as patch:
        patch.setattr(module, "http_client", broken)
        with pytest.raises(OSError, match="no sockets left"):
            await gateway.start()
        assert gateway.state is GatewayState.STOPPED
    async with running(gateway) as client:
        assert await names(client) == ["one_echo"]


async def test_a_session_that_ends_closes_its_own_backends(configured: Configured) -> None:
    gateway = configured.gateway({"one": PROPER})
    async with running(gateway) as stays:
        await stays.call_tool("one_echo", {"text": "hi"})
        async with running(gateway) as leaves:
            await leaves.call_tool("one_echo", {"text": "hi"})
            assert len(backends()) == 2
        await eventually(lambda: len(backends()) == 1)
        assert len(gateway.sessions) == 1


# --------------------------------------------------------------------------------------- draining


async def test_draining_refuses_new_calls_until_it_is_started_again(configured: Configured) -> None:
    gateway = configured.gateway({"one": PROPER})
    async with running(gateway) as client:
        await gateway.drain()
        assert gateway.state is GatewayState.DRAINING
        with pytest.raises(ToolError, match="the gateway is shutting down"):
            await client.call_tool("one_echo", {"text": "hi"})
    async with running(gateway) as client:
        await client.call_tool("one_echo", {"text": "hi"})


# -------------------------------------------------------------------------- the file is followed


async def test_a_changed_file_changes_the_mounts_live(configured: Configured) -> None:
    gateway = configured.gateway({"one": PROPER, "two": PROPER})
    async with running(gateway) as client:
        assert await names(client) == ["one_echo", "two_echo"]
        kept = gateway.registry.mounts["two"]
        configured.write({"two": PROPER, "three": PROPER | {"tools": {"rename": {"echo": "say"}}}})
        await eventually(lambda: sorted(gateway.registry.mounts) == ["three", "two"])
        assert await names(client) == ["three_say", "two_echo"]
        assert gateway.registry.mounts["two"] is kept
        await eventually(lambda: len(backends()) == 2)


async def test_a_broken_file_is_told_and_the_last_good_one_stands(
    configured: Configured, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = configured.gateway({"one": PROPER})
    good = configured.path.read_text()
    async with running(gateway) as client:
        for broken in (good + "[servers.bad]\ncomand = 'x'\n", "[servers", good + "[servers.Bad_Name]\ncommand='x'\n"):
            caplog.clear()
            configured.path.write_text(broken)
            await eventually(lambda: "The last good configuration stands." in caplog.text)
            assert str(configured.path) in caplog.text
            assert await names(client) == ["one_echo"]
        caplog.clear()
        configured.path.unlink()
        await eventually(lambda: "no such file" in caplog.text)
        assert await names(client) == ["one_echo"]
        configured.write({"one": PROPER, "two": PROPER})
        await eventually(lambda: "two" in gateway.registry.mounts)
        assert await names(client) == ["one_echo", "two_echo"]


async def test_a_file_that_is_seen_while_it_is_being_saved_is_read_again(
    configured: Configured, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many editors empty a file before they write it, and an empty file is a good one."""
    gateway, look = configured.gateway({"one": PROPER}), servers_file._look

    def saved_after_the_first_look(*arguments: Any) -> Any:
        seen = look(*arguments)
        if not configured.path.read_text():
            configured.write({"one": PROPER, "two": PROPER})
        return seen

    monkeypatch.setattr(servers_file, "_look", saved_after_the_first_look)
    with caplog.at_level("INFO"):
        async with running(gateway):
            configured.path.write_text("")
            await eventually(lambda: "two" in gateway.registry.mounts)
    assert "server 'one' unmounted" not in caplog.text


async def test_what_takes_effect_only_at_the_next_start_is_told(
    configured: Configured, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = configured.gateway({"one": PROPER})
    async with running(gateway):
        configured.write({"one": PROPER}, max_connections=3)
        await eventually(lambda: "that takes effect at the next start" in caplog.text)
        assert gateway.pool.limits.max_connections == 20


async def test_a_change_made_while_it_was_stopped_is_seen_at_the_next_start(configured: Configured) -> None:
    gateway = configured.gateway({"one": PROPER})
    configured.write({"two": PROPER})
    async with running(gateway):
        await eventually(lambda: list(gateway.registry.mounts) == ["two"])


# ------------------------------------------------------------------------------------------- who


def test_without_authentication_the_operator_may_everything(configured: Configured) -> None:
    gateway = configured.gateway({})
    caller = gateway.operator_caller()
    assert caller.identity == gateway.operator and caller.identity.is_admin and not caller.has_session


async def test_an_error_of_the_file_is_no_error_of_the_gateway(configured: Configured) -> None:
    configured.path.write_text("[servers.one]\n")
    with pytest.raises(GatewayError, match="needs 'command'"):
        load_configuration(configured.path)


async def test_one_bad_server_takes_no_other_down(configured: Configured, tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("raise SystemExit(3)")
    gateway = configured.gateway(
        {
            "absent": {"command": "no-such-program-at-all"},
            "bad": {"python": f"{bad}:mcp"},
            "one": PROPER,
        }
    )
    async with running(gateway) as client:
        assert await names(client) == ["one_echo"]
        for server in ("absent", "bad"):
            with pytest.raises(ToolError, match=f"server '{server}'"):
                await client.call_tool(f"{server}_echo")
        await client.call_tool("one_echo", {"text": "hi"})


def test_a_record_is_what_the_file_says(configured: Configured) -> None:
    gateway = configured.gateway({"one": PROPER | {"required_roles": ["dev"]}})
    record = gateway.registry.resource("one")
    assert isinstance(record, McpServerResource) and record.required_roles == ("dev",)
    assert record.created_by == "servers.toml" and record.version == 1
