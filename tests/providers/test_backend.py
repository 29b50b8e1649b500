"""The provider of one sub-server: the operator's rules on its tools, and its calls through the leased session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastmcp import Client
from fastmcp.exceptions import ToolError

from providers.backend import SERVER_META_KEY, make_offer
from providers.catalogue import Listing, make_listing
from providers.components import Offer
from providers.lines import MCPError
from providers.resource import McpServerResource
from tests.helpers.fakes import Call, FakeBackend, Json, Refusal, client_of, no_waiting, text, tool
from tests.helpers.house import house_of

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


def listing_of(*tools: Json, **parts: list[Json]) -> Listing:
    return make_listing({"tools": list(tools), "resources": [], "templates": [], "prompts": [], **parts}, {})


def offer_of(*tools: str, more: dict[str, Any] | None = None, **rules: Any) -> Offer:
    resource = McpServerResource.model_validate({"name": "files", "command": "run", "tools": rules, **(more or {})})
    return make_offer(listing_of(*(tool(name, description=f"about {name}") for name in tools)), resource)


# ------------------------------------------------------------------------------------------- rules


def test_without_rules_everything_is_offered_in_the_backends_order() -> None:
    assert list(offer_of("c", "a", "b").tools) == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("rules", "offered"),
    [
        ({"include": ["a", "c", "absent"]}, ["a", "c"]),
        ({"include": []}, []),
        ({"exclude": ["b"]}, ["a", "c"]),
        ({"exclude": ["absent"]}, ["a", "b", "c"]),
        ({"include": ["a"], "exclude": ["b"]}, ["a"]),
        ({"rename": {"a": "x"}}, ["x", "b", "c"]),
        ({"rename": {"a": "x"}, "include": ["a"]}, ["x"]),
        ({"rename": {"a": "b", "b": "a"}}, ["b", "a", "c"]),
        ({"rename": {"absent": "x"}}, ["a", "b", "c"]),
    ],
)
def test_rules_say_which_tools_are_offered_and_under_which_names(rules: Any, offered: list[str]) -> None:
    assert list(offer_of("a", "b", "c", **rules).tools) == offered


def test_a_renamed_tool_cannot_be_reached_by_its_old_name_and_an_excluded_one_by_none() -> None:
    offer = offer_of("a", "b", rename={"a": "x"}, exclude=["b"])
    assert "a" not in offer.tools and "b" not in offer.tools


def test_a_description_can_be_replaced_by_the_backends_name_of_the_tool() -> None:
    offer = offer_of("a", "b", rename={"a": "x"}, description={"a": "ours", "x": "not this"})
    assert offer.tools["x"].form["description"] == "ours" and offer.tools["b"].form["description"] == "about b"


def test_two_tools_of_one_name_are_told_with_both_names_and_the_first_stands(caplog: pytest.LogCaptureFixture) -> None:
    offer = offer_of("read", "read_file", rename={"read_file": "read"})
    assert offer.tools["read"].form["description"] == "about read"
    assert "server 'files': its tools 'read' and 'read_file' would both be 'read'" in caplog.text


def test_a_tool_that_the_backend_lists_twice_is_offered_once() -> None:
    resource = McpServerResource(name="files", command="run")
    twice: dict[str, list[Json]] = {
        "resources": [{"uri": "a://b", "name": name} for name in "xy"],
        "templates": [{"uriTemplate": "a://{b}", "name": name} for name in "xy"],
        "prompts": [{"name": "p", "description": name} for name in "xy"],
    }
    offer = make_offer(listing_of(tool("a"), tool("a"), **twice), resource)
    assert [len(part) for part in (offer.tools, offer.resources, offer.templates, offer.prompts)] == [1, 1, 1, 1]
    assert offer.resources["a://b"].form["name"] == "x" and offer.prompts["p"].form["description"] == "x"


@pytest.mark.parametrize(
    ("more", "kind"), [({}, "client"), ({"command": None, "url": "https://x.example/mcp"}, "service")]
)
def test_each_tool_says_which_server_it_comes_from(more: dict[str, Any], kind: str) -> None:
    meta = offer_of("a", more=more).tools["a"].form["_meta"]
    assert meta == {SERVER_META_KEY: {"name": "files", "kind": kind}}


def test_a_tool_cannot_say_that_it_comes_from_another_server() -> None:
    forged = tool("a", _meta={SERVER_META_KEY: {"name": "bank"}, "mine": 1})
    offer = make_offer(listing_of(forged), McpServerResource(name="files", command="run"))
    assert offer.tools["a"].form["_meta"] == {SERVER_META_KEY: {"name": "files", "kind": "client"}, "mine": 1}
    assert forged["_meta"][SERVER_META_KEY] == {"name": "bank"}, "what the backend sent is not touched"


# ------------------------------------------------------------------------------------------- calls


class Asked:
    """A backend with one of each component, which notes what it is asked."""

    def __init__(self) -> None:
        self.calls: list[Json] = []
        self.backend = FakeBackend("files", capabilities={"tools": {}, "resources": {}, "prompts": {}})
        answers: dict[str, Json] = {
            "resources/list": {"resources": [{"uri": "data://a", "name": "a"}]},
            "prompts/list": {"prompts": [{"name": "p"}]},
            "tools/call": text("done") | {"structuredContent": {"n": 1}},
            "resources/read": {"contents": [{"uri": "data://a", "text": "hello"}]},
            "prompts/get": {"messages": [{"role": "user", "content": {"type": "text", "text": "say"}}]},
        }
        for method, result in answers.items():
            self.backend.answers[method] = self._noting(result)

    def _noting(self, result: Json) -> Any:
        async def answer(call: Call) -> Json:
            self.calls.append({key: value for key, value in call.params.items() if key != "_meta"})
            return result

        return answer


async def test_calls_reach_the_backend_under_its_own_names() -> None:
    asked = Asked()
    async with house_of(asked.backend) as house, client_of(house.registry.mounts["files"].server) as client:
        asked.calls.clear()
        assert (await client.call_tool("echo", {"text": "x", "n": [1, None]})).structured_content == {"n": 1}
        assert (await client.read_resource("data://a"))[0].text == "hello"  # type: ignore[union-attr]
        assert (await client.get_prompt("p", {"topic": "t"})).messages[0].content.text == "say"  # type: ignore[union-attr]
    assert [call for call in asked.calls if call] == [
        {"name": "echo", "arguments": {"text": "x", "n": [1, None]}},
        {"uri": "data://a"},
        {"name": "p", "arguments": {"topic": "t"}},
    ]


async def test_a_renamed_tool_is_called_by_the_backends_own_name() -> None:
    asked = Asked()
    records = [asked.backend.resource(tools={"rename": {"echo": "say"}})]
    async with house_of(asked.backend, records=records) as house, house.client() as client:
        await client.call_tool("files_say")
        for absent in ("files_echo", "say", "echo"):
            with pytest.raises(ToolError, match="Unknown tool"):
                await client.call_tool(absent)
    assert asked.calls[-1]["name"] == "echo"


async def test_a_resource_that_is_not_listed_can_be_read() -> None:
    """A tool's result may link to what no list shows."""
    asked = Asked()
    async with house_of(asked.backend) as house, client_of(house.registry.mounts["files"].server) as client:
        await client.read_resource("data://not/listed?x=1")
    assert asked.calls[-1] == {"uri": "data://not/listed?x=1"}


