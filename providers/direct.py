"""A FastMCP server with one provider, whose look-ups go straight to it.

FastMCP asks all providers of a server at once, then applies transforms, visibility and versions. The root server and
the sub-servers have one provider each and none of the rest; asked directly, a look-up costs a tenth, on both levels.
`composition.mount` and `composition.gateway` make their servers of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastmcp import FastMCP
from fastmcp.prompts.base import Prompt
from fastmcp.server.providers import Provider
from fastmcp.tools.base import Tool


class DirectServer(FastMCP[Any]):
    """A server of `provider`'s components, and of nothing else.

    Args:
        options: as for `FastMCP`.
    """

    def __init__(self, provider: Provider, **options: Any) -> None:
        self._only = provider
        super().__init__(providers=[provider], dereference_schemas=False, **options)

    async def get_tool(self, name: str, version: Any = None) -> Tool | None:
        return await self._only.get_tool(name, version)

    async def list_tools(self, *, run_middleware: bool = True) -> Sequence[Tool]:
        return await (super().list_tools() if run_middleware else self._only.list_tools())

    async def get_prompt(self, name: str, version: Any = None) -> Prompt | None:
        return await self._only.get_prompt(name, version)
