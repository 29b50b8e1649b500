"""What a backend answers reaches the client word for word: results, errors, lists; new kinds and odd values included.

The backend answers by hand and so does the client, so that no library shapes what goes by in between.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from tests.helpers.gateway import gateway_over_http, servers_toml
from tests.helpers.http_backend import SESSION, VERSION, Answerer, Seen, answer, http_backend
from tests.helpers.rpc import HANDSHAKE, NEWEST, Json, RawClient, raw_client

VERSIONS = (HANDSHAKE, NEWEST)

ODD_RESULT: Json = {
    "content": [
        {"type": "text", "text": "\N{SNOWMAN} \U0001f600 \x00 \u2028", "annotations": {"priority": 1.0, "mood": "odd"}},
        {"type": "hologram", "beam": {"x": [1, 2.0, None]}},
        {"type": "image", "data": "AA==", "mimeType": "image/png", "_meta": {"a": None}, "extra": True},
        {"type": "audio", "data": "AA==", "mimeType": "audio/wav"},
        {"type": "text", "text": "", "icons": []},
    ],
    "structuredContent": {
        "one": 1.0,
        "big": 123456789012345678901234567890,
        "small": 1e-300,
        "nothing": None,
        "list": [[], {}, False],
        "": "empty key",
    },
    "isError": False,
    "later": {"than": "we"},
    "_meta": {"example.com/a": {"b": [1.0]}, "example.com/n": None},
}

ODD_TOOL: Json = {
    "name": "odd",
    "title": "",
    "description": "…",
    "inputSchema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://example.com/s",
        "type": "object",
        "$defs": {"node": {"$anchor": "n", "properties": {"next": {"$ref": "#n"}}}, "any": True, "none": False},
        "properties": {"n": {"$ref": "#/$defs/node"}, "a": True, "f": {"const": 1.0, "maximum": 10**30}},
        "additionalProperties": False,
        "unevaluatedProperties": False,
        "required": [],
    },
    "outputSchema": {"type": "object", "anyOf": [True, {"$dynamicRef": "#x"}], "default": None},
    "annotations": {"readOnlyHint": True, "openWorldHint": False, "costHint": 3.0},
    "icons": [{"src": "data:,", "mimeType": "image/svg+xml", "sizes": ["any"], "theme": "dark", "weight": 1}],
    "execution": {"taskSupport": "required"},
    "later": [1.0],
    "_meta": {"example.com/a": 1.0},
}
ODD_PROMPT: Json = {
    "name": "p",
    "title": "P",
    "arguments": [{"name": "a", "description": "…", "required": False, "title": "A", "later": 1}],
    "icons": [{"src": "data:,"}],
    "_meta": {"k": "v"},
}
ODD_RESOURCE: Json = {"uri": "x://a", "name": "r", "size": 10**15, "annotations": {"audience": ["user"]}, "later": 1}
ODD_TEMPLATE: Json = {"uriTemplate": "x://{a}", "name": "t", "mimeType": "a/b", "annotations": {"odd": 1}, "later": {}}


def says(result: Json) -> Answerer:
    async def answerer(seen: Seen) -> web.StreamResponse:
        return web.json_response(answer(seen, result))

    return answerer


def fails(error: Json) -> Answerer:
    async def answerer(seen: Seen) -> web.StreamResponse:
        return web.json_response({"jsonrpc": "2.0", "id": seen.message["id"], "error": error})

    return answerer


async def welcome(seen: Seen) -> web.StreamResponse:
    capabilities = {"tools": {}, "prompts": {}, "resources": {}}
    facts = {
        "protocolVersion": VERSION,
        "capabilities": capabilities,
        "serverInfo": {"name": "t", "version": "1"},
        "instructions": "First line.\n\n  * Use `odd` with care.\n",
    }
    return web.json_response(answer(seen, facts), headers={"Mcp-Session-Id": SESSION})


ANSWERS: dict[str, Answerer] = {
    "initialize": welcome,
    "tools/list": says({"tools": [ODD_TOOL]}),
    "prompts/list": says({"prompts": [ODD_PROMPT]}),
    "resources/list": says({"resources": [ODD_RESOURCE]}),
    "resources/templates/list": says({"resourceTemplates": [ODD_TEMPLATE]}),
    "tools/call": says(ODD_RESULT),
}


@asynccontextmanager
async def relayed(version: str, **answers: Answerer) -> AsyncIterator[RawClient]:
    """A client of a gateway in front of a server `b` that answers like this."""
    named = {name.replace("_", "/"): answerer for name, answerer in answers.items()}
    async with (
        http_backend(**{**ANSWERS, **named}) as backend,
        gateway_over_http(servers_toml({"b": {"url": backend.url}})) as gateway,
        raw_client(gateway.url, version=version) as caller,
    ):
        yield caller


def own(result: Json) -> Json:
    """A result without what the 2026-07-28 era adds on each connection."""
    part = {key: value for key, value in result.items() if key not in ("resultType", "ttlMs", "cacheScope")}
    meta = {key: value for key, value in part.pop("_meta", {}).items() if key != "io.modelcontextprotocol/serverInfo"}
    return part | ({"_meta": meta} if meta else {})


def text(value: Any) -> str:
    """JSON as text: 1 and 1.0 are the same to Python."""
    return json.dumps(value, sort_keys=True)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_tools_result_arrives_word_for_word(version: str) -> None:
    async with relayed(version) as caller:
        result = await caller.call("b_odd", {})
    assert text(own(result)) == text(ODD_RESULT)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_prompt_and_a_resource_arrive_word_for_word(version: str) -> None:
    messages = [{"role": "narrator", "content": {"type": "smell", "of": 1.0}, "later": 1}]
    prompt: Json = {"description": "", "messages": messages, "later": 1.0}
    contents = [{"uri": "urn:elsewhere", "text": "", "odd": 1.0}, {"uri": "x://a", "blob": "", "_meta": {"k": None}}]
    async with relayed(version, prompts_get=says(prompt), resources_read=says({"contents": contents})) as caller:
        got = await caller.request("prompts/get", {"name": "b_p"})
        assert text(own(got["result"])) == text(prompt)
        got = await caller.request("resources/read", {"uri": "x://b/a"})
        named = [contents[0] | {"uri": "urn://b/:elsewhere"}, contents[1] | {"uri": "x://b/a"}]
        assert text(own(got["result"])) == text({"contents": named})


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_is_listed_arrives_word_for_word_but_for_its_name(version: str) -> None:
    async with relayed(version) as caller:
        lists = {
            method: own((await caller.request(method, {}))["result"])
            for method in ("tools/list", "prompts/list", "resources/list", "resources/templates/list")
        }
    assert text(lists["tools/list"]) == text({"tools": [ODD_TOOL | {"name": "b_odd"}]})
    assert text(lists["prompts/list"]) == text({"prompts": [ODD_PROMPT | {"name": "b_p"}]})
    assert text(lists["resources/list"]) == text({"resources": [ODD_RESOURCE | {"uri": "x://b/a"}]})
    template = ODD_TEMPLATE | {"uriTemplate": "x://b/{a}"}
    assert text(lists["resources/templates/list"]) == text({"resourceTemplates": [template]})


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("tools/call", {"name": "b_odd", "arguments": {}}),
        ("prompts/get", {"name": "b_p"}),
        ("resources/read", {"uri": "x://b/a"}),
    ],
)
async def test_an_error_of_the_backend_keeps_its_code_its_text_and_its_data(
    method: str, params: Json, version: str
) -> None:
    error = {"code": -31999, "message": "No.\nNot like this.", "data": {"why": [1.0, None], "uri": "x://a"}}
    async with relayed(version, **{method.replace("/", "_"): fails(error)}) as caller:
        assert text((await caller.request(method, params))["error"]) == text(error)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["b_none", "none_none", "none", "", "_", "b_"])
async def test_an_unknown_tool_is_a_protocol_error_whoever_would_own_it(name: str, version: str) -> None:
    async with relayed(version) as caller:
        answer = await caller.request("tools/call", {"name": name, "arguments": {}})
    assert answer["error"] == {"code": -32602, "message": f"Unknown tool: {name}"}


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_tools_own_error_stays_a_result(version: str) -> None:
    failed: Json = {"content": [{"type": "text", "text": "no"}], "isError": True}
    async with relayed(version, tools_call=says(failed)) as caller:
        assert own(await caller.call("b_odd", {})) == failed


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_list_too_long_for_one_message_comes_in_pages(version: str) -> None:
    def tools(first: int) -> list[Json]:
        form = {"description": "x" * 1000, "inputSchema": {"type": "object"}}
        return [{"name": f"t{n:04}", **form} for n in range(first, first + 100)]

    async def in_pages(seen: Seen) -> web.StreamResponse:
        first = int(seen.message["params"].get("cursor", "0") or 0) if seen.message.get("params") else 0
        following = {"nextCursor": str(first + 100)} if first < 300 else {}
        return web.json_response(answer(seen, {"tools": tools(first), **following}))

    many = {name: {"url": ""} for name in ("a", "b", "c")}
    async with http_backend(**{**ANSWERS, "tools/list": in_pages}) as backend:
        many = {name: {"url": backend.url} for name in many}
        async with (
            gateway_over_http(servers_toml(many)) as gateway,
            raw_client(gateway.url, version=version) as caller,
        ):
            names: list[str] = []
            pages, cursor = 0, {}
            while True:
                result = (await caller.request("tools/list", cursor))["result"]
                assert len(json.dumps(result)) < 2**20
                names += [tool["name"] for tool in result["tools"]]
                pages += 1
                if "nextCursor" not in result:
                    break
                cursor = {"cursor": result["nextCursor"]}
            assert pages == 2 and names == [f"{server}_t{n:04}" for server in "abc" for n in range(400)]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("cursor", ["", "x", "MTA=", "ZnJvbSA5OTk5", "ZnJvbSAtMQ=="])
async def test_a_cursor_that_the_gateway_did_not_give_is_refused(cursor: str, version: str) -> None:
    async with relayed(version) as caller:
        answer = await caller.request("tools/list", {"cursor": cursor})
    assert answer["error"] == {"code": -32602, "message": "Invalid cursor"}


async def test_the_instructions_of_each_server_are_in_those_of_the_gateway() -> None:
    async with (
        http_backend(**ANSWERS) as backend,
        gateway_over_http(servers_toml({"b": {"url": backend.url, "description": "For odd things."}})) as gateway,
    ):
        async with raw_client(gateway.url) as caller:
            await caller.request("tools/list", {})
        async with raw_client(gateway.url) as caller:
            said = caller.welcome["instructions"]
    assert "- b: For odd things." in said
    assert "# How to use b\n\nFirst line.\n\n  * Use `odd` with care.\n" in said


@pytest.mark.parametrize("version", VERSIONS)
async def test_tasks_are_not_offered_and_what_asks_for_one_is_called_as_usual(version: str) -> None:
    """2025-11-25, basic/utilities/tasks: a server without the capability takes the request and ignores `task`."""
    received: list[Json] = []

    async def noted(seen: Seen) -> web.StreamResponse:
        received.append(seen.message["params"])
        return web.json_response(answer(seen, {"content": []}))

    async with relayed(version, tools_call=noted) as caller:
        call = {"name": "b_odd", "arguments": {}, "task": {"ttl": 60_000}}
        result = (await caller.request("tools/call", call))["result"]
        assert own(result) == {"content": []} and "task" not in received[0]
        if version == HANDSHAKE:
            assert "tasks" not in caller.welcome["capabilities"]
        else:
            facts = (await caller.request("server/discover", {}))["result"]
            extensions = facts["capabilities"].get("extensions", {})
            assert "tasks" not in facts["capabilities"] and "io.modelcontextprotocol/tasks" not in extensions
        for method in ("tasks/list", "tasks/get", "tasks/cancel", "tasks/result"):
            assert (await caller.request(method, {"taskId": "1"}))["error"]["code"] == -32601


async def test_a_tool_that_only_runs_as_a_task_says_so_itself() -> None:
    error = {"code": -32601, "message": "This tool runs as a task only."}
    async with relayed(HANDSHAKE, tools_call=fails(error)) as caller:
        assert (await caller.request("tools/call", {"name": "b_odd", "arguments": {}}))["error"] == error
