"""The MCP SDK's low-level server below FastMCP: what the gateway hangs on it, and how one is run in this process.

Whoever makes a root server comes in, and `inprocess`. Beside `lines`, the only module that touches private attributes:
FastMCP does not show the server that its own handlers hang on.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from fastmcp import FastMCP
from mcp.shared.message import SessionMessage

from providers.lines import MODERN, MODERN_PROTOCOL_VERSIONS, Json, mcp_types


def serve_others(
    server: FastMCP[Any],
    requests: Mapping[str, Callable[[Any, Json], Awaitable[Json]]],
    notifications: Mapping[str, Callable[[], Awaitable[None]]],
) -> None:
    """Have messages answered that FastMCP has no components for. Its own handlers hang on the same low-level server,
    which says in its capabilities what it has handlers for. On 3.4 they are not served.

    Args:
        requests: by method; each is given the request, and its params as the client sent them.
    """
    if not MODERN:
        return
    shapes = {
        "completion/complete": mcp_types.CompleteRequestParams,
        "resources/subscribe": mcp_types.SubscribeRequestParams,
        "resources/unsubscribe": mcp_types.UnsubscribeRequestParams,
        "subscriptions/listen": mcp_types.SubscriptionsListenRequestParams,
    }
    for method, answer in requests.items():
        server._mcp_server.add_request_handler(method, shapes[method], partial(_answer_raw, answer))
    for method, take in notifications.items():
        server._mcp_server.add_notification_handler(method, mcp_types.NotificationParams, partial(_take_raw, take))


async def _answer_raw(answer: Callable[[Any, Json], Awaitable[Json]], request: Any, params: Any) -> Json:
    result = await answer(request, dict(request.params or {}))
    is_modern = request.protocol_version in MODERN_PROTOCOL_VERSIONS
    return {"resultType": "complete"} | result if is_modern else result


async def _take_raw(take: Callable[[], Awaitable[None]], request: Any, params: Any) -> None:
    await take()


def use_input_schema_lookup(server: FastMCP[Any], lookup: Callable[[str], Mapping[str, Any] | None]) -> None:
    """Let the SDK look a tool's input schema up in memory. Without it 4.x lists all tools before each modern call, and
    3.4 before each call of a tool that it has not seen, so that one hung backend blocks every call; there is no public
    way to set it through FastMCP."""
    if MODERN:
        server._mcp_server.get_tool_input_schema = lookup
    else:
        server._mcp_server._get_cached_tool_definition = _no_definition  # type: ignore[attr-defined]


def wrap_requests(server: FastMCP[Any], wrap: Any) -> None:
    """Have every request go through `wrap(context, call_next)` of the SDK, outermost; 3.4 has no such place."""
    if MODERN:
        server._mcp_server.middleware.insert(0, wrap)


def sealing_with_mark(mark: Callable[[str], str], unmark: Callable[[str], str | None]) -> dict[str, Any]:
    """Options for `FastMCP`, by which each state that a client is given says whose it is, outside of the seal. The
    seal's key is this process's own: another one is asked to break its own seals. On 3.4 nothing is sealed.

    Args:
        unmark: the sealed text; None where the mark is another's.
    """
    if not MODERN:
        return {}
    from mcp.server.request_state import AESGCMRequestStateCodec, InvalidRequestState, RequestStateSecurity

    seal = AESGCMRequestStateCodec([os.urandom(32)])

    class Marked:
        def seal(self, payload: bytes) -> str:
            return mark(seal.seal(payload))

        def unseal(self, token: str) -> bytes:
            sealed = unmark(token)
            if sealed is None:
                raise InvalidRequestState("another replica's")
            return seal.unseal(sealed)

    return {"request_state_security": RequestStateSecurity(codec=Marked())}


async def _no_definition(name: str) -> None:
    """What mcp 1 would check results by; ours are the backend's own, and checked by the client at the end."""


def lifespan(server: FastMCP[Any]) -> AbstractAsyncContextManager[None]:
    """The lifespan of a server in this process; FastMCP enters it only by itself."""
    return server._lifespan_manager()


async def serve_in_memory(
    server: FastMCP[Any],
    read: MemoryObjectReceiveStream[SessionMessage | Exception],
    write: MemoryObjectSendStream[SessionMessage],
) -> None:
    """Run a FastMCP server of this process over a pair of streams until the reading one ends. The streams are plain
    ones: they carry no context variables, so the server sees nothing of the request that a message came with."""
    low_level = server._mcp_server
    await low_level.run(read, write, low_level.create_initialization_options())
