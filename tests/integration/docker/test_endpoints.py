"""Where the engine is: over TCP with TLS, named by `DOCKER_HOST`, or by a Docker context. All are the tests' own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from fastmcp import Client
from fastmcp.exceptions import ToolError

from tests.helpers.certificates import authority
from tests.helpers.containers import EVERYTHING, data, ours, over_http, over_stdio, until
from tests.helpers.gateway import LEGACY, client, gateway_over_http, servers_toml
from tests.helpers.own_engine import OwnEngine

pytestmark = pytest.mark.timeout(120)
Environment = pytest.MonkeyPatch


@pytest.fixture
def environment(own_state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Environment:
    """Nothing of Docker's is said in it, nor in the user's own folder."""
    for name in [name for name in os.environ if name.startswith("DOCKER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    return monkeypatch


@pytest.fixture
def pair(own_engine: OwnEngine, tmp_path: Path) -> Path:
    """The certificate of a client that the engine trusts, and the authority to know the engine by."""
    return own_engine.authority.write(tmp_path / "pair", "client")


@asynccontextmanager
async def a_client(state: str, **options: str) -> AsyncIterator[Client[Any]]:
    """Of a gateway with one server over stdio and one over HTTP."""
    servers = {"every": over_stdio(), "web": over_http()}
    toml = servers_toml(servers, state_dir=state, **options)
    async with gateway_over_http(toml) as served, client(served.url, LEGACY) as caller:
        yield caller


async def works(state: str, own_client: Any, **options: str) -> None:
    """Both servers start on the tests' own engine, answer, and end with their session."""
    async with a_client(state, **options) as caller:
        for server in ("every", "web"):
            assert await data(caller, f"{server}_echo", text="x" * 200_000) == "x" * 200_000
            assert await data(caller, f"{server}_total") == 1
            assert len(ours(own_client, server)) == 1
    await until(lambda: not ours(own_client))


async def refusal(state: str, **options: str) -> str:
    async with a_client(state, **options) as caller:
        with anyio.fail_after(20), pytest.raises(ToolError) as caught:
            await caller.call_tool("every_total", {})
    return str(caught.value)


async def test_over_tcp_with_tls(
    own_engine: OwnEngine, own_client: Any, own_state: str, environment: Environment, pair: Path
) -> None:
    environment.setenv("DOCKER_TLS_VERIFY", "1")
    environment.setenv("DOCKER_CERT_PATH", str(pair))
    await works(own_state, own_client, docker_host=own_engine.tcp)


async def test_an_engine_that_another_authority_vouches_for_is_not_trusted(
    own_engine: OwnEngine, own_state: str, environment: Environment, pair: Path
) -> None:
    (pair / "ca.pem").write_bytes((authority("others").write(pair / "others", "x") / "ca.pem").read_bytes())
    environment.setenv("DOCKER_TLS_VERIFY", "1")
    environment.setenv("DOCKER_CERT_PATH", str(pair))
    told = await refusal(own_state, docker_host=own_engine.tcp)
    assert own_engine.tcp in told and "certificate" in told


async def test_a_client_that_the_engine_does_not_trust_is_told(
    own_engine: OwnEngine, own_state: str, environment: Environment, pair: Path, tmp_path: Path
) -> None:
    stranger = authority("others").write(tmp_path / "stranger", "client")
    (stranger / "ca.pem").write_bytes((pair / "ca.pem").read_bytes())
    environment.setenv("DOCKER_TLS_VERIFY", "1")
    environment.setenv("DOCKER_CERT_PATH", str(stranger))
    told = await refusal(own_state, docker_host=own_engine.tcp)
    assert own_engine.tcp in told and "certificate" in told


@pytest.mark.parametrize("is_over_tls", [False, True], ids=["socket", "tls"])
async def test_named_by_docker_host(
    own_engine: OwnEngine, own_client: Any, own_state: str, environment: Environment, pair: Path, is_over_tls: bool
) -> None:
    environment.setenv("DOCKER_HOST", own_engine.tcp if is_over_tls else own_engine.host)
    if is_over_tls:
        environment.setenv("DOCKER_TLS_VERIFY", "1")
        environment.setenv("DOCKER_CERT_PATH", str(pair))
    await works(own_state, own_client)


@pytest.mark.parametrize("is_over_tls", [False, True], ids=["socket", "tls"])
@pytest.mark.parametrize("is_current", [False, True], ids=["by variable", "current"])
async def test_named_by_a_docker_context(
    own_engine: OwnEngine,
    own_client: Any,
    own_state: str,
    environment: Environment,
    pair: Path,
    is_over_tls: bool,
    is_current: bool,
) -> None:
    """Made and chosen with Docker's own command line."""
    files = {"ca": "ca.pem", "cert": "cert.pem", "key": "key.pem"}
    place = f"host={own_engine.host}"
    if is_over_tls:
        place = ",".join([f"host={own_engine.tcp}", *(f"{name}={pair / file}" for name, file in files.items())])
    await docker("context", "create", "tests", "--docker", place)
    if is_current:
        await docker("context", "use", "tests")
    else:
        environment.setenv("DOCKER_CONTEXT", "tests")
    await works(own_state, own_client)


async def docker(*words: str) -> None:
    run = subprocess.run
    done = await anyio.to_thread.run_sync(lambda: run(["docker", *words], capture_output=True, text=True, timeout=30))
    assert done.returncode == 0, done.stderr


async def test_a_program_finds_its_input_ended_over_tls(
    own_engine: OwnEngine, own_state: str, environment: Environment, pair: Path
) -> None:
    environment.setenv("DOCKER_TLS_VERIFY", "1")
    environment.setenv("DOCKER_CERT_PATH", str(pair))
    tools = {"read": {"args": ["-c", "import sys; print(repr(sys.stdin.read()))"]}}
    table = over_stdio(EVERYTHING, docker_command=["python3"], docker_tools=tools)
    toml = servers_toml({"py": table}, state_dir=own_state, docker_host=own_engine.tcp)
    async with gateway_over_http(toml) as served, client(served.url, LEGACY) as caller:
        with anyio.fail_after(20):
            result = await caller.call_tool("py_read", {})
        assert result.content[0].text == "''\n"
