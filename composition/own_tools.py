"""The gateway's own tools, under the server name `gateway`: to find, read of and call the tools of the servers.

`gateway` makes them where `[gateway] tools = "search"` says so; the registry shows them in place of the hundreds behind
it. Each obeys the caller's permissions, because it asks the registry as that caller; a call goes in by the root server
once more, so that it is counted, limited and written down like one that the client made by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import anyio.lowlevel
from fastmcp import FastMCP
from fastmcp.exceptions import NotFoundError
from fastmcp.tools.base import ToolResult
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from composition.mount import Mount
from composition.names import SEPARATOR
from composition.ranking import ToolIndex, arguments_of, rank
from composition.registry import Registry
from composition.settings import OWN_SERVER
from providers.caller import Caller
from providers.components import Offer, OfferedTool, RawToolResult
from providers.errors import CallerError
from providers.lines import Json

_SHORT = 240
"""Characters of a description in a list of what was found."""


_HOW_TO_SEARCH = (
    "\n\nTheir tools are not all listed. Find one with gateway_find_tools, read what it needs with "
    "gateway_describe_tool, and run it with gateway_call_tool."
)


class Arguments(BaseModel):
    """Of an own tool. Its schema is what a model reads, so its fields have descriptions."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class FindTools(Arguments):
    query: str = Field(min_length=1, max_length=1000, description="what the tool should do, in a few words")
    limit: int = Field(default=5, ge=1, le=20, description="how many to return")
    server: str | None = Field(default=None, description="only tools of this server")


class DescribeTool(Arguments):
    name: str = Field(description="a name that gateway_find_tools returned")


class CallTool(Arguments):
    name: str = Field(description="a name that gateway_find_tools returned")
    arguments: dict[str, Any] = Field(default_factory=dict, description="as the tool's inputSchema says")


Admit = Callable[[str, Json, Callable[[], Awaitable[Any]]], Awaitable[Any]]
Work = Callable[[Caller, Any], Awaitable[Json | ToolResult]]


