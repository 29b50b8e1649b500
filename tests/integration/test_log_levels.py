"""The log level that a client asks for reaches the backends, in the words of each one's era, when it changes only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from tests.helpers.gateway import ServedGateway, gateway_over_http, local, patient_toml, servers_toml
from tests.helpers.http_backend import SESSION, VERSION, HttpBackend, Seen, answer, event, event_stream, http_backend
from tests.helpers.rpc import HANDSHAKE, NEWEST, Json, RawClient, raw_client

LEVEL = "io.modelcontextprotocol/logLevel"
SHARED = {"isolation": "shared"}
NAMES: Json = {"name": "b_tell", "arguments": {}}


def log(level: str) -> Json:
    return {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": level, "data": f"it is {level}"}}


async def lists_tell(seen: Seen) -> web.StreamResponse:
    return web.json_response(answer(seen, {"tools": [{"name": "tell", "inputSchema": {"type": "object"}}]}))


async def tells(seen: Seen) -> web.StreamResponse:
    """Log messages of three levels, and an answer."""
    logs = [event(log(level)) for level in ("debug", "info", "error")]
    return await event_stream(seen, *logs, event(answer(seen, {"content": []})))


def welcome(**capabilities: Any) -> Any:
    async def answerer(seen: Seen) -> web.StreamResponse:
        facts = {
            "protocolVersion": VERSION,
            "capabilities": {"tools": {}, **capabilities},
            "serverInfo": {"name": "t", "version": "1"},
        }
        return web.json_response(answer(seen, facts), headers={"Mcp-Session-Id": SESSION})

    return answerer


async def done(seen: Seen) -> web.StreamResponse:
    return web.json_response(answer(seen, {}))


HANDSHAKER: dict[str, Any] = {
    "initialize": welcome(logging={}),
    "tools/list": lists_tell,
    "tools/call": tells,
    "logging/setLevel": done,
}


async def discovered(seen: Seen) -> web.StreamResponse:
    facts = {"supportedVersions": [NEWEST], "capabilities": {"tools": {}, "logging": {}}, "resultType": "complete"}
    return web.json_response(answer(seen, facts | {"ttlMs": 0, "cacheScope": "private"}))


async def refused(seen: Seen) -> web.StreamResponse:
    error = {"code": -32601, "message": "no"}
    return web.json_response({"jsonrpc": "2.0", "id": seen.message["id"], "error": error}, status=404)


async def unwilling(seen: Seen) -> web.StreamResponse:
    return web.json_response({"jsonrpc": "2.0", "id": seen.message["id"], "error": {"code": -32601, "message": "no"}})


def complete(result: Json) -> Any:
    async def answerer(seen: Seen) -> web.StreamResponse:
        more = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
        return web.json_response(answer(seen, result | more))

    return answerer


NEWCOMER: dict[str, Any] = {
    "server/discover": discovered,
    "initialize": refused,
    "tools/list": complete({"tools": [{"name": "tell", "inputSchema": {"type": "object"}}]}),
    "tools/call": complete({"content": []}),
}


@asynccontextmanager
async def in_front_of(
    answers: dict[str, Any] = HANDSHAKER, **table: Any
) -> AsyncIterator[tuple[HttpBackend, ServedGateway]]:
    async with (
        http_backend(**answers) as backend,
        gateway_over_http(servers_toml({"b": {"url": backend.url, **table}})) as gateway,
    ):
        yield backend, gateway


async def ask_for(caller: RawClient, level: str) -> Json:
    return await caller.request("logging/setLevel", {"level": level})


def told(backend: HttpBackend) -> list[str]:
    return [seen.message["params"]["level"] for seen in backend.of("logging/setLevel")]


def order(backend: HttpBackend) -> list[str]:
    """What the backend was asked, from the first handshake on, in short."""
    short = {"initialize": "open", "logging/setLevel": "level", "tools/call": "call"}
    return [short[seen.subject] for seen in backend.seen if seen.subject in short]


async def heard(caller: RawClient, *, meta: Json | None = None) -> list[str]:
    """The levels of the log messages that come with a call."""
    messages = await caller.messages("tools/call", NAMES | ({"_meta": meta} if meta else {}))
    return [message["params"]["level"] for message in messages if message.get("method") == "notifications/message"]


async def test_a_level_is_told_before_the_first_call_and_never_again() -> None:
    async with in_front_of() as (backend, gateway), raw_client(gateway.url) as caller:
        assert "result" in await ask_for(caller, "error")
        for _ in range(3):
            assert await heard(caller) == ["error"]
        assert order(backend)[-5:] == ["open", "level", "call", "call", "call"] and told(backend) == ["error"]


async def test_an_open_connection_is_told_at_once() -> None:
    async with in_front_of() as (backend, gateway), raw_client(gateway.url) as caller:
        assert await heard(caller) == ["debug", "info", "error"]
        assert told(backend) == []
        for level in ("error", "info", "info"):
            await ask_for(caller, level)
        assert told(backend) == ["error", "info"]


async def test_a_connection_that_is_opened_again_is_told_again() -> None:
    async with in_front_of() as (backend, gateway), raw_client(gateway.url) as caller:
        await ask_for(caller, "error")
        await heard(caller)
        backend.answers["tools/call"] = forgets_once(backend)
        assert await heard(caller) == ["error"]
        assert told(backend) == ["error", "error"] and order(backend)[-3:] == ["open", "level", "call"]


def forgets_once(backend: HttpBackend) -> Any:
    async def answerer(seen: Seen) -> web.StreamResponse:
        backend.answers["tools/call"] = tells
        return web.Response(status=404)

    return answerer


async def test_on_a_shared_connection_the_most_talkative_level_counts_and_each_hears_its_own() -> None:
    async with (
        in_front_of(**SHARED) as (backend, gateway),
        raw_client(gateway.url) as quiet,
        raw_client(gateway.url) as loud,
        raw_client(gateway.url) as unasked,
    ):
        await ask_for(quiet, "error")
        await ask_for(loud, "debug")
        assert await heard(quiet) == ["error"]
        assert await heard(loud) == ["debug", "info", "error"]
        assert await heard(quiet) == ["error"]
        assert told(backend) == ["error", "debug"]
        await loud.end()
        assert await heard(unasked) == ["debug", "info", "error"]
        await heard(quiet)
        assert told(backend)[2:] == ["info"]


async def test_a_backend_that_declares_no_logging_is_told_nothing() -> None:
    async with (
        in_front_of({**HANDSHAKER, "initialize": welcome()}) as (backend, gateway),
        raw_client(gateway.url) as caller,
    ):
        await ask_for(caller, "error")
        assert await heard(caller) == ["error"]
        assert told(backend) == []


async def test_a_backend_that_refuses_its_level_is_called_all_the_same() -> None:
    async with (
        in_front_of({**HANDSHAKER, "logging/setLevel": unwilling}) as (backend, gateway),
        raw_client(gateway.url) as caller,
    ):
        await ask_for(caller, "error")
        assert [await heard(caller), await heard(caller)] == [["error"], ["error"]]
        assert told(backend) == ["error"]


async def test_a_newest_clients_level_reaches_a_handshake_backend_when_it_changes() -> None:
    async with in_front_of() as (backend, gateway), raw_client(gateway.url, version=NEWEST) as caller:
        assert await heard(caller) == [] and told(backend) == []
        assert await heard(caller, meta={LEVEL: "info"}) == ["info", "error"]
        assert await heard(caller, meta={LEVEL: "error"}) == ["error"]
        assert await heard(caller) == []
        assert told(backend) == ["info"]
        assert not any(LEVEL in str(seen.message) for seen in backend.of("tools/call"))


@pytest.mark.parametrize("level", ["debug", "emergency", None])
async def test_a_newest_clients_level_reaches_a_newest_backend_with_each_request(level: str | None) -> None:
    async with in_front_of(NEWCOMER) as (backend, gateway), raw_client(gateway.url, version=NEWEST) as caller:
        await heard(caller, meta={LEVEL: level} if level else None)
        [call] = backend.of("tools/call")
        assert call.message["params"]["_meta"].get(LEVEL) == level


async def test_a_handshake_clients_level_reaches_a_newest_backend_with_each_request() -> None:
    async with in_front_of(NEWCOMER) as (backend, gateway), raw_client(gateway.url) as caller:
        await heard(caller)
        await ask_for(caller, "debug")
        await heard(caller)
        await ask_for(caller, "error")
        await heard(caller)
        calls = [seen.message["params"]["_meta"].get(LEVEL) for seen in backend.of("tools/call")]
        assert calls == ["info", "debug", "error"] and told(backend) == []


async def test_an_unknown_level_is_refused_as_a_server_would_and_changes_nothing() -> None:
    async with in_front_of() as (backend, gateway), raw_client(gateway.url) as caller:
        error = (await ask_for(caller, "chatty"))["error"]
        assert error["code"] == -32602
        assert await heard(caller) == ["debug", "info", "error"] and told(backend) == []
    async with in_front_of() as (_, gateway), raw_client(gateway.url, version=NEWEST) as caller:
        answer = await caller.request("tools/call", NAMES | {"_meta": {LEVEL: "chatty"}})
        assert answer["error"]["code"] == -32602


@pytest.mark.core
async def test_a_real_server_over_stdio_sends_what_was_asked_for() -> None:
    async with (
        gateway_over_http(patient_toml({"b": local("everything.py")})) as gateway,
        raw_client(gateway.url, version=HANDSHAKE) as caller,
    ):
        assert "result" in await ask_for(caller, "error")
        messages = await caller.messages("tools/call", {"name": "b_confer", "arguments": {"tag": "x", "steps": 1}})
        assert not [message for message in messages if message.get("method") == "notifications/message"]
