"""Each answer reaches its caller, each backend session ends with its client's, and no client says who it is.

The clients here speak JSON-RPC by hand: all number their requests from 0, and they send whatever they like.
"""

from __future__ import annotations

import random
import secrets
import string
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from providers.identity import IDENTITY_META_KEY
from providers.lines import MODERN
from tests.helpers.gateway import (
    gateway_over_http,
    gateway_over_stdio,
    gateway_process,
    in_process,
    local,
    remote,
    servers_toml,
)
from tests.helpers.http_backend import SESSION, http_backend
from tests.helpers.people import identity, token, tokens, window
from tests.helpers.processes import eventually, http_server, is_running
from tests.helpers.rpc import HANDSHAKE, NEWEST, RawClient, raw_client

VERSIONS = [HANDSHAKE, NEWEST] if MODERN else [HANDSHAKE]


# ---------------------------------------------------------------------------------- 10,000 calls, all counted from 0

CLIENTS, CALLS = 50, 200
SERVERS_AT_ONCE = ("process", "one-process", "remote", "one-remote")


async def test_each_of_10000_answers_carries_its_callers_nonce() -> None:
    process = local("hang.py", "proper")
    async with http_server("hang.py", "proper", "--http") as server:
        servers = {
            "process": process,
            "one-process": {**process, "isolation": "shared"},
            "remote": remote(server.url),
            "one-remote": remote(server.url, isolation="shared"),
        }
        async with gateway_process(servers_toml(servers, acquire_timeout=60)) as gateway:
            answers = await answers_to_all(gateway.url)
    assert len(answers) == CLIENTS * CALLS
    assert [(nonce, answer) for nonce, answer in answers if nonce != answer] == []


async def answers_to_all(url: str) -> list[tuple[str, str]]:
    """What each client sent, with what it heard; each calls all servers at the same time."""
    answers: list[tuple[str, str]] = []

    async def use() -> None:
        async with raw_client(url) as client, anyio.create_task_group() as tasks:
            for server in SERVERS_AT_ONCE:
                tasks.start_soon(call, client, server)

    async def call(client: RawClient, server: str) -> None:
        for _ in range(CALLS // len(SERVERS_AT_ONCE)):
            nonce = secrets.token_hex(8)
            answer = await client.call(f"{server}_echo", {"text": nonce})
            answers.append((nonce, answer["content"][0]["text"]))

    async with anyio.create_task_group() as tasks:
        for _ in range(CLIENTS):
            tasks.start_soon(use)
    return answers


@pytest.mark.core
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["process", "remote"])
async def test_who_calls_is_told_anew_with_each_call_on_a_shared_connection(kind: str, version: str) -> None:
    users = [f"user-{number}" for number in range(10)]
    heard: list[tuple[str, str]] = []

    async def use(url: str, user: str) -> None:
        async with raw_client(url, bearer(user), version=version) as client:
            for _ in range(10):
                told = (await client.call("b_whoami", {}))["structuredContent"]
                heard.append(
                    (user, told["identity"]["userId"] if told["identity"] else told["headers"]["x-mcp-userid"])
                )

    async with everything(kind) as table:
        toml = servers_toml({"b": {**table, "isolation": "shared"}}, acquire_timeout=60)
        async with gateway_over_http(toml, auth=tokens(*users)) as gateway, anyio.create_task_group() as tasks:
            for user in users:
                tasks.start_soon(use, gateway.url, user)
    assert len(heard) == 100
    assert [(user, told) for user, told in heard if user != told] == []


def bearer(user: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(user)}"}


@asynccontextmanager
async def everything(kind: str) -> AsyncIterator[dict[str, Any]]:
    """The test server as a process, in this process, or over HTTP; every user may use it."""
    match kind:
        case "process":
            yield local("everything.py", required_roles=["*"])
        case "python":
            yield in_process("everything.py", required_roles=["*"])
        case _:
            async with http_server("everything.py", "http") as server:
                yield remote(server.url, required_roles=["*"])


# --------------------------------------------------------------------------------------- the end of a client's session


@pytest.mark.core
async def test_a_session_that_is_deleted_takes_its_process_with_it_and_no_other() -> None:
    async with (
        gateway_over_http(servers_toml({"b": local("everything.py")})) as gateway,
        raw_client(gateway.url) as stays,
    ):
        async with raw_client(gateway.url) as leaves:
            gone, there = [await number_from(client, "b_pid") for client in (leaves, stays)]
            assert await number_from(stays, "b_total") == 1
        await eventually(lambda: not is_running(gone))
        assert await number_from(stays, "b_pid") == there
        assert await number_from(stays, "b_total") == 2


async def number_from(client: RawClient, tool: str) -> int:
    result = await client.call(tool, {})
    return int(result["structuredContent"]["result"])


