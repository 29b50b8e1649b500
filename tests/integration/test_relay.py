"""What a backend says reaches the client as the backend said it: messages during a call, results, lists, instructions.

The clients are of the handshake era, where a server may ask its client while a call runs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from aiohttp import web
from fastmcp.client.elicitation import ElicitResult
from fastmcp.exceptions import ToolError

from tests.helpers.gateway import (
    LATEST,
    ServedGateway,
    gateway_over_http,
    gateway_over_stdio,
    in_process,
    local,
    patient_toml,
    remote,
)
from tests.helpers.http_backend import Answerer, HttpBackend, always, answer, http_backend
from tests.helpers.people import window
from tests.helpers.processes import http_server
from tests.helpers.rpc import Json, RawClient, raw_client

pytestmark = pytest.mark.filterwarnings("ignore:The logging capability is deprecated")  # said by both SDKs


@asynccontextmanager
async def everything(transport: str) -> AsyncIterator[dict[str, Any]]:
    """The table of the test server, reached in this way."""
    match transport:
        case "stdio":
            yield local("everything.py")
        case "python":
            yield in_process("everything.py")
        case "sse":
            async with http_server("everything.py", "sse", path="/sse") as server:
                yield remote(server.url, transport_type="sse")
        case _:
            async with http_server("everything.py", "http") as server:
                yield remote(server.url)


# ------------------------------------------------------------------------------------------- messages during a call


@pytest.mark.core
@pytest.mark.parametrize("transport", ["stdio", "streamable_http", "sse", "python"])
async def test_a_client_over_stdio_hears_and_is_asked_all_that_its_call_brings(transport: str) -> None:
    async with (
        everything(transport) as table,
        gateway_over_stdio(patient_toml({"b": table})) as gateway,
        window(gateway.transport(), tag="me") as one,
    ):
        answers = await one.call("b_confer", tag="me", steps=2)
        assert answers == {"ask": "me", "think": "me", "roots": ["file:///me"]}
        await one.heard_all(7)
    logs, progress = [("log", f"me {number}") for number in range(3)], [("progress", f"step {n} of 2") for n in (1, 2)]
    assert sorted(one.heard) == sorted([*logs, *progress, ("question", "me?"), ("prompt", "me!")])


@pytest.mark.core
async def test_calls_at_the_same_time_each_get_their_own_progress() -> None:
    async with gateway_over_http(patient_toml({"b": in_process("everything.py")})) as gateway:
        seen: dict[int, list[tuple[float, float | None]]] = {2: [], 3: [], 5: []}

        async def call(steps: int) -> None:
            async def on_progress(progress: float, total: float | None, message: str | None) -> None:
                seen[steps].append((progress, total))

            arguments = {"seconds": 0.2, "steps": steps}
            await one.connection.call_tool("b_slow", arguments, progress_handler=on_progress)

        async with window(gateway.url) as one, anyio.create_task_group() as tasks:
            for steps in seen:
                tasks.start_soon(call, steps)
    assert seen == {steps: [(step, steps) for step in range(1, steps + 1)] for steps in seen}


@pytest.mark.core
@pytest.mark.parametrize("front", ["http", "stdio"])
async def test_the_log_level_that_a_client_sets_holds_for_it_alone(front: str) -> None:
    toml = patient_toml({"b": in_process("everything.py", isolation="user")})
    async with gateway_over_http(toml) as served, gateway_over_stdio(toml) as command:
        target = served.url if front == "http" else command.transport()
        async with window(target) as quiet, window(served.url) as other:
            await quiet.connection.set_logging_level("warning")  # chatter is of level "info"
            await quiet.call("b_chatter", n=2, tag="unwanted")
            await other.call("b_chatter", n=2, tag="wanted")
            await other.heard_all(2)
            assert (quiet.heard, other.heard) == ([], [("log", "wanted 0"), ("log", "wanted 1")])
            await quiet.connection.set_logging_level("debug")
            await quiet.call("b_chatter", n=1, tag="now wanted")
            await quiet.heard_all(1)
            assert quiet.heard == [("log", "now wanted 0")]


@pytest.mark.core
async def test_an_answer_may_be_no_or_nothing_or_an_error() -> None:
    answers: list[Any] = [ElicitResult(action="decline"), ElicitResult(action="cancel")]

    async def elicit(*_: Any) -> Any:
        return answers.pop(0)

    async def fail(*_: Any) -> str:
        raise RuntimeError("no model here")

    async with (
        gateway_over_http(patient_toml({"b": in_process("everything.py")})) as gateway,
        window(gateway.url, elicitation_handler=elicit, sampling_handler=fail) as one,
    ):
        assert await one.call("b_ask", question="?") == "decline"
        assert await one.call("b_ask", question="?") == "cancel"
        with pytest.raises(ToolError, match="no model here"):
            await one.call("b_think", prompt="?")


async def test_a_client_of_the_newest_era_is_sent_no_question_and_the_backend_hears_so() -> None:
    async with (
        everything("python") as table,  # which speaks the handshake era, and so asks while the call runs
        gateway_over_http(patient_toml({"b": table})) as gateway,
        window(gateway.url, era=LATEST) as one,
    ):
        for tool, arguments in (("ask", {"question": "?"}), ("think", {"prompt": "?"}), ("roots", {})):
            with pytest.raises(ToolError, match="The client that made this call cannot be asked this"):
                await one.call(f"b_{tool}", **arguments)
        assert one.heard == []


# ----------------------------------------------------------------------------------------------------------- results

SCHEMA = {"type": "object", "properties": {"$ref": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "string"}}}
TOOL = {
    "name": "tell",
    "title": "Tell",
    "description": "Tells all.",
    "inputSchema": SCHEMA,
    "outputSchema": {"type": "object", "properties": {"n": {"type": "number"}}},
    "annotations": {"readOnlyHint": True, "title": "Tell me"},
    "_meta": {"example.com/own": [1, 2]},
}
LINK = {"type": "resource_link", "uri": "docs://page/1?v=2#part", "name": "page", "mimeType": "text/plain"}
EMBEDDED = {"type": "resource", "resource": {"uri": "docs://page/2", "text": "two", "_meta": {"own": True}}}
EMBEDDED_AS_SEEN = {"type": "resource", "resource": {"uri": "docs://b/page/2", "text": "two", "_meta": {"own": True}}}
CONTENT = [
    {"type": "text", "text": "hé\u2028\U0001f600", "annotations": {"audience": ["user"], "priority": 0.5}},
    {"type": "image", "data": "aGk=", "mimeType": "image/png", "_meta": {"own": 1}},
    {"type": "audio", "data": "aGk=", "mimeType": "audio/wav"},
]
CAPABILITIES = {"tools": {}, "resources": {}, "prompts": {}}
EMPTY: Json = {
    "prompts_list": {"prompts": []},
    "resources_list": {"resources": []},
    "resources_templates_list": {"resourceTemplates": []},
}


def result(value: Json) -> Answerer:
    """Answers each request with the same result."""
    return always(lambda seen: web.json_response(answer(seen, value)))


@asynccontextmanager
async def scripted(**answers: Json) -> AsyncIterator[tuple[RawClient, HttpBackend, ServedGateway]]:
    """A client of a gateway whose backend answers each method with just this; '_' stands for '/' in a method."""
    server = {"name": "s", "version": "1"}
    welcome = {"protocolVersion": "2025-11-25", "capabilities": CAPABILITIES, "serverInfo": server}
    known = {"initialize": welcome, "tools_list": {"tools": [TOOL]}} | EMPTY | answers
    script = {name.replace("_", "/"): result(value) for name, value in known.items()}
    async with (
        http_backend(**script) as backend,
        gateway_over_http(patient_toml({"b": remote(backend.url)})) as gateway,
        raw_client(gateway.url) as one,
    ):
        yield one, backend, gateway


@pytest.mark.core
async def test_a_tool_is_listed_as_the_backend_describes_it() -> None:
    async with scripted() as (one, _, _):
        listed = (await one.request("tools/list", {}))["result"]
    origin = {"dev.apollos/server": {"name": "b", "kind": "service"}}
    assert listed["tools"] == [{**TOOL, "name": "b_tell", "_meta": {**TOOL["_meta"], **origin}}]


@pytest.mark.core
@pytest.mark.parametrize(
    "told",
    [
        {"content": CONTENT, "isError": False},
        {"content": CONTENT, "structuredContent": {"n": 1.5, "deep": [{"null": None}]}, "isError": False},
        {"content": CONTENT[:1], "structuredContent": {"code": 7}, "isError": True},
        {"content": [], "isError": False, "_meta": {"example.com/own": {"x": [None, 1]}}},
        {
            "content": CONTENT[:1],
            "structuredContent": {"n": "not a number, whatever outputSchema says"},
            "isError": False,
        },
    ],
    ids=["content", "structured", "error", "meta", "against its schema"],
)
async def test_a_result_is_the_backends_own_word_for_word(told: Json) -> None:
    async with scripted(tools_call=told) as (one, backend, _):
        assert await one.call("b_tell", {"ä": [1, None]}) == told
    assert backend.of("tools/call")[0].message["params"]["arguments"] == {"ä": [1, None]}


@pytest.mark.core
async def test_a_tools_own_error_does_not_count_against_its_server() -> None:
    refusal = {"content": CONTENT[:1], "isError": True}
    async with scripted(tools_call=refusal) as (one, _, gateway):
        for _ in range(10):
            assert await one.call("b_tell", {}) == refusal
        statistics = gateway.gateway.pool.statistics()
    assert (statistics.opened, statistics.failed) == (1, 0)


@pytest.mark.core
async def test_links_and_embedded_resources_in_a_result_can_be_read() -> None:
    text = {"contents": [{"uri": LINK["uri"], "text": "one", "mimeType": "text/plain"}]}
    told = {"content": [LINK, EMBEDDED], "isError": False}
    async with scripted(tools_call=told, resources_read=text) as (one, backend, _):
        link, embedded = (await one.call("b_tell", {}))["content"]
        read = (await one.request("resources/read", {"uri": link["uri"]}))["result"]
    assert link == {**LINK, "uri": "docs://b/page/1?v=2#part"}
    assert embedded == EMBEDDED_AS_SEEN
    assert backend.of("resources/read")[0].message["params"]["uri"] == LINK["uri"]
    assert read["contents"] == [{**text["contents"][0], "uri": link["uri"]}]


@pytest.mark.core
async def test_a_prompt_is_the_backends_own_and_its_resources_can_be_read() -> None:
    prompt = {"name": "sum-up", "title": "Sum up", "arguments": [{"name": "topic", "required": True}]}
    told = {"description": "d", "messages": [{"role": "user", "content": item} for item in (*CONTENT, EMBEDDED)]}
    async with scripted(prompts_list={"prompts": [prompt]}, prompts_get=told) as (one, backend, _):
        listed = (await one.request("prompts/list", {}))["result"]["prompts"]
        got = (await one.request("prompts/get", {"name": "b_sum-up", "arguments": {"topic": "owls"}}))["result"]
    assert listed == [{**prompt, "name": "b_sum-up"}]
    asked = backend.of("prompts/get")[0].message["params"]
    assert (asked["name"], asked["arguments"]) == ("sum-up", {"topic": "owls"})
    seen = [{"role": "user", "content": item} for item in (*CONTENT, EMBEDDED_AS_SEEN)]
    assert got == {**told, "messages": seen}


@pytest.mark.core
async def test_resources_and_templates_are_listed_and_read_under_their_servers_name() -> None:
    async with (
        gateway_over_http(patient_toml({"b": in_process("everything.py")})) as gateway,
        raw_client(gateway.url) as one,
    ):
        resources = (await one.request("resources/list", {}))["result"]["resources"]
        templates = (await one.request("resources/templates/list", {}))["result"]["resourceTemplates"]
        item = (await one.request("resources/read", {"uri": "data://b/item/7"}))["result"]["contents"]
    assert [resource["uri"] for resource in resources] == ["data://b/greeting"]
    assert [template["uriTemplate"] for template in templates] == ["data://b/item/{id}"]
    assert [(content["uri"], content["text"]) for content in item] == [("data://b/item/7", "item 7")]


async def test_instructions_tell_which_servers_there_are_and_what_each_is_for() -> None:
    """On FastMCP 4.x: on 3.4 the greeting is sent before middleware sees it."""
    servers = {
        "mine": in_process("everything.py", description="Words of the operator."),
        "its-own": in_process("everything.py"),
        "switched-off": in_process("everything.py", is_enabled=False),
    }
    toml = patient_toml(servers, name="Tools")
    async with gateway_over_http(toml) as gateway, raw_client(gateway.url) as first:
        await first.request("tools/list", {})  # from now on it is known what the servers say of themselves
        async with raw_client(gateway.url) as client:
            told = str(client.welcome["instructions"])
    assert "Tools" in told
    assert "- mine: Words of the operator." in told
    assert "- its-own: A server for tests." in told
    assert "switched-off" not in told
