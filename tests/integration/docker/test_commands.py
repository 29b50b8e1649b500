"""The commands for containers, run beside a gateway, as an operator runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from tests.helpers.containers import one_of_ours, ours, over_http, over_stdio, until
from tests.helpers.gateway import LEGACY, ROOT, client, gateway_over_http, gateway_process, servers_toml

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("engine")]


async def command(path: Path, *words: str) -> tuple[int, str]:
    """Run `server.py` with this servers.toml; its exit code, and what it printed."""

    def run() -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, str(ROOT / "server.py"), *words],
            env={"APOLLOS_SERVERS": str(path), "PATH": "/usr/bin:/bin", "HOME": str(path.parent)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout + done.stderr

    return await anyio.to_thread.run_sync(run)


async def test_the_table_shows_what_runs(state: str, engine: Any) -> None:
    servers = {"every": over_stdio(docker_pids=99), "web": over_http(isolation="shared")}
    async with (
        gateway_over_http(servers_toml(servers, state_dir=state)) as served,
        client(served.url, LEGACY) as caller,
    ):
        for name in servers:
            await caller.call_tool(f"{name}_total", {})
        code, table = await command(served.path, "containers")
        header, every, web = (line.split() for line in table.splitlines())
        assert code == 0
        assert header[:6] == ["NAME", "STATE", "TRANSPORT", "UPTIME", "MEMORY", "RESTARTS"]
        assert every[:3] == ["every", "running", "stdio"] and every[-1] == "docker_pids=99"
        assert web[:3] == ["web", "running", "streamable_http"] and "MiB" in web


async def test_logs_are_shown_for_both_kinds(state: str) -> None:
    servers = {"every": over_stdio(), "web": over_http(isolation="shared")}
    async with (
        gateway_over_http(servers_toml(servers, state_dir=state)) as served,
        client(served.url, LEGACY) as caller,
    ):
        for name in servers:
            await caller.call_tool(f"{name}_say", {"text": f"hello from {name}", "times": 3})
        for name in servers:
            with anyio.fail_after(20):
                while True:
                    code, text = await command(served.path, "logs", name, "--tail", "2")
                    if len(text.splitlines()) == 2:
                        break
            assert code == 0 and all(line.endswith(f"hello from {name}") for line in text.splitlines())
        code, text = await command(served.path, "logs", "nobody")
        assert code == 2 and "There is: every, web" in text


async def test_logs_of_both_kinds_replace_secrets_by_their_names(state: str) -> None:
    """Docker keeps what a server wrote as it came, in as many lines as it had."""
    key = "-----BEGIN KEY-----\nnobody-may-see-this\nnor-may-they-this\n"
    secret: dict[str, Any] = {"env": {"TOKEN": "hunter2hunter2"}, "docker_secrets": {"key": key}}
    servers = {"every": over_stdio(**secret), "web": over_http(isolation="shared", **secret)}
    async with (
        gateway_over_http(servers_toml(servers, state_dir=state)) as served,
        client(served.url, LEGACY) as caller,
    ):
        for name in servers:
            await caller.call_tool(f"{name}_say", {"text": f"hunter2hunter2\n{key}the end"})
            text = ""
            with anyio.fail_after(20):
                while not text.rstrip().endswith("the end"):
                    _, text = await command(served.path, "logs", name)
            assert text.count("[TOKEN]") == 1 and text.count("[key]") == 3
            assert "hunter2" not in text and "may" not in text


async def test_a_stopped_server_comes_back_with_the_next_call(state: str, engine: Any) -> None:
    async with gateway_over_http(servers_toml({"web": over_http(isolation="shared")}, state_dir=state)) as served:
        async with client(served.url, LEGACY) as caller:
            assert (await caller.call_tool("web_total", {})).data == 1
            made = one_of_ours(engine, "web").name
            assert await command(served.path, "stop", "web") == (0, f"stopped {made}\n")
            assert ours(engine) == []
            assert (await caller.call_tool("web_total", {})).data == 1
        assert "has no container" in (await command(served.path, "stop", "web"))[1] or ours(engine) == []


async def test_prune_removes_what_a_killed_gateway_left(state: str, engine: Any, tmp_path: Path) -> None:
    path = tmp_path / "servers.toml"
    path.write_text(servers_toml({"web": over_http(isolation="shared")}, state_dir=state))
    async with (
        gateway_process("", env={"APOLLOS_SERVERS": str(path)}) as gateway,
        client(gateway.url, LEGACY) as caller,
    ):
        await caller.call_tool("web_total", {})
        made = one_of_ours(engine, "web").name
        assert await command(path, "prune") == (0, "")  # it lives
        gateway.process.kill()
        await gateway.process.wait()
    code, text = await command(path, "prune")
    assert (code, f"removed {made}" in text) == (0, True)
    await until(lambda: ours(engine) == [])


async def test_check_covers_containers(state: str, tmp_path: Path) -> None:
    path = tmp_path / "servers.toml"
    servers = {"every": over_stdio(docker_pids=99), "gone": over_stdio("apollos-test/nowhere")}
    path.write_text(servers_toml(servers, state_dir=state))
    code, table = await command(path, "check")
    assert code == 1
    assert "relaxed: docker_pids=99" in table
    assert "Run: docker pull apollos-test/nowhere" in table