@pytest.mark.core
async def test_a_session_that_is_deleted_is_ended_at_its_remote_backends_too() -> None:
    async with http_backend() as backend, gateway_over_http(servers_toml({"b": remote(backend.url)})) as gateway:
        async with raw_client(gateway.url) as leaves:
            await leaves.request("tools/call", {"name": "b_anything", "arguments": {}})
            assert backend.of("DELETE") == []
        ended = await backend.wait_for("DELETE")
        assert ended.headers["mcp-session-id"] == SESSION
        await eventually(lambda: gateway.gateway.pool.connections() == [])


async def test_what_still_runs_ends_with_its_session() -> None:
    """On FastMCP 4.x: the SDK of 3.4 keeps a session for as long as one of its calls runs."""

    async def call_in_vain(client: RawClient) -> None:
        with pytest.raises(AssertionError, match="heard"):  # the stream of its answer ends, and nobody waits for it
            await client.call("b_slow", {"seconds": 60})

    async with gateway_over_http(servers_toml({"b": local("everything.py")})) as gateway:
        async with raw_client(gateway.url) as leaves, anyio.create_task_group() as tasks:
            pid = await number_from(leaves, "b_pid")
            tasks.start_soon(call_in_vain, leaves)
            await eventually(lambda: gateway.gateway.pool.statistics().leases == 1)
            await leaves.end()
        await eventually(lambda: not is_running(pid))
        await eventually(lambda: gateway.gateway.pool.statistics().leases == 0)


@pytest.mark.core
async def test_closed_stdin_ends_the_backends_of_a_gateway_over_stdio() -> None:
    async with gateway_over_stdio(servers_toml({"b": local("everything.py")})) as gateway:
        async with window(gateway.transport()) as one:
            pid = await one.call("b_pid")
            assert is_running(pid)
        await eventually(lambda: not is_running(pid))


# ----------------------------------------------------------------------------------------- what a client cannot forge

OF_HTTP = {"host", "user-agent", "accept", "accept-encoding", "connection", "content-type", "content-length"}
OF_MCP = {"mcp-session-id", "mcp-protocol-version", "mcp-method", "mcp-name"}
OF_IDENTITY = {"x-mcp-userid", "x-mcp-username", "x-mcp-roles"}


def forged_headers() -> dict[str, str]:
    """What a client might try, and 200 headers that nobody has thought of."""
    chosen = random.Random(20260728)
    invented = {"".join(chosen.choices(string.ascii_letters + "-", k=12)).strip("-") for _ in range(300)}
    tried = ("X-Mcp-UserId", "x-mcp-roles", "X-MCP-UserName", "X-Mcp-Anything", "Cookie", "Proxy-Authorization")
    more = ("Forwarded", "X-Forwarded-For", "X-Api-Key", "Traceparent", "Baggage", "X-Original-User")
    return dict.fromkeys([*tried, *more, *sorted(invented)[:200]], "mcp.admin")


@pytest.mark.core
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["remote", "python"])
async def test_no_header_of_a_client_reaches_a_backend(kind: str, version: str) -> None:
    forged = forged_headers()
    async with (
        everything(kind) as table,
        gateway_over_http(servers_toml({"b": table}), auth=tokens()) as gateway,
        raw_client(gateway.url, forged | bearer("bob"), version=version) as client,
    ):
        heard = (await client.call("b_whoami", {}))["structuredContent"]
    if kind == "python":
        assert (heard["header_names"], heard["headers"]) == ([], {})
        return
    assert set(heard["header_names"]) <= OF_HTTP | OF_MCP | OF_IDENTITY
    assert len(heard["header_names"]) == len(set(heard["header_names"]))
    assert "mcp.admin" not in heard["headers"].values()
    assert heard["headers"]["x-mcp-userid"] == "bob"


@pytest.mark.core
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["process", "python", "remote"])
async def test_no_client_says_who_calls(kind: str, version: str) -> None:
    forged = {"userId": "root", "userName": "Root", "roles": ["mcp.admin"]}
    meta = {IDENTITY_META_KEY: forged, "com.example/trace": "7"}
    async with (
        everything(kind) as table,
        gateway_over_http(servers_toml({"b": table}), auth=tokens()) as gateway,
        raw_client(gateway.url, bearer("bob"), version=version) as client,
    ):
        heard = (await client.call("b_whoami", {}, meta=meta))["structuredContent"]
    assert heard["identity"] == (None if kind == "remote" else identity("bob"))
    assert "com.example/trace" in heard["meta_keys"]


@pytest.mark.core
async def test_without_a_valid_token_nothing_is_offered() -> None:
    async with gateway_over_http(servers_toml({"b": local("everything.py")}), auth=tokens()) as gateway:
        for headers in ({}, {"Authorization": "Bearer forged"}, {"X-Mcp-UserId": "ada", "X-Mcp-Roles": "mcp.admin"}):
            with pytest.raises(AssertionError, match="401"):
                async with raw_client(gateway.url, headers):
                    pass
        assert gateway.gateway.pool.connections() == []
