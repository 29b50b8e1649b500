"""What only the 2026-07-28 era does: a call is answered with a question, and called again with the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest
from fastmcp import Client

from providers import lines
from tests.helpers.fakes import MODERN_VERSION, Call, FakeBackend, Json, never, no_waiting, settled, text
from tests.helpers.house import house_of

QUESTION: Json = {
    "method": "elicitation/create",
    "params": {
        "mode": "form",
        "message": "Sure?",
        "requestedSchema": {"type": "object", "properties": {"yes": {"type": "boolean"}}},
    },
}

RESULTS: dict[str, Json] = {
    "tools/call": text("thanks"),
    "resources/read": {"contents": [{"uri": "data://a", "text": "thanks"}]},
    "prompts/get": {"messages": [{"role": "user", "content": {"type": "text", "text": "thanks"}}]},
}
USES: dict[str, Callable[[Client[Any]], Any]] = {
    "tools/call": lambda client: client.call_tool("files_echo", {"text": "x"}),
    "resources/read": lambda client: client.read_resource("data://files/a"),
    "prompts/get": lambda client: client.get_prompt("files_p", {"topic": "x"}),
}


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


def modern_backend(**answers: Any) -> FakeBackend:
    async def prompts(call: Call) -> Json:
        return {"prompts": [{"name": "p"}]}

    capabilities: Json = {"tools": {}, "resources": {}, "prompts": {}, "logging": {}}
    return FakeBackend("files", is_modern=True, capabilities=capabilities, answers={"prompts/list": prompts, **answers})


async def agrees(*_: Any) -> Any:
    return {"yes": True}


@pytest.mark.parametrize("method", RESULTS)
async def test_a_backends_question_is_the_answer_and_the_clients_answer_comes_with_the_next_call(method: str) -> None:
    seen: list[Json] = []

    async def asks(call: Call) -> Json:
        seen.append(call.params)
        if "inputResponses" in call.params:
            return RESULTS[method]
        return {"resultType": "input_required", "inputRequests": {"q": QUESTION}, "requestState": "s1"}

    backend = modern_backend(**{method: asks})
    async with house_of(backend) as house, house.client(MODERN_VERSION, elicitation_handler=agrees) as client:
        assert "thanks" in str(await USES[method](client))
    assert len(seen) == 2 and seen[1]["requestState"] == "s1"
    assert seen[1]["inputResponses"]["q"] == {"action": "accept", "content": {"yes": True}}
    assert {key: value for key, value in seen[0].items() if key != "_meta"}.items() <= seen[1].items()


async def test_a_handshake_client_is_served_by_a_backend_that_knows_only_this_era() -> None:
    backend = modern_backend()
    backend.knows_handshake = False
    async with house_of(backend) as house, house.client("legacy") as client:
        assert [each.name for each in await client.list_tools()] == ["files_echo"]
        assert (await client.call_tool("files_echo", {"text": "hi"})).content[0].text == "hi"  # type: ignore[union-attr]


async def test_a_client_of_this_era_is_served_by_a_backend_that_knows_only_the_handshake() -> None:
    async with house_of(FakeBackend("files")) as house, house.client(MODERN_VERSION) as client:
        assert [each.name for each in await client.list_tools()] == ["files_echo"]
        assert (await client.call_tool("files_echo", {"text": "hi"})).content[0].text == "hi"  # type: ignore[union-attr]


async def test_a_call_with_arguments_lists_nothing_before() -> None:
    """The SDK would list all tools of all servers before each call, to check its headers."""
    files, hung = FakeBackend("files"), FakeBackend("hung", answers={"tools/list": never})
    async with house_of(files, hung) as house, house.client(MODERN_VERSION) as client:
        began = anyio.current_time()
        await lines.send_raw(client.session, "tools/call", {"name": "files_echo", "arguments": {"text": "hi"}})
        assert hung.attempts == 0 and anyio.current_time() == began


@pytest.mark.parametrize(("wanted", "heard"), [("warning", ["error"]), ("debug", ["info", "error"])])
async def test_a_client_of_this_era_hears_the_log_messages_that_its_request_asks_for(
    wanted: str, heard: list[str]
) -> None:
    async def answer(call: Call) -> Json:
        await call.log("a", "info")
        await call.log("b", "error")
        return text("done")

    levels: list[str] = []

    async def on_log(message: Any) -> None:
        levels.append(message.level)

    backend = FakeBackend("files", answers={"tools/call": answer})
    async with house_of(backend) as house, house.client(MODERN_VERSION, log_handler=on_log) as client:
        await client.call_tool("files_echo", meta={"io.modelcontextprotocol/logLevel": wanted})
        await settled()
    assert levels == heard