async def test_what_the_client_says_in_meta_reaches_the_backend() -> None:
    seen: list[Json] = []

    async def answer(call: Call) -> Json:
        seen.append(call.meta)
        return text("done")

    backend = FakeBackend("files", answers={"tools/call": answer})
    async with house_of(backend) as house, house.client() as client:
        await client.call_tool("files_echo", meta={"mine.example/key": {"a": [1]}, "progressToken": "forged"})
    assert seen[0]["mine.example/key"] == {"a": [1]} and seen[0]["progressToken"] != "forged"


async def failing_client(asked: Asked, client: Client[Any]) -> list[str]:
    said = []
    for use in (
        lambda: client.call_tool("files_echo"),
        lambda: client.read_resource("data://files/a"),
        lambda: client.get_prompt("files_p"),
    ):
        with pytest.raises((ToolError, MCPError)) as failure:
            await use()
        said.append(str(failure.value))
    return said


async def test_a_backends_error_answer_reaches_the_client_in_the_backends_words() -> None:
    asked = Asked()

    async def refuses(call: Call) -> Json:
        raise Refusal(-32602, "'path' is missing")

    asked.backend.answers |= {"tools/call": refuses, "resources/read": refuses, "prompts/get": refuses}
    async with house_of(asked.backend) as house, house.client() as client:
        said = await failing_client(asked, client)
    assert all("'path' is missing" in each for each in said), said


async def test_a_tools_own_error_passes_through_untouched_and_is_no_failure_of_the_server() -> None:
    async def fails(call: Call) -> Json:
        return text("no such file") | {"isError": True, "structuredContent": {"code": 2}}

    backend = FakeBackend("files", answers={"tools/call": fails})
    async with house_of(backend) as house, house.client() as client:
        for _ in range(10):
            result = await client.call_tool("files_echo", raise_on_error=False)
        assert result.is_error and result.content[0].text == "no such file"  # type: ignore[union-attr]
        assert result.structured_content == {"code": 2}
        assert house.pool.statistics().failed == 0 and len(backend.wires) == 1


async def test_an_error_of_the_gateway_names_the_server_and_nothing_inside() -> None:
    async def crash(call: Call) -> Json:
        call.wire.die("has crashed (exit code 1).")
        return {}

    asked = Asked()
    async with house_of(asked.backend) as house, house.client() as client:
        await client.list_tools()
        asked.backend.answers |= {"tools/call": crash, "resources/read": crash, "prompts/get": crash}
        said = await failing_client(asked, client)
    assert said[0] == "server 'files': has crashed (exit code 1)."
    assert all("server 'files'" in each and "Traceback" not in each for each in said), said