class OwnTools:
    """Args:
    admit: decides on a call and writes it down; see `Admission.within`.
    pinned: patterns of the public names of tools that lists show beside the own ones; None shows all.
    """

    def __init__(self, registry: Registry, server: FastMCP[Any], admit: Admit, pinned: tuple[str, ...] | None) -> None:
        self._registry, self._server, self._admit, self._pinned = registry, server, admit, pinned
        self._indexes: WeakKeyDictionary[Offer, ToolIndex] = WeakKeyDictionary()
        self.tools: dict[str, OfferedTool] = {}
        self.instructions = ""

    def __repr__(self) -> str:
        return f"<OwnTools {', '.join(self.tools)}>"

    @property
    def shows_others(self) -> bool:
        return self._pinned is None or bool(self._pinned)

    def shows(self, name: str) -> bool:
        return self._pinned is None or any(fnmatchcase(name, pattern) for pattern in self._pinned)

    def add(self, name: str, arguments: type[Arguments], work: Work, description: str, **annotations: bool) -> None:
        """Offer one more.

        Args:
            name: without `gateway_`.
            work: does it for a caller, with checked arguments; gives what the tool's structured answer is, or a whole
                result.
            annotations: MCP's hints, such as `readOnlyHint`.
        """
        public = f"{OWN_SERVER}{SEPARATOR}{name}"
        form = {
            "name": public,
            "description": description,
            "inputSchema": arguments.model_json_schema(),
            "annotations": annotations,
        }
        self.tools[public] = OfferedTool.of(form, self._runner(arguments, work))

    def _runner(self, arguments: type[Arguments], work: Work) -> Callable[[Json], Awaitable[ToolResult]]:
        async def run(given: Json) -> ToolResult:
            caller = await self._registry.caller()
            if caller is None:
                raise NotFoundError("Unknown tool")
            try:
                answer = await work(caller, arguments.model_validate(given or {}))
            except ValidationError as error:
                return failure(_problems(error))
            except CallerError as error:
                return failure(str(error))
            return answer if isinstance(answer, ToolResult) else success(answer)

        return run

    def add_search(self) -> None:
        """Offer what finds, describes and calls the tools of the servers."""
        self.add(
            "find_tools",
            FindTools,
            self._find,
            "Find tools by what they do. The tools of this gateway's servers are not all listed: look here first, then "
            "read the one you need with gateway_describe_tool and run it with gateway_call_tool.",
            readOnlyHint=True,
        )
        self.add(
            "describe_tool",
            DescribeTool,
            self._describe,
            "The whole definition of a tool: its description and the schema of its arguments.",
            readOnlyHint=True,
        )
        self.add("call_tool", CallTool, self._call, "Run a tool that gateway_find_tools has found.")
        self.instructions += _HOW_TO_SEARCH

    async def _find(self, caller: Caller, asked: FindTools) -> Json:
        offers = await self._registry.offers(caller)
        chosen = [(mount, offer) for mount, offer in offers if asked.server in (None, mount.resource.name)]
        indexes, forms = [], dict[str, Json]()
        for mount, offer in chosen:
            indexes.append(await self._index(mount, offer))
            forms |= {name: tool.form for name, tool in offer.tools.items()}
        return {"tools": [_short(forms[found.name]) for found in rank(indexes, asked.query, asked.limit)]}

    async def _index(self, mount: Mount, offer: Offer) -> ToolIndex:
        if offer not in self._indexes:
            tools = {name: tool.form for name, tool in offer.tools.items()}
            self._indexes[offer] = ToolIndex(mount.resource.name, tools)
            await anyio.lowlevel.checkpoint()  # thousands of tools are indexed at the first question; others go on
        return self._indexes[offer]

    async def _describe(self, caller: Caller, asked: DescribeTool) -> Json:
        tool = await self._registry.get_tool(asked.name)
        if not isinstance(tool, OfferedTool):
            raise CallerError(_unknown(asked.name))
        return tool.form

    async def _call(self, caller: Caller, asked: CallTool) -> ToolResult:
        if asked.name in self.tools:
            raise CallerError(f"{asked.name} is listed: call it directly.")
        params = {"name": asked.name, "arguments": asked.arguments}
        result: ToolResult = await self._admit("tools/call", params, partial(self._run, asked))
        return result

    async def _run(self, asked: CallTool) -> ToolResult:
        if await self._registry.get_tool(asked.name) is None:
            raise CallerError(_unknown(asked.name))
        return await self._server.call_tool(asked.name, asked.arguments)


def success(answer: Json) -> RawToolResult:
    """A tool's result with a structured answer, and the same as text for clients that read no other."""
    text = to_json(answer).decode()
    return RawToolResult.of({"content": [{"type": "text", "text": text}], "structuredContent": answer})


def failure(problem: str) -> RawToolResult:
    """A tool's error, for the model to read."""
    return RawToolResult.of({"content": [{"type": "text", "text": problem}], "isError": True})


def _unknown(name: str) -> str:
    return f"Unknown tool: {name}. Find tools with {OWN_SERVER}_find_tools."


def _short(form: Json) -> Json:
    described = " ".join(str(form.get("description") or "").split())
    found: Json = {"name": form["name"], "description": described}
    if len(described) > _SHORT:
        found["description"] = described[: _SHORT - 1] + "…"
    schema = form.get("inputSchema")
    required = schema.get("required") if isinstance(schema, dict) else None
    found["arguments"] = [name for name, _ in arguments_of(form)]
    found["required"] = required if isinstance(required, list) else []
    return found


def _problems(error: ValidationError) -> str:
    found = (f"'{'.'.join(map(str, each['loc']))}': {each['msg']}" for each in error.errors(include_input=False))
    return f"The arguments are not right. {'; '.join(found)}."
