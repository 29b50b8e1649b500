"""FastMCP components whose shape and whose results are the backend's own, word for word.

`backend` makes them for one server, `composition.mount` makes them again under the server's namespace: the class is the
same, only the name and the way of calling differ. FastMCP would rebuild what it shows and returns from its own models;
these keep the JSON that the backend sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any

from fastmcp.prompts.base import Prompt, PromptResult
from fastmcp.resources.base import Resource, ResourceResult
from fastmcp.resources.template import ResourceTemplate
from fastmcp.tools.base import Tool, ToolResult
from pydantic import PrivateAttr

from providers import lines
from providers.lines import Json, mcp_types

CallTool = Callable[[Json], Awaitable[ToolResult]]
ReadResource = Callable[[], Awaitable[ResourceResult]]
GetPrompt = Callable[[Json | None], Awaitable[PromptResult]]

_BOOKKEEPING = ("resultType", "ttlMs", "cacheScope")
_SERVER_INFO = "io.modelcontextprotocol/serverInfo"


def own_part(result: Json) -> Json:
    """A backend's result without what concerns its connection to us: the era's bookkeeping, and who it is."""
    part = {key: value for key, value in result.items() if key not in _BOOKKEEPING}
    meta = {key: value for key, value in (part.pop("_meta", None) or {}).items() if key != _SERVER_INFO}
    return part | {"_meta": meta} if meta else part


# --- results


class RawToolResult(ToolResult):
    """A tool's result as the backend sent it."""

    _raw: Json = PrivateAttr(default_factory=dict)

    @classmethod
    def of(cls, raw: Json) -> RawToolResult:
        result = cls.model_construct(
            content=[],
            structured_content=raw.get("structuredContent"),
            meta=raw.get("_meta"),
            is_error=bool(raw.get("isError")),
        )
        result._raw = raw
        return result

    @property
    def raw(self) -> Json:
        return self._raw

    def to_mcp_result(self) -> Any:
        return mcp_types.CallToolResult.model_validate(self._raw)


class RawResourceResult(ResourceResult):
    """The contents of a resource as the backend sent them."""

    _raw: Json = PrivateAttr(default_factory=dict)

    @classmethod
    def of(cls, raw: Json) -> RawResourceResult:
        result = cls.model_construct(contents=[], meta=raw.get("_meta"))
        result._raw = raw
        return result

    @property
    def raw(self) -> Json:
        return self._raw

    def to_mcp_result(self, uri: Any) -> Any:
        return mcp_types.ReadResourceResult.model_validate(self._raw)


class RawPromptResult(PromptResult):
    """A prompt's messages as the backend sent them."""

    _raw: Json = PrivateAttr(default_factory=dict)

    @classmethod
    def of(cls, raw: Json) -> RawPromptResult:
        result = cls.model_construct(messages=[], description=raw.get("description"), meta=raw.get("_meta"))
        result._raw = raw
        return result

    @property
    def raw(self) -> Json:
        return self._raw

    def to_mcp_prompt_result(self) -> Any:
        return mcp_types.GetPromptResult.model_validate(self._raw)


# --- components


class OfferedTool(Tool):
    """A tool shown as `form` says and run by `call`."""

    _form: Json = PrivateAttr(default_factory=dict)
    _call: CallTool = PrivateAttr()

    @classmethod
    def of(cls, form: Json, call: CallTool) -> OfferedTool:
        tool = cls.model_construct(
            name=form["name"],
            description=form.get("description"),
            parameters=form.get("inputSchema") or {"type": "object"},
            output_schema=form.get("outputSchema"),
            meta=form.get("_meta"),
            tags=set(),
        )
        tool._form, tool._call = form, call
        return tool

    @property
    def form(self) -> Json:
        return self._form

    def to_mcp_tool(self, **overrides: Any) -> Any:
        return self._shown

    @cached_property  # not a private attribute: pydantic looks those up slowly, and a list asks 1,000 tools
    def _shown(self) -> Any:
        return mcp_types.Tool.model_validate(self._form)

    async def run(self, arguments: Json) -> ToolResult:
        return await self._call(arguments)


class OfferedResource(Resource):
    """A resource shown as `form` says and read by `read_it`."""

    _form: Json = PrivateAttr(default_factory=dict)
    _read_it: ReadResource = PrivateAttr()

    @classmethod
    def of(cls, form: Json, read_it: ReadResource) -> OfferedResource:
        uri = form["uri"]
        resource = cls.model_construct(
            uri=uri,
            name=form.get("name") or uri,
            meta=form.get("_meta"),
            tags=set(),
            mime_type=form.get("mimeType"),
        )
        resource._form, resource._read_it = form, read_it
        return resource

    @property
    def form(self) -> Json:
        return self._form

    def to_mcp_resource(self, **overrides: Any) -> Any:
        return mcp_types.Resource.model_validate(self._form)

    async def read(self) -> ResourceResult:
        return await self._read_it()


class OfferedTemplate(ResourceTemplate):
    """A resource template shown as `form` says. It is only listed: reading goes by the resource's URI."""

    _form: Json = PrivateAttr(default_factory=dict)

    @classmethod
    def of(cls, form: Json) -> OfferedTemplate:
        template = cls.model_construct(
            uri_template=form["uriTemplate"],
            name=form.get("name") or form["uriTemplate"],
            parameters={},
            meta=form.get("_meta"),
            tags=set(),
        )
        template._form = form
        return template

    @property
    def form(self) -> Json:
        return self._form

    def to_mcp_template(self, **overrides: Any) -> Any:
        return mcp_types.ResourceTemplate.model_validate(self._form)


class OfferedPrompt(Prompt):
    """A prompt shown as `form` says and rendered by `get`."""

    _form: Json = PrivateAttr(default_factory=dict)
    _get: GetPrompt = PrivateAttr()

    @classmethod
    def of(cls, form: Json, get: GetPrompt) -> OfferedPrompt:
        prompt = cls.model_construct(
            name=form["name"],
            description=form.get("description"),
            arguments=None,
            meta=form.get("_meta"),
            tags=set(),
        )
        prompt._form, prompt._get = form, get
        return prompt

    @property
    def form(self) -> Json:
        return self._form

    def to_mcp_prompt(self, **overrides: Any) -> Any:
        return mcp_types.Prompt.model_validate(self._form)

    async def render(self, arguments: Json | None = None) -> PromptResult:
        return await self._get(arguments)


class Offer:
    """Everything that one server offers, by name and in the backend's order."""

    def __init__(self) -> None:
        self.tools: dict[str, OfferedTool] = {}
        self.resources: dict[str, OfferedResource] = {}
        self.templates: dict[str, OfferedTemplate] = {}
        self.prompts: dict[str, OfferedPrompt] = {}


def input_required(kind: str, raw: Json) -> Any:
    """A backend's 2026-07-28 question, as FastMCP passes it to a client of that era; None for a finished result.

    Args:
        kind: `tool`, `resource` or `prompt`.
    """
    return lines.input_required(kind, raw) if raw.get("resultType") == "input_required" else None
