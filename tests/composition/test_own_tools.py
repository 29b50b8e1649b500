"""`[gateway] tools = "search"`: what a client sees, finds, reads and calls; nobody finds what he may not read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from composition.servers_file import load_configuration
from providers.errors import ConfigurationError
from providers.lines import MODERN
from tests.helpers.gateway import ERAS, gateway_over_http, in_process, servers_toml
from tests.helpers.people import tokens, window

pytestmark = pytest.mark.core

OWN = ["gateway_find_tools", "gateway_describe_tool", "gateway_call_tool"]


def toml(**more: Any) -> str:
    servers = {
        "open": in_process("everything.py", required_roles=["*"]),
        "closed": in_process("everything.py", required_roles=["engineer"]),
    }
    return servers_toml(servers, tools="search", timeouts={"list": 30.0}, **more)


async def names(one: Any) -> list[str]:
    return [tool.name for tool in await one.connection.list_tools()]


async def call(one: Any, tool: str, **arguments: Any) -> dict[str, Any]:
    answer = await one.connection.call_tool_mcp(tool, arguments)
    form: dict[str, Any] = answer.model_dump(mode="json", by_alias=True, exclude_none=True)
    return form


async def found(one: Any, query: str, **more: Any) -> list[str]:
    answer = await call(one, "gateway_find_tools", query=query, **more)
    assert json.loads(answer["content"][0]["text"]) == answer["structuredContent"]
    return [tool["name"] for tool in answer["structuredContent"]["tools"]]


async def refused(one: Any, tool: str, **arguments: Any) -> str:
    answer = await call(one, tool, **arguments)
    assert answer["isError"]
    text: str = answer["content"][0]["text"]
    return text


async def test_a_client_sees_the_own_tools_and_those_that_are_pinned() -> None:
    async with gateway_over_http(toml()) as served, window(served.url) as ada:
        assert await names(ada) == OWN
        if MODERN:  # 3.4 answers before our middleware is asked
            assert "gateway_find_tools" in (ada.connection.initialize_result.instructions or "")
    async with gateway_over_http(toml(pinned_tools=["open_ech*"])) as served, window(served.url) as ada:
        assert await names(ada) == [*OWN, "open_echo"]


async def test_it_finds_reads_and_calls_what_is_not_listed() -> None:
    async with gateway_over_http(toml()) as served, window(served.url) as ada:
        assert (await found(ada, "echo a text", server="open"))[0] == "open_echo"
        described = await call(ada, "gateway_describe_tool", name="open_echo")
        assert described["structuredContent"]["inputSchema"]["properties"].keys() == {"text"}
        called = await call(ada, "gateway_call_tool", name="open_echo", arguments={"text": "hello"})
        assert called == await call(ada, "open_echo", text="hello") and "hello" in called["content"][0]["text"]


@pytest.mark.parametrize("era", ERAS)
async def test_what_a_server_asks_and_reports_during_such_a_call_reaches_its_caller(era: str) -> None:
    async with (
        gateway_over_http(toml()) as served,
        window(served.url, era=era) as ada,
        window(served.url, tag="other", era=era) as other,
    ):
        await ada.call("gateway_call_tool", name="open_ask", arguments={"question": "Which?"})
        await ada.call("gateway_call_tool", name="open_slow", arguments={"seconds": 0.01, "steps": 2})
        assert ada.heard[0] == ("question", "Which?") and "progress" in dict(ada.heard) and not other.heard


async def test_what_may_not_be_read_is_not_there() -> None:
    async with (
        gateway_over_http(toml(), auth=tokens("cyd")) as served,
        window(served.url, "ada") as ada,
        window(served.url, "cyd") as cyd,
    ):
        assert {name.partition("_")[0] for name in await found(ada, "echo", limit=20)} == {"open", "closed"}
        assert {name.partition("_")[0] for name in await found(cyd, "echo", limit=20)} == {"open"}
        assert await found(cyd, "echo", server="closed") == await found(cyd, "echo", server="nowhere") == []
        for tool in ("gateway_describe_tool", "gateway_call_tool"):
            hidden = await refused(cyd, tool, name="closed_echo")
            absent = await refused(cyd, tool, name="absent_echo")
            assert hidden == absent.replace("absent", "closed")


async def test_wrong_arguments_are_told_in_words() -> None:
    async with gateway_over_http(toml()) as served, window(served.url) as ada:
        assert "'query'" in await refused(ada, "gateway_find_tools")
        assert "'limit'" in await refused(ada, "gateway_find_tools", query="x", limit=1000)
        assert "'colour'" in await refused(ada, "gateway_find_tools", query="x", colour="red")
        assert "call it directly" in await refused(ada, "gateway_call_tool", name="gateway_call_tool")


def test_no_server_has_the_name_of_the_own_tools(tmp_path: Any) -> None:
    file = tmp_path / "servers.toml"
    file.write_text('[gateway]\ntools = "search"\n[servers.gateway]\ncommand = "x"\n')
    with pytest.raises(ConfigurationError, match="has the name of the gateway's own tools"):
        load_configuration(file, {})
    file.write_text('[servers.gateway]\ncommand = "x"\n')
    assert load_configuration(file, {}).resources
