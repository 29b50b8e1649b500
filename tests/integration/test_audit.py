"""The audit of a real gateway over HTTP: each request has one decision, each call one end, and nobody's secrets are in
it. What a caller cannot tell apart, the operator can."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from composition.gateway import Gateway
from composition.servers_file import load_configuration
from providers.errors import ConfigurationError
from providers.lines import MODERN
from tests.helpers.audits import decisions, end_of, lines_of, mode_of, put_folder_in_place_of, text_of
from tests.helpers.gateway import (
    ERAS,
    LEGACY,
    ServedGateway,
    client,
    gateway_over_http,
    gateway_over_stdio,
    gateway_process,
    in_process,
    servers_toml,
)
from tests.helpers.people import token, tokens
from tests.helpers.processes import eventually
from tests.helpers.rpc import HANDSHAKE, NEWEST, raw_client

pytestmark = pytest.mark.core

ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
VERSIONS = (HANDSHAKE, NEWEST) if MODERN else (HANDSHAKE,)
SERVERS = {
    "open": in_process("everything.py", required_roles=["*"]),
    "guests": in_process("everything.py", required_roles=["staff", "guest"]),
    "closed": in_process("everything.py", required_roles=["nobody"]),
    "off": in_process("everything.py", required_roles=["*"], is_enabled=False),
}


def bearer(user: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(user)}"}


@asynccontextmanager
async def audited(file: Path, mode: str = "strict", **more: Any) -> AsyncIterator[ServedGateway]:
    toml = servers_toml(SERVERS, audit=mode, audit_file=str(file), **more)
    async with gateway_over_http(toml, auth=tokens("eve")) as served:
        yield served


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


# ------------------------------------------------------------------------------------------------------ decisions

RULES = [
    ("ada", "open", "allow", "admin"),
    ("ada", "closed", "allow", "admin"),
    ("bob", "open", "allow", "everyone"),
    ("bob", "guests", "allow", "role:guest"),
    ("bob", "closed", "deny", "not readable"),
    ("bob", "off", "deny", "disabled"),
    ("bob", "absent", "deny", "not found"),
    ("eve", "open", "allow", "everyone"),
    ("eve", "guests", "deny", "not readable"),
]
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("tools/call", {"name": "{}_echo", "arguments": {"text": "hello"}}),
    ("prompts/get", {"name": "{}_summarize", "arguments": {"topic": "x"}}),
    ("resources/read", {"uri": "data://{}/greeting"}),
]
if MODERN:
    REQUESTS += [
        (
            "completion/complete",
            {"ref": {"type": "ref/prompt", "name": "{}_summarize"}, "argument": {"name": "topic", "value": "x"}},
        ),
    ]


def named(params: dict[str, Any], server: str) -> dict[str, Any]:
    written: dict[str, Any] = json.loads(
        json.dumps(params).replace("{}_", f"{server}_").replace("://{}", f"://{server}")
    )
    return written


@pytest.mark.parametrize("version", VERSIONS)
async def test_each_request_that_names_a_server_is_decided_once_and_says_why(file: Path, version: str) -> None:
    async with audited(file) as gateway:
        for user in ("ada", "bob", "eve"):
            async with raw_client(gateway.url, bearer(user), version=version) as caller:
                for _, server, decision, rule in [row for row in RULES if row[0] == user]:
                    for method, params in REQUESTS:
                        before = len(lines_of(file))
                        await caller.request(method, named(params, server))
                        new = lines_of(file)[before:]
                        [decided] = decisions(new)
                        assert (decided["method"], decided["server"]) == (method, server)
                        assert (decided["decision"], decided["rule"]) == (decision, rule)
                        assert (decided["sub"], decided["source"]) == (user, "127.0.0.1")
                        assert len(new) == (2 if decision == "allow" else 1)
                        if decision == "allow":
                            assert end_of(new, decided)["outcome"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_each_request_that_names_no_server_is_decided_once(file: Path, version: str) -> None:
    methods = ["tools/list", "prompts/list", "resources/list", "resources/templates/list"]
    methods += ["server/discover"] if version == NEWEST else ["ping"] if MODERN else []
    async with audited(file) as gateway, raw_client(gateway.url, bearer("bob"), version=version) as caller:
        if version == HANDSHAKE:
            assert len(decisions(lines_of(file), method="initialize", sub="bob")) == 1
        for method in methods:
            before = len(lines_of(file))
            await caller.request(method, {})
            [line] = lines_of(file)[before:]
            assert line["method"] == method and line["decision"] == "allow" and "server" not in line
            assert line["iss"] == "https://login.example.com" and line["roles"] == ["guest"]


async def test_what_never_came_to_mcp_is_decided_too(file: Path) -> None:
    async with audited(file) as gateway, aiohttp.ClientSession() as http:

        async def denied(status: int, rule: str, **headers: str) -> None:
            before = len(lines_of(file))
            async with http.post(gateway.url, json=PING, headers=ACCEPT | headers) as answer:
                assert answer.status == status
            [line] = lines_of(file)[before:]
            assert (line["event"], line["decision"], line["rule"]) == ("decision", "deny", rule)
            assert line["method"] == "POST /mcp" and line["source"] == "127.0.0.1"

        await denied(401, "not authenticated")
        await denied(401, "not authenticated", Authorization="Bearer guessed-secret")
        await denied(421, "host", Host="evil.example")
        await denied(403, "origin or scope", Origin="http://evil.example")
        await denied(404, "unknown session or path", **bearer("bob"), **{"Mcp-Session-Id": "0" * 32})
    assert "guessed-secret" not in text_of(file)


async def test_a_session_that_ends_is_decided(file: Path) -> None:
    async with audited(file) as gateway, raw_client(gateway.url, bearer("bob")) as caller:
        await caller.request("tools/list", {})
        await caller.end()
        [ended] = decisions(lines_of(file), method="DELETE /mcp")
        assert ended["decision"] == "allow" and ended["sub"] == "bob"


async def test_requests_of_one_session_have_its_key_and_never_its_id(file: Path) -> None:
    async with audited(file) as gateway, raw_client(gateway.url, bearer("bob")) as caller:
        for _ in range(2):
            await caller.call("open_echo", {"text": "x"})
        await caller.call("open_echo", {"text": "x"})
        session_id = caller.session_id
    calls = decisions(lines_of(file), method="tools/call")
    assert calls[1]["session"] == calls[2]["session"]
    assert session_id is not None and session_id not in text_of(file)


# ---------------------------------------------------------------------------------------------------- what it holds


@pytest.mark.parametrize("era", ERAS)
async def test_names_and_sizes_are_told_and_values_are_not(file: Path, era: str) -> None:
    secret = "canary-8f2c"
    async with audited(file, "on") as gateway, client(gateway.url, era, auth=token("bob")) as caller:
        await caller.call_tool("open_echo", {"text": secret})
    [decided] = decisions(lines_of(file), method="tools/call")
    assert decided["arguments"] == {"text": len(secret) + 2} and decided["target"] == "open_echo"
    end = end_of(lines_of(file), decided)
    assert end["outcome"] == "ok" and end["bytes_in"] > 0 and end["bytes_out"] > len(secret) and end["ms"] >= 0
    assert end["backend"].startswith("connection ")
    assert secret not in text_of(file) and token("bob") not in text_of(file)


async def test_the_query_of_a_uri_is_not_told(file: Path) -> None:
    async with audited(file) as gateway, raw_client(gateway.url, bearer("bob")) as caller:
        await caller.request("resources/read", {"uri": "data://open/user:pw-canary@host/x?key=canary#canary"})
    [decided] = decisions(lines_of(file), method="resources/read")
    assert decided["target"] == "data://open/host/x" and "canary" not in text_of(file)


async def test_nobody_forges_a_line(file: Path) -> None:
    forged = 'open_x\n{"event": "decision"}\r\x1b[2J\u2028\u202e' + "y" * 5000
    async with audited(file) as gateway, raw_client(gateway.url, bearer("bob")) as caller:
        await caller.request("tools/call", {"name": forged, "arguments": {forged: 1}})
    [decided] = decisions(lines_of(file), method="tools/call")
    assert decided["target"].startswith("open_x\n{") and len(decided["target"]) == 256
    assert all(32 <= byte < 127 or byte == 10 for byte in text_of(file).encode())
    assert len(text_of(file).split("\n")) == len(lines_of(file)) + 1


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_end_tells_how_a_call_ended(file: Path, version: str) -> None:
    toml = servers_toml(
        {"fine": in_process("everything.py", timeouts={"call": 1.0}), "gone": {"command": "/not/there"}},
        audit="strict",
        audit_file=str(file),
    )
    async with gateway_over_http(toml) as gateway, raw_client(gateway.url, version=version) as caller:
        for name, arguments in (
            ("fine_echo", {"text": "x"}),
            ("fine_fail", {"message": "x"}),
            ("fine_slow", {"seconds": 5}),
            ("gone_x", {}),
            ("fine_not_there", {}),
        ):
            await caller.request("tools/call", {"name": name, "arguments": arguments})
    lines = lines_of(file)
    outcomes = {line["target"]: end_of(lines, line)["outcome"] for line in decisions(lines, method="tools/call")}
    unknown = outcomes.pop("fine_not_there")
    assert unknown == ("error -32602" if MODERN else unknown)
    assert outcomes == {
        "fine_echo": "ok",
        "fine_fail": "tool_error",
        "fine_slow": "timeout",
        "gone_x": "unavailable",
    }
    assert {line["rule"] for line in decisions(lines)} <= {"local", "admin"}


async def test_over_stdio_the_audit_goes_to_its_file(file: Path) -> None:
    toml = servers_toml({"open": in_process("everything.py")}, audit="on", audit_file=str(file))
    async with gateway_over_stdio(toml) as gateway, client(gateway.transport(), LEGACY) as caller:
        await caller.call_tool("open_echo", {"text": "x"})
        await eventually(lambda: any(line["event"] == "end" for line in lines_of(file)))
    [decided] = decisions(lines_of(file), method="tools/call")
    assert decided["source"] == "stdio" and decided["rule"] == "admin"


# ------------------------------------------------------------------------------------------------- on disk, or not


async def test_what_was_answered_is_on_disk_when_the_gateway_is_killed(file: Path) -> None:
    toml = servers_toml({"open": in_process("everything.py")}, audit="strict", audit_file=str(file))
    answered = 0
    async with gateway_process(toml) as gateway, raw_client(gateway.url) as caller, anyio.create_task_group() as tasks:

        async def call_on() -> None:
            nonlocal answered
            with pytest.raises(aiohttp.ClientError):
                while True:
                    await caller.call("open_echo", {"text": "x"})
                    answered += 1

        tasks.start_soon(call_on)
        await eventually(lambda: answered >= 30)
        os.kill(gateway.pid, signal.SIGKILL)
        caller.session_id = None  # there is nobody to end it at
    whole = [json.loads(line) for line in text_of(file).split("\n")[:-1]]
    ends = [line for line in whole if line["event"] == "end" and line["outcome"] == "ok"]
    assert len(ends) >= answered >= 30
    assert mode_of(file) == 0o600


async def test_a_call_fails_that_cannot_be_written_down_and_works_again_when_it_can(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("providers.audit_log._LOOK_SECONDS", 0.0)
    async with audited(file) as gateway, client(gateway.url, LEGACY, auth=token("bob")) as caller:
        await caller.call_tool("open_echo", {"text": "x"})
        put_folder_in_place_of(file, tmp_path / "old")  # nothing can be written there
        with pytest.raises(Exception, match="audit"):
            await caller.call_tool("open_count", {})
        file.rmdir()  # noqa: ASYNC240
        await caller.call_tool("open_echo", {"text": "x"})
    assert len(decisions(lines_of(file), method="tools/call")) == 1


async def test_a_full_disk_stops_strict_calls_before_the_backend_hears_of_them() -> None:
    toml = servers_toml(SERVERS, audit="strict", audit_file="/dev/full")
    async with gateway_over_http(toml, auth=tokens()) as gateway, aiohttp.ClientSession() as http:
        async with http.post(gateway.url, json=PING, headers=ACCEPT) as refused:
            assert refused.status == 401  # what is refused is refused, written or not
        hello = {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
        message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
        async with http.post(gateway.url, json=message, headers=ACCEPT | bearer("bob")) as answer:
            assert "No space left" in await answer.text()


async def test_a_full_disk_costs_others_nothing() -> None:
    toml = servers_toml(SERVERS, audit="on", audit_file="/dev/full")
    async with gateway_over_http(toml, auth=tokens()) as gateway, client(gateway.url, LEGACY, auth=token("bob")) as bob:
        assert (await bob.call_tool("open_echo", {"text": "x"})).data == "x"
        await eventually(lambda: "failing" in repr(gateway.gateway.audit))


@pytest.mark.parametrize("mode", ["on", "strict"])
async def test_a_file_that_cannot_be_opened_is_told_at_start(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "servers.toml"
    path.write_text(servers_toml(SERVERS, audit=mode, audit_file=str(tmp_path / "absent" / "audit")))
    gateway = Gateway(load_configuration(path))
    with pytest.raises(ConfigurationError, match=r"audit_file .*absent.* cannot be written to \(No such file"):
        await gateway.start()


# ------------------------------------------------------------------------------- the REST API, and the own tools


@pytest.mark.parametrize(
    ("user", "method", "path", "decision", "rule", "server"),
    [
        ("ada", "GET", "/adapters", "allow", "authenticated", None),
        ("bob", "GET", "/adapters/guests", "allow", "role:guest", "guests"),
        ("bob", "GET", "/adapters/closed", "deny", "not readable", "closed"),
        ("bob", "GET", "/adapters/absent", "deny", "not found", "absent"),
        ("bob", "DELETE", "/adapters/open", "deny", "status 403", "open"),
        ("ada", "DELETE", "/adapters/open", "deny", "status 409", "open"),
        ("bob", "GET", "/tools/guests_echo", "allow", "role:guest", "guests"),
    ],
)
async def test_each_request_to_the_api_is_decided_once(
    file: Path, user: str, method: str, path: str, decision: str, rule: str, server: str | None
) -> None:
    async with audited(file) as gateway, aiohttp.ClientSession() as http:
        base = gateway.url.removesuffix("/mcp")
        async with http.request(method, base + path, headers=bearer(user)) as answer:
            await answer.read()
        [line] = decisions(lines_of(file))
        assert (line["decision"], line["rule"], line.get("server")) == (decision, rule, server)
        assert line["method"].startswith(f"{method} /")


async def test_a_call_by_an_own_tool_is_written_down_as_the_call_that_it_is(file: Path) -> None:
    async with audited(file, tools="search") as gateway, client(gateway.url, LEGACY, auth=token("bob")) as bob:
        await bob.call_tool_mcp("gateway_call_tool", {"name": "open_echo", "arguments": {"text": "quiet words"}})
        await bob.call_tool_mcp("gateway_call_tool", {"name": "closed_echo", "arguments": {}})
        lines = lines_of(file)
        inner = [line for line in decisions(lines) if line.get("server") in ("open", "closed")]
        assert [(line["target"], line["rule"]) for line in inner] == [
            ("open_echo", "everyone"),
            ("closed_echo", "not readable"),
        ]
        assert "quiet words" not in text_of(file)
