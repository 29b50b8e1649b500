"""A server that other people wrote, in a container over HTTP: what it keeps for a session stays in that session."""

from __future__ import annotations

from typing import Any

import pytest
from fastmcp import Client
from fastmcp.exceptions import McpError, ToolError

from tests.helpers.containers import REFERENCE, ours, over_http
from tests.helpers.gateway import ERAS, LEGACY, client, gateway_over_http, servers_toml

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("engine"), pytest.mark.core]
REFUSED = (McpError, ToolError)


def reference(**more: Any) -> dict[str, Any]:
    return over_http(REFERENCE, "streamableHttp", env={"PORT": "8000"}, **more)


async def text(caller: Client[Any], tool: str, **arguments: Any) -> str:
    answer = await caller.call_tool(tool, arguments)
    return "\n".join(getattr(content, "text", "") for content in answer.content)


@pytest.mark.parametrize("era", ERAS)
async def test_it_is_listed_and_called(state: str, era: str) -> None:
    toml = servers_toml({"ref": reference(isolation="shared")}, state_dir=state)
    async with gateway_over_http(toml) as served, client(served.url, era) as caller:
        assert "ref_echo" in {tool.name for tool in await caller.list_tools()}
        assert await text(caller, "ref_echo", message="hi") == "Echo: hi"
        assert "5" in await text(caller, "ref_get-sum", a=2, b=3)
        assert await caller.list_resources()
        assert await caller.list_prompts()


async def test_what_it_keeps_for_one_session_no_other_sees(state: str, engine: Any) -> None:
    async with (
        gateway_over_http(servers_toml({"ref": reference()}, state_dir=state)) as served,
        client(served.url, LEGACY) as one,
        client(served.url, LEGACY) as other,
    ):
        assert (await text(one, "ref_toggle-simulated-logging")).startswith("Started")
        assert (await text(other, "ref_toggle-simulated-logging")).startswith("Started")
        assert (await text(one, "ref_toggle-simulated-logging")).startswith("Stopped")
        uri = await _put_away(one, "note-of-one")
        assert await one.read_resource(uri)
        with pytest.raises(REFUSED):
            await other.read_resource(uri)
        assert len(ours(engine, "ref")) == 2


async def _put_away(caller: Client[Any], name: str) -> str:
    """Have the server keep something for this session; where it is to be read."""
    kept = await caller.call_tool("ref_gzip-file-as-resource", {"name": name, "data": "data:text/plain,hello"})
    [link] = kept.content
    return str(link.uri)
