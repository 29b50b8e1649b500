"""A FastMCP server with one provider, whose look-ups go straight to it.

FastMCP asks all providers of a server at once, then applies transforms, visibility and versions. The root server and
the sub-servers have one provider each and none of the rest; asked directly, a look-up costs a tenth, on both levels.
`composition.mount` and `composition.gateway` make their servers of this.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from fastmcp import FastMCP
from fastmcp.prompts.base import Prompt
from fastmcp.server.context import Context
from fastmcp.server.middleware import MiddlewareContext
from fastmcp.server.providers import Provider
from fastmcp.tools.base import Tool

from providers.errors import ConfigurationError


class DirectServer(FastMCP[Any]):
    """A server of `provider`'s components, and of nothing else.

    Args:
        http_refusal: why it may not be served over HTTP as it is; None where it may.
        options: as for `FastMCP`.
    """

    def __init__(self, provider: Provider, *, http_refusal: str | None = None, **options: Any) -> None:
        self._only, self._http_refusal = provider, http_refusal
        super().__init__(providers=[provider], dereference_schemas=False, **options)

    def http_app(self, *arguments: Any, **options: Any) -> Any:
        """As FastMCP's.

        Raises:
            ConfigurationError: it may not be served over HTTP.
        """
        if self._http_refusal is not None:
            raise ConfigurationError(self._http_refusal)
        return super().http_app(*arguments, **options)

    @property
    def only(self) -> Provider:
        """The provider of all that it has."""
        return self._only

    async def get_tool(self, name: str, version: Any = None) -> Tool | None:
        return await self._only.get_tool(name, version)

    async def list_tools(self, *, run_middleware: bool = True) -> Sequence[Tool]:
        return await (super().list_tools() if run_middleware else self._only.list_tools())

    async def enter(self, method: str, params: dict[str, Any], work: Callable[[], Awaitable[Any]]) -> Any:
        """Do a piece of work within the server's middleware: for requests that FastMCP has no components for.

        Args:
            params: of the request, as the middleware is to see them.
        """

        async def innermost(context: MiddlewareContext[Any]) -> Any:
            return await work()

        chain: Callable[[MiddlewareContext[Any]], Awaitable[Any]] = innermost
        for middleware in reversed(self.middleware):
            chain = partial(middleware, call_next=chain)
        async with Context(fastmcp=self) as context:
            return await chain(
                MiddlewareContext(
                    message=params, source="client", type="request", method=method, fastmcp_context=context
                )
            )

    async def get_prompt(self, name: str, version: Any = None) -> Prompt | None:
        return await self._only.get_prompt(name, version)
