"""The wire to a server whose tools are programs of images: MCP is spoken here, and each call is a container.

The launcher of containers comes in, with how a container is run to its end; called is `inprocess`, over which these
tools are one more server in this process. Its sessions cost nothing: there is no container between calls.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import anyio
from fastmcp import FastMCP
from fastmcp.tools.base import Tool, ToolResult
from pydantic import PrivateAttr, ValidationError
from pydantic_core import to_json

from providers import low_level
from providers.container_stdio import Ended
from providers.container_tool import ContainerTool
from providers.errors import BackendError, CallerError
from providers.inprocess import inprocess_wire
from providers.lines import Json
from providers.resource import McpServerResource
from providers.wire import Deliver, Wire

MAX_OUTPUT = 256 * 1024
"""Bytes that a program may write to stdout, and to stderr. A model reads them; what is larger belongs into a file."""

_MAX_ANSWER = 960 * 1024
"""Bytes of an answer as JSON, which writes some signs as six. Clients of the SDK take no event of more than 1 MiB."""

RunContainer = Callable[[McpServerResource], Awaitable[Ended]]


def container_tool_wire(
    resource: McpServerResource, deliver: Deliver, run: RunContainer
) -> AbstractAsyncContextManager[Wire]:
    """A session's wire to the tools of a resource.

    Args:
        run: runs a container of a resource to its end.
    """
    return inprocess_wire(resource, partial(_serving, resource, run), deliver)


@asynccontextmanager
async def _serving(resource: McpServerResource, run: RunContainer) -> AsyncIterator[FastMCP[Any]]:
    server = FastMCP[Any](resource.name, dereference_schemas=False)  # FastMCP would rewrite schemas
    for name, tool in resource.docker_tools.items():
        server.add_tool(_Program.of(name, tool, resource, run))
    async with low_level.lifespan(server):
        yield server


class _Program(Tool):
    _tool: ContainerTool = PrivateAttr()
    _resource: McpServerResource = PrivateAttr()
    _to_end: RunContainer = PrivateAttr()

    @classmethod
    def of(cls, name: str, tool: ContainerTool, resource: McpServerResource, run: RunContainer) -> _Program:
        program = cls(name=name, description=tool.description, parameters=tool.parameters)
        program._tool, program._resource, program._to_end = tool, resource, run
        return program

    async def run(self, arguments: Json) -> ToolResult:
        limit = self._resource.timeouts.call_max
        try:
            resource = self._for_call(arguments)
            with anyio.fail_after(limit):
                return _answer(await self._to_end(resource))
        except (BackendError, CallerError) as error:
            return _failure(str(error))
        except TimeoutError:
            return _failure(f"It did not end within {limit:g} s, and was ended.")

    def _for_call(self, arguments: Json) -> McpServerResource:
        """What runs for a call: the record of a server that is nothing but this program with these arguments.

        Raises:
            CallerError: they are not right.
        """
        if problem := self._tool.problem(arguments):
            raise CallerError(problem)
        try:
            args = self._tool.args_for(arguments)
            volumes = [*self._resource.docker_volumes, *self._tool.volumes_for(arguments)]
        except ValueError as error:
            raise CallerError(f"The call {error}.") from None
        kept = self._resource.model_dump(exclude={"docker_tools", "docker_volumes"}, exclude_unset=True)
        own = {"docker_image": self._tool.image, "docker_user": self._tool.user}
        try:
            return McpServerResource.model_validate(
                kept
                | {key: value for key, value in own.items() if value is not None}
                | {"args": args, "docker_volumes": volumes}
            )
        except ValidationError as error:
            raise CallerError(f"The call cannot be run: {_in_words(error)}.") from None


def _in_words(error: ValidationError) -> str:
    """What of a call's arguments no container can be given; no value is quoted."""
    told = []
    for detail in error.errors(include_url=False, include_input=False):
        key = "its volumes" if detail["loc"][:1] == ("docker_volumes",) else "its arguments"
        said = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else "are not valid"
        told.append(f"one of {key} {said}")
    return "; ".join(dict.fromkeys(told))


def _answer(ended: Ended) -> ToolResult:
    """What the program wrote, or what it has to say about why it failed."""
    stdout, stderr = (text.decode(errors="replace") for text in (ended.stdout, ended.stderr))
    if ended.is_cut:
        return _failure(f"{stdout}\n\nIt wrote more than {MAX_OUTPUT:,} bytes, and was ended.")
    if ended.code:
        said = [text.rstrip() for text in (stdout, stderr) if text]
        return _failure("\n".join([*said, f"{ended.how[:1].upper()}{ended.how[1:]}."]))
    answer = stdout or stderr
    return ToolResult(content=answer) if _fits(answer) else _failure(answer)


def _failure(text: str) -> ToolResult:
    """A tool's error, of which as much is told as fits."""
    is_whole = _fits(text)
    while not _fits(text):
        text = text[: len(text) * 3 // 4]
    return ToolResult(content=text if is_whole else f"{text}\n\nThe rest does not fit into an answer.", is_error=True)


def _fits(text: str) -> bool:
    return len(to_json(text)) <= _MAX_ANSWER
