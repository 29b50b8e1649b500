"""The balancers of deploy/, as they are but for their addresses, before two real replicas."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.abc
import pytest

from providers.lines import MODERN
from tests.helpers.gateway import ROOT, in_process, local
from tests.helpers.ports import free_port
from tests.helpers.processes import end, eventually
from tests.helpers.redis_server import RedisServer
from tests.helpers.replicas import replicas, round_robin
from tests.helpers.rpc import HANDSHAKE, NEWEST

pytestmark = [
    pytest.mark.skipif(not MODERN, reason="FastMCP 3.4 knows neither eras nor resumable streams"),
    pytest.mark.filterwarnings("ignore:The logging capability is deprecated"),
]

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
FILES = {"nginx": "nginx.conf", "haproxy": "haproxy.cfg"}
CHECK = {"nginx": ["-t", "-c"], "haproxy": ["-c", "-f"]}
RUN = {"nginx": ["-g", "daemon off;", "-c"], "haproxy": ["-db", "-f"]}


def program(name: str) -> str:
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install {name})")
    return found


def configured(name: str, folder: Path, ports: list[int], port: int) -> Path:
    """The file of deploy/ with other addresses."""
    text = (ROOT / "deploy" / FILES[name]).read_text()
    for number, each in enumerate(ports, 1):
        assert f"gateway-{number}:8808" in text
        text = text.replace(f"gateway-{number}:8808", f"127.0.0.1:{each}")
    listen = {"nginx": "listen 8080;", "haproxy": "bind :8080"}[name]
    assert listen in text
    text = text.replace(listen, listen.replace(":8080", f"127.0.0.1:{port}").replace(" 8080", f" 127.0.0.1:{port}"))
    file = folder / FILES[name]
    file.write_text(text.replace("/tmp/", f"{folder}/"))
    return file


@asynccontextmanager
async def balancer(name: str, folder: Path, gateways: list[Any]) -> AsyncIterator[str]:
    port = free_port()
    file = configured(name, folder, [int(each.url.split(":")[2].split("/")[0]) for each in gateways], port)
    with (folder / "log").open("w") as log:
        process = await anyio.open_process([program(name), *RUN[name], str(file)], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/mcp"
    try:
        async with aiohttp.ClientSession() as http:
            with anyio.fail_after(20):
                while not await answers(http, url):
                    assert process.returncode is None, (folder / "log").read_text()
                    await anyio.sleep(0.05)
        yield url
    finally:
        with anyio.CancelScope(shield=True):
            await end(process, signal.SIGTERM)


async def answers(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(url) as response:
            return response.status < 500
    except aiohttp.ClientError:
        return False


@pytest.mark.parametrize("name", FILES)
def test_its_file_is_right(name: str, tmp_path: Path) -> None:
    file = configured(name, tmp_path, [free_port(), free_port()], free_port())
    done = subprocess.run([program(name), *CHECK[name], str(file)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "warn" not in (done.stdout + done.stderr).lower()


@pytest.mark.parametrize("name", FILES)
async def test_clients_of_both_eras_work_behind_it(name: str, tmp_path: Path, redis: RedisServer) -> None:
    servers = {"b": local("raw_asks.py"), "all": in_process("everything.py")}
    ask = {"name": "b_ask", "arguments": {"ask": [{"method": "roots/list"}], "then": [[{"method": "roots/list"}]]}}
    async with replicas(redis, servers) as both, balancer(name, tmp_path, both) as url:
        for version in (HANDSHAKE, NEWEST):
            async with round_robin([url], version=version) as one:
                for _ in range(4):
                    answer = await one.finished("tools/call", ask)
                    assert not answer["result"].get("isError"), answer
                assert len(one.asked) == 8
        async with round_robin([url], version=HANDSHAKE) as one:
            counts = [(await one.call("all_count", {}))["content"][0]["text"] for _ in range(6)]
            assert counts == ["1", "2", "3", "4", "5", "6"]
            async with one.listening():
                assert (await one.call("all_count", {}))["content"][0]["text"] == "7"


async def test_events_are_not_held_back(tmp_path: Path, redis: RedisServer) -> None:
    async with (
        replicas(redis, {"all": in_process("everything.py")}) as both,
        balancer("nginx", tmp_path, both) as url,
        round_robin([url], version=HANDSHAKE) as one,
    ):
        slow = {"name": "all_slow", "arguments": {"seconds": 2, "steps": 20}, "_meta": {"progressToken": 7}}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.messages, "tools/call", slow)
            await eventually(lambda: bool(one.heard))
            first = anyio.current_time()
            await eventually(lambda: len(one.heard) == 20)
            assert anyio.current_time() - first > 0.5, "they came one by one"
