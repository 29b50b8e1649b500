"""From what somebody found to a tool that answers: three real servers through the MCP Registry, and three through a
chat client's configuration, each by the commands that a person types."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.helpers.gateway import LEGACY, ROOT, client, gateway_over_http, patient_toml
from tests.helpers.mcp_registry import package, registry, server
from tests.helpers.processes import ServerCommand

pytestmark = pytest.mark.timeout(300)  # packages may have to be fetched

PINS = dict(pin.split("@") for pin in (Path(__file__).parent / "uvx.txt").read_text().split())
NPM = json.loads((Path(__file__).parent / "npm" / "package.json").read_text())["dependencies"]
EVERYTHING = "@modelcontextprotocol/server-everything"


async def run(servers_toml: Path, *arguments: str) -> str:
    """Run `server.py` and give what it printed."""
    done = await anyio.run_process(
        [sys.executable, str(ROOT / "server.py"), *arguments],
        env={**os.environ, "APOLLOS_SERVERS": str(servers_toml)},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


async def answers(toml: str, calls: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The text that each tool answers through a gateway with these servers."""
    async with gateway_over_http(toml) as gateway, client(gateway.url, LEGACY) as caller:
        assert calls.keys() <= {tool.name for tool in await caller.list_tools()}
        heard = {tool: await caller.call_tool(tool, arguments) for tool, arguments in calls.items()}
        return {tool: "\n".join(getattr(part, "text", "") for part in each.content) for tool, each in heard.items()}


@pytest.fixture
def calls(git_repository: Path) -> dict[str, dict[str, Any]]:
    return {
        "time_get_current_time": {"timezone": "UTC"},
        "git_git_log": {"repo_path": str(git_repository)},
        "everything_echo": {"message": "hi"},
    }


def all_answered(heard: dict[str, str]) -> None:
    assert "UTC" in heard["time_get_current_time"]
    assert "first" in heard["git_git_log"]
    assert heard["everything_echo"] == "Echo: hi"


async def test_three_servers_of_the_registry_are_found_added_and_called(
    tmp_path: Path,
    git_repository: Path,
    time_server: ServerCommand,
    git_server: ServerCommand,
    npm_servers: Path,
    calls: dict[str, dict[str, Any]],
) -> None:
    zone = {"type": "named", "name": "--local-timezone", "description": "Where we are", "isRequired": True}
    where = {"registry_name": "pypi", "name": "mcp-server-git", "version": PINS["mcp-server-git"]}
    folder = {"type": "named", "name": "--repository", "value_hint": "folder", "is_required": True}
    listed = (
        server(
            "com.example/time",
            packages=[package("pypi", "mcp-server-time", PINS["mcp-server-time"], packageArguments=[zone])],
        ),
        server("com.example/git", packages=[{**where, "package_arguments": [folder]}]),
        server("com.example/everything", packages=[package("npm", EVERYTHING, NPM[EVERYTHING])]),
    )
    path = tmp_path / "servers.toml"
    async with registry(*listed) as one:
        toml = patient_toml({}, mcp_registry=one.url, state_dir=str(tmp_path / "state"), store="memory://")
        path.write_text(toml)
        found = json.loads(await run(path, "registry", "search", "com.example", "--json"))
        assert [each["state"] for each in found] == ["needs something", "needs something", "runnable"]
        for name, given in (
            ("time", ["--set", "local-timezone=UTC"]),
            ("git", ["--set", f"repository={git_repository}"]),
            ("everything", []),
        ):
            table = await run(path, "registry", "add", f"com.example/{name}", *given)
            path.write_text(f"{path.read_text()}\n{table}")
    all_answered(await answers(path.read_text(), calls))


async def test_three_servers_of_a_client_s_configuration_are_imported_and_called(
    tmp_path: Path,
    time_server: ServerCommand,
    git_server: ServerCommand,
    everything_server: ServerCommand,
    calls: dict[str, dict[str, Any]],
) -> None:
    servers = {"Time": time_server, "git": git_server, "everything": everything_server}
    entries = {name: {"command": each.command, "args": each.args} for name, each in servers.items()}
    configuration = tmp_path / "claude_desktop_config.json"
    path = tmp_path / "servers.toml"
    path.write_text(patient_toml({}))
    configuration.write_text(before := json.dumps({"mcpServers": entries}, indent=2))
    await run(path, "import", str(configuration), "--write")
    assert set(tomllib.loads(path.read_text())["servers"]) == {"time", "git", "everything"}
    all_answered(await answers(path.read_text(), calls))

    await run(path, "connect", "claude-desktop", "--path", str(configuration), "--move")
    [(name, entry)] = json.loads(configuration.read_text())["mcpServers"].items()
    assert name == "apollos" and entry["env"] == {"APOLLOS_SERVERS": str(path)}
    await run(path, "disconnect", "claude-desktop", "--path", str(configuration))
    assert configuration.read_text() == before
