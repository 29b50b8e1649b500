"""Components that are shown, and results that are returned, as the backend sent them: word for word."""

from __future__ import annotations

from typing import Any

import pytest

from providers.components import (
    OfferedPrompt,
    OfferedResource,
    OfferedTemplate,
    OfferedTool,
    RawPromptResult,
    RawResourceResult,
    RawToolResult,
    own_part,
)
from tests.helpers.fakes import Json

pytestmark = pytest.mark.core


def shown(model: Any) -> Json:
    """What goes to the client."""
    dumped: Json = model.model_dump(by_alias=True, mode="json", exclude_none=True)
    return dumped


TOOL: Json = {
    "name": "read_file",
    "title": "Read a file",
    "description": "Line one\nline two",
    "inputSchema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"path": {"$ref": "#/$defs/path"}, "n": {"type": ["integer", "null"], "default": None}},
        "required": ["path"],
        "additionalProperties": False,
        "$defs": {"path": {"type": "string", "x-own": 1}},
    },
    "outputSchema": {"type": "object", "properties": {"text": {"type": "string"}}},
    "annotations": {"title": "R", "readOnlyHint": True, "openWorldHint": False},
    "_meta": {"vendor.example/key": {"deep": [1, 2, {"x": None}]}},
}
RESOURCE: Json = {
    "uri": "data://greeting",
    "name": "greeting",
    "title": "A greeting",
    "mimeType": "text/plain",
    "size": 5,
    "annotations": {"audience": ["user"], "priority": 0.5},
    "_meta": {"k": 1},
}
TEMPLATE: Json = {"uriTemplate": "data://{a}/{+b}{?c}", "name": "t", "description": "d", "mimeType": "text/plain"}
PROMPT: Json = {
    "name": "summarize",
    "title": "Summarize",
    "description": "d",
    "arguments": [{"name": "topic", "description": "what", "required": True}, {"name": "length"}],
    "_meta": {"k": 1},
}


async def unused(*_: Any) -> Any:
    raise AssertionError("not used")


def test_a_tool_is_shown_as_the_backend_lists_it() -> None:
    tool = OfferedTool.of(TOOL, unused)
    assert shown(tool.to_mcp_tool()) == TOOL and tool.form is TOOL
    assert tool.name == "read_file" and tool.parameters == TOOL["inputSchema"]
    assert tool.to_mcp_tool() is tool.to_mcp_tool(), "made once"


def test_a_resource_is_shown_as_the_backend_lists_it() -> None:
    resource = OfferedResource.of(RESOURCE, unused)
    assert shown(resource.to_mcp_resource()) == RESOURCE and str(resource.uri) == "data://greeting"


def test_a_template_is_shown_as_the_backend_lists_it() -> None:
    assert shown(OfferedTemplate.of(TEMPLATE).to_mcp_template()) == TEMPLATE


def test_a_prompt_is_shown_as_the_backend_lists_it() -> None:
    assert shown(OfferedPrompt.of(PROMPT, unused).to_mcp_prompt()) == PROMPT


def test_the_least_that_a_component_can_say_is_enough() -> None:
    assert OfferedTool.of({"name": "x"}, unused).parameters == {"type": "object"}
    assert OfferedResource.of({"uri": "x://y"}, unused).name == "x://y"
    assert OfferedTemplate.of({"uriTemplate": "x://{y}"}).name == "x://{y}"
    assert OfferedPrompt.of({"name": "x"}, unused).name == "x"


async def test_a_component_does_what_it_is_given() -> None:
    async def answer(*given: Any) -> Any:
        return given

    assert await OfferedTool.of(TOOL, answer).run({"a": 1}) == ({"a": 1},)  # type: ignore[comparison-overlap]
    assert await OfferedResource.of(RESOURCE, answer).read() == ()  # type: ignore[comparison-overlap]
    assert await OfferedPrompt.of(PROMPT, answer).render({"topic": "x"}) == ({"topic": "x"},)  # type: ignore[comparison-overlap]


CONTENT: list[Json] = [
    {"type": "text", "text": "hi", "annotations": {"audience": ["user"]}, "_meta": {"k": 1}},
    {"type": "image", "data": "aGk=", "mimeType": "image/png"},
    {"type": "audio", "data": "aGk=", "mimeType": "audio/wav"},
    {"type": "resource_link", "uri": "file:///a", "name": "a"},
    {"type": "resource", "resource": {"uri": "file:///a", "mimeType": "text/plain", "text": "hi"}},
    {"type": "resource", "resource": {"uri": "file:///b", "blob": "aGk="}},
]


@pytest.mark.parametrize("is_error", [True, False])
def test_a_tools_result_is_returned_as_the_backend_sent_it(is_error: bool) -> None:
    raw = {"content": CONTENT, "structuredContent": {"a": [1, None]}, "isError": is_error, "_meta": {"k": {"x": 1}}}
    result = RawToolResult.of(raw)
    sent = result.to_mcp_result().model_dump(by_alias=True, mode="json", exclude_unset=True)
    assert {key: sent[key] for key in raw} == raw
    assert result.raw is raw and result.structured_content == {"a": [1, None]}


def test_a_resources_contents_are_returned_as_the_backend_sent_them() -> None:
    raw = {"contents": [{"uri": "file:///a", "mimeType": "text/plain", "text": "hi"}, {"uri": "x://b", "blob": "aGk="}]}
    sent = RawResourceResult.of(raw).to_mcp_result("ignored").model_dump(by_alias=True, mode="json", exclude_unset=True)
    assert sent["contents"] == raw["contents"]


def test_a_prompts_messages_are_returned_as_the_backend_sent_them() -> None:
    raw = {"description": "d", "messages": [{"role": "user", "content": block} for block in CONTENT], "_meta": {"k": 1}}
    sent = RawPromptResult.of(raw).to_mcp_prompt_result().model_dump(by_alias=True, mode="json", exclude_unset=True)
    assert {key: sent[key] for key in raw} == raw


@pytest.mark.parametrize(
    ("result", "part"),
    [
        ({"content": []}, {"content": []}),
        ({"content": [], "resultType": "complete", "ttlMs": 5, "cacheScope": "public"}, {"content": []}),
        ({"content": [], "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "x"}}}, {"content": []}),
        (
            {"content": [], "_meta": {"io.modelcontextprotocol/serverInfo": {}, "mine": 1}},
            {"content": [], "_meta": {"mine": 1}},
        ),
        ({"content": [], "_meta": None}, {"content": []}),
    ],
)
def test_what_concerns_only_the_connection_to_the_backend_is_left_out(result: Json, part: Json) -> None:
    before = dict(result)
    assert own_part(result) == part and result == before
