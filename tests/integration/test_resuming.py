"""A handshake client over HTTP whose stream broke takes it up again and misses nothing; nobody else can."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anyio
import pytest

from tests.helpers.gateway import alone, gateway_over_http, in_process, patient_toml
from tests.helpers.people import token, tokens
from tests.helpers.processes import eventually
from tests.helpers.rpc import HANDSHAKE, Json, raw_client

TOML = patient_toml({"b": in_process("everything.py", required_roles=["*"])})
MCP = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": HANDSHAKE}


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, str]]:
    """The events of a stream as they come, each as its fields."""
    fields: dict[str, str] = {}
    async for raw in response.content:
        line = raw.decode().rstrip("\r\n")
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield fields
            fields = {}


def slow(number: int, tool: str, seconds: float = 0.6) -> Json:
    params = {"name": tool, "arguments": {"seconds": seconds, "steps": 3}, "_meta": {"progressToken": number}}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


@asynccontextmanager
async def person(url: str, user: str) -> AsyncIterator[tuple[aiohttp.ClientSession, dict[str, str]]]:
    """A user's session: what to ask with, and the headers that it is asked with."""
    own = {"Authorization": f"Bearer {token(user)}"}
    async with raw_client(url, own) as known, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as http:
        assert known.session_id is not None
        yield http, {**MCP, **own, "Mcp-Session-Id": known.session_id}


async def break_off(http: aiohttp.ClientSession, url: str, headers: Mapping[str, str], number: int = 7) -> str:
    """Begin a call, hang up after the first event, and say which it was."""
    async with http.post(
        url, json=slow(number, "slow" if "adapters" in url else "b_slow"), headers=headers
    ) as response:
        async for event in events(response):
            assert event["id"] and event["retry"] == "1000" and not event.get("data")
            return event["id"]
    raise AssertionError("no event came")


async def taken_up(http: aiohttp.ClientSession, url: str, headers: Mapping[str, str], last: str) -> list[Json]:
    """All messages after an event, until the answer; none where the server ends the stream without one."""
    found: list[Json] = []
    async with http.get(url, headers={**headers, "Last-Event-ID": last}) as response:
        assert response.status == 200
        async for event in events(response):
            if event.get("data"):
                found.append(json.loads(event["data"]))
                if "result" in found[-1] or "error" in found[-1]:
                    break
    return found


@pytest.mark.parametrize("is_alone", [False, True], ids=["with all servers", "alone"])
async def test_a_call_whose_stream_broke_is_taken_up_with_all_that_came_meanwhile(is_alone: bool) -> None:
    async with gateway_over_http(TOML, auth=tokens()) as gateway:
        url = alone(gateway.url, "b") if is_alone else gateway.url
        async with person(url, "ada") as (http, headers):
            last = await break_off(http, url, headers)
            messages = await taken_up(http, url, headers, last)
    assert [message["params"]["progress"] for message in messages[:-1] if "params" in message] == [1.0, 2.0, 3.0]
    assert messages[-1]["id"] == 7 and "result" in messages[-1]


async def test_an_answer_that_nobody_was_there_for_is_kept() -> None:
    async with (
        gateway_over_http(TOML, auth=tokens()) as gateway,
        person(gateway.url, "ada") as (http, headers),
    ):
        last = await break_off(http, gateway.url, headers)
        await eventually(lambda: gateway.gateway.pool.statistics().leases == 0)
        messages = await taken_up(http, gateway.url, headers, last)
        assert "result" in messages[-1] and len(messages) >= 4


async def test_the_events_of_one_session_are_for_no_other_not_even_of_the_same_user() -> None:
    async with (
        gateway_over_http(TOML, auth=tokens()) as gateway,
        person(gateway.url, "ada") as (http, headers),
        person(gateway.url, "ada") as (other, others_headers),
        person(gateway.url, "bob") as (stranger, strangers_headers),
    ):
        last = await break_off(http, gateway.url, headers)
        await eventually(lambda: gateway.gateway.pool.statistics().leases == 0)
        for someone, own in ((other, others_headers), (stranger, strangers_headers)):
            with anyio.fail_after(10):
                assert await taken_up(someone, gateway.url, own, last) == []
        forged = {**strangers_headers, "Mcp-Session-Id": headers["Mcp-Session-Id"], "Last-Event-ID": last}
        async with stranger.get(gateway.url, headers=forged) as response:
            assert response.status == 404
        assert "result" in (await taken_up(http, gateway.url, headers, last))[-1]


async def test_an_event_that_there_never_was_ends_the_stream_at_once() -> None:
    async with (
        gateway_over_http(TOML, auth=tokens()) as gateway,
        person(gateway.url, "ada") as (http, headers),
    ):
        with anyio.fail_after(10):
            assert await taken_up(http, gateway.url, headers, "no-such-event") == []


async def test_calls_at_the_same_time_are_taken_up_each_by_itself() -> None:
    async with (
        gateway_over_http(TOML, auth=tokens()) as gateway,
        person(gateway.url, "ada") as (http, headers),
    ):
        lasts = await asyncio.gather(*(break_off(http, gateway.url, headers, number) for number in range(5)))
        found = await asyncio.gather(*(taken_up(http, gateway.url, headers, last) for last in lasts))
    for number, messages in enumerate(found):
        assert messages[-1]["id"] == number
        assert {message["params"]["progressToken"] for message in messages[:-1] if "progress" in str(message)} == {
            number
        }


@pytest.mark.parametrize("version", ["2025-06-18", "2024-11-05"])
async def test_clients_of_older_versions_get_no_event_without_data(version: str) -> None:
    async with (
        gateway_over_http(TOML, auth=tokens()) as gateway,
        person(gateway.url, "ada") as (http, headers),
    ):
        call: Any = slow(1, 0.0)
        async with http.post(gateway.url, json=call, headers={**headers, "MCP-Protocol-Version": version}) as response:
            async for event in events(response):
                assert event["data"]
